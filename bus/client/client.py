"""`Client`: one named party of the bus, on one connection that comes back by itself.

The reader's thread holds the connection (bus.client.link). What it reads waits in a bounded mailbox for `receive` or
for the handlers, which run one after another on a thread of their own and so may send and wait for receipts. Sends
stay in the outbox until the server has answered them.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Literal, Self, Unpack, overload

from bus.client.calls import Calls
from bus.client.errors import Offline, ReceiptTimeout
from bus.client.handlers import Handler, Handlers
from bus.client.link import Link
from bus.client.mailbox import Mailbox
from bus.client.outbox import Outbox, Pending, SendOptions, too_late
from bus.client.received import Failed, Gap, Message, Receipt, ServerFrame, Verb
from bus.client.reports import Reply
from bus.client.subscriptions import subscribe_frame, unsubscribe_frame
from bus.client.worker import Worker
from bus.errors import BusError

REPLY_TYPE = "reply"
"""The type of replies, unless another is given; `on_request` never answers it, so two clients can't go on for ever."""


class Client(Calls):
    """A client of the bus. Every method is thread-safe.

    Building one opens nothing. `connect`, or the first send or receive, starts the reader; `close` ends it, and a
    closed client stays closed. As a context manager it connects on entering and closes on leaving. What `Calls` and
    `Operations` bring needs no connection and starts no reader.

    What comes is held in memory up to `max_received` messages; then reading stops until some are taken, and the
    server keeps the rest. A message whose type has a handler goes to the handlers, all others to `receive`.

    The bus counts a plain message as received when this process has read it from the socket, which may be before it
    was taken out here. A program that must not lose what it had read when it crashed keeps `cursor` itself, and gives
    it as `since`, or has it sent with `require_ack`.

    A message that needs an ack is delivered until it is settled: at least once. Here its lease is kept alive while it
    waits its turn (an hour at most) and while its handler, or the body of a `for` over the client, runs; after
    `receive` that is the program's business, by `Message.progress` or `holding`. Repeats are dropped, and what
    was acked is acked again. What is said without a connection is said on the next one.
    """

    def __init__(  # noqa: PLR0913 - one keyword for each thing that can be chosen
        self,
        client_id: str,
        url: str = "http://127.0.0.1:5001",
        *,
        api_key: str | None = None,
        since: str | None = None,
        offline: Literal["queue", "raise"] = "queue",
        auto_ack: bool = True,
        max_queued: int = 1000,
        max_received: int = 1000,
        on_gap: Callable[[Gap], object] | None = None,
        on_dropped: Callable[[int], object] | None = None,
    ) -> None:
        """`url`: http, https, ws or wss, with the prefix under which the bus is mounted, if any.

        `since`: a cursor, an ISO time, `latest` or `earliest`; None for the cursor that the bus keeps for this name.
        It counts for the first connection; afterwards the client resumes where it stands.
        `offline`: what a send does while there is no connection: `queue` keeps it, and whatever has no receipt, and
        sends it again in order; `raise` raises Offline, and fails what is on its way when the connection is lost.
        `auto_ack`: ack what handlers and iteration have dealt with; False to do it by hand, as after `receive`.
        `max_queued`: sends without a receipt; one more raises QueueFull.
        `on_gap(gap)`: messages were missed that the server no longer has. `on_dropped(n)`: so many ephemeral messages
        were left out because this client was slow. Both are logged anyway; they run on the reader's thread and must
        not wait.

        Raises Malformed for a name or URL that can't be one.
        """
        super().__init__(client_id, url, api_key=api_key)
        self._auto_ack = auto_ack
        self._outbox = Outbox(max_queued)
        self._mailbox = Mailbox(max_received)
        self._link = Link(
            self.client_id,
            self._rest,
            api_key=api_key,
            since=since,
            offline=offline,
            outbox=self._outbox,
            mailbox=self._mailbox,
            settler=self,
        )
        self._link.callbacks.gap, self._link.callbacks.dropped = on_gap, on_dropped
        self._handlers = Handlers(self.client_id, self._mailbox, self._link.deliveries, auto_ack=auto_ack)
        # The workers, for `close` to stop. Guarded by the lock; those that have ended go when one is added.
        self._workers: list[Worker] = []
        self._adding = threading.Lock()

    # ---- life

    def connect(self, timeout: float | None = 10.0) -> None:
        """Wait until the server has confirmed the connection, at most `timeout` seconds (None: for ever).

        Raises Offline when that takes longer (the client goes on trying until it is closed); Unauthenticated,
        Forbidden or Malformed when trying again is no use.
        """
        self._link.connect(timeout)

    @property
    def is_connected(self) -> bool:
        """True while a confirmed connection is open."""
        return self._link.is_connected

    @property
    def cursor(self) -> str | None:
        """Where the application stands in the log, to be given as `since` some other time.

        Everything before it was returned by `receive`, or its handlers have ended. None before the first connection.
        Messages that need an ack have no part in it: they come until they are acked.
        """
        return self._mailbox.handed

    def flush(self, timeout: float | None = None) -> int:
        """Wait up to `timeout` seconds (None: for ever) for all receipts; returns how many sends still have none."""
        return self._outbox.wait_empty(timeout)

    def close(self, timeout: float = 5.0) -> int:
        """End: let handlers and workers that run finish, wait for receipts, shake hands for closing; do not come back.

        `timeout` bounds all but the handshake, in seconds. Returns how many sends were given up; their futures raise
        Offline. What was received and not taken can still be received, and lies behind `cursor`; items of queues go
        back to the bus at once, uncounted. Closing twice is fine.
        """
        deadline = time.monotonic() + timeout
        self._mailbox.close()
        with self._adding:
            workers = list(self._workers)
        for worker in workers:
            worker.stop()
        self._handlers.join(timeout)
        for worker in filter(lambda worker: worker.is_running, workers):
            worker.join(max(0.0, deadline - time.monotonic()))
        if not self._link.is_readers_thread and not self._link.has_failed:
            self.flush(max(0.0, deadline - time.monotonic()))
        return self._link.close(timeout)

    def __enter__(self) -> Self:
        try:
            self.connect()
        except BaseException:
            self.close(0.0)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- sending

    def send(
        self, to: str | list[str], payload: Any, *, timeout: float | None = 30.0, **options: Unpack[SendOptions]
    ) -> Receipt:
        """Send a message and wait up to `timeout` seconds (None: for ever) for the receipt.

        `to` is a client, a list of them, `all`, `topic:<topic>` or `queue:<queue>`. `payload` is anything that
        msgspec encodes as JSON (NaN becomes null). A durable send carries an idempotency key, one of its own unless
        `idempotency_key` is given, so that it is stored once however often the connection breaks. An ephemeral one
        is not repeated: offline, its fate is `dropped`. The other options are those of `SendOptions`.

        Raises Offline (see `offline`), QueueFull, ReceiptTimeout, what the server refused (InboxFull, TooLarge,
        Malformed, …), TypeError for a payload that is no JSON, RuntimeError in a callback of the reader's thread.
        """
        if self._link.is_readers_thread:
            raise RuntimeError("send() would wait for its own thread here; use send_nowait()")
        pending = self._submit(to, payload, options)
        try:
            return pending.future.result(timeout)
        except TimeoutError:
            self._outbox.withdraw(pending)
            if pending.future.done():
                return pending.future.result()
            raise too_late(pending, timeout, self._link.problem) from None

    def send_nowait(self, to: str | list[str], payload: Any, **options: Unpack[SendOptions]) -> Future[Receipt]:
        """Send a message and return at once; the future brings the receipt, or raises as `send` does.

        The way to send much: sends of one client are stored in the order of these calls. The future can't be
        cancelled, and its callbacks run on the reader's thread.
        """
        return self._submit(to, payload, options).future

    def reply(
        self, message: Message, payload: Any, *, timeout: float | None = 30.0, **options: Unpack[SendOptions]
    ) -> Receipt:
        """Answer a request, or any message: to its sender, with its correlation id, in its thread. Like `send` else."""
        options.setdefault("type", REPLY_TYPE)
        options.setdefault("correlation_id", message.correlation_id or message.id)
        options.setdefault("thread_id", message.thread_id)
        return self.send(message.sender, payload, timeout=timeout, **options)

    def request(
        self,
        to: str | list[str],
        payload: Any,
        *,
        wait: float = 25.0,
        require_online: bool = False,
        **options: Unpack[SendOptions],
    ) -> Reply:
        """As `Calls.request`; and the replies that it returns do not come by `receive` and handlers, too.

        It does not wait for the sends of `send_nowait` before it; `flush` does.
        """
        correlation_id = options.get("correlation_id") or secrets.token_hex(12)
        options["correlation_id"] = correlation_id
        had: set[str] = set()
        self._mailbox.reserve(correlation_id)
        try:
            reply = super().request(to, payload, wait=wait, require_online=require_online, **options)
            had.update(message.id for message in reply.replies)
            for message in reply.replies:
                self._link.deliveries.is_repeat(message)
                if message.requires_ack:
                    self.settle(message, "ack", {})
        finally:
            self._mailbox.unreserve(correlation_id, had)
        return reply

    # ---- receiving

    @overload
    def on(self, type: str | None, handler: Handler) -> Handler: ...
    @overload
    def on(self, type: str | None = None) -> Callable[[Handler], Handler]: ...

    def on(self, type: str | None = None, handler: Handler | None = None) -> Handler | Callable[[Handler], Handler]:
        """Have `handler(message)` called for each message of a type (None: of every type). Also a decorator.

        Handlers run one at a time, in order, on one thread; first those of the type, then those of all. When all
        have returned, a message that needs an ack is acked. When one raises, that is logged and the message nacked, so
        the bus delivers it again after a while; a plain message does not come again. A handler may settle it by hand,
        or raise Nack, Reject or Release. With `auto_ack=False` all is by hand.
        """
        if handler is None:
            return lambda function: self.on(type, function)
        self._handlers.add(type, handler)
        return handler

    @overload
    def on_request(self, type: str | None, handler: Handler) -> Handler: ...
    @overload
    def on_request(self, type: str | None = None) -> Callable[[Handler], Handler]: ...

    def on_request(
        self, type: str | None = None, handler: Handler | None = None
    ) -> Handler | Callable[[Handler], Handler]:
        """As `on`, and what `handler(message)` returns is sent as the reply. For messages with a correlation id.

        When the handler raises there is no reply. What is a reply itself (of the type `reply`) is passed over.
        """
        if handler is None:
            return lambda function: self.on_request(type, function)

        def answer(message: Message) -> None:
            if message.correlation_id is not None and message.type != REPLY_TYPE:
                self.reply(message, handler(message))

        self._handlers.add(type, answer)
        return handler

    def on_failed(self, handler: Callable[[Failed], object]) -> Callable[[Failed], object]:
        """Have `handler(failed)` called when a message that this client sent becomes a dead letter. Also a decorator.

        The bus tells who is connected then. It runs on the reader's thread and must not wait: use `send_nowait` in it.
        """
        self._link.callbacks.failed = handler
        return handler

    def receive(self, timeout: float | None = None, type: str | None = None) -> Message:
        """Return the next message, or the next of a type; the others stay where they are, in order.

        Waits up to `timeout` seconds (None: for ever). A message that needs an ack wants `message.ack()` (or one of
        its sisters) afterwards; else it comes again when its lease has run out.

        Raises TimeoutError; BacklogFull when others fill the local queue so that none of this type can come; Offline
        when the client was closed and nothing is left; what made the connection fail for good; ValueError for a
        type that has a handler.
        """
        message = self._next(timeout, type)
        self._link.deliveries.let_go(message)
        return message

    def __iter__(self) -> Iterator[Message]:
        """The messages as they come, until the client is closed. Raises what made the connection fail for good.

        A message that needs an ack is acked when the next one is asked for, unless it was settled by hand; leaving
        the loop, by `break` or by an exception, acks nothing. With `auto_ack=False` all is by hand.
        """
        while True:
            try:
                message = self._next(None, None)
            except Offline:
                if not self._link.has_failed:
                    return
                raise
            deliveries = self._link.deliveries
            (deliveries.hold if self._auto_ack else deliveries.let_go)(message)
            try:
                yield message
                if self._auto_ack and not message.is_settled:
                    message.ack()
            finally:
                deliveries.let_go(message)

    @contextlib.contextmanager
    def holding(self, message: Message) -> Iterator[Message]:
        """Keep the lease of a message that was received alive while the `with` body runs; it settles nothing."""
        self._link.deliveries.hold(message)
        try:
            yield message
        finally:
            self._link.deliveries.let_go(message)

    def ack(self, message: Message) -> None:
        """The same as `message.ack()`."""
        message.ack()

    def settle(self, message: Message, verb: Verb, fields: dict[str, object]) -> None:
        """Carry what is said about a message that was pushed; `Message.ack` and its sisters call it."""
        self._link.say(self._link.deliveries.settle(message, verb, fields))

    # ---- topics and queues

    def subscribe(
        self,
        *,
        topics: Sequence[str] = (),
        queues: Sequence[str] = (),
        max_in_flight: int = 10,
        timeout: float | None = 10.0,
    ) -> None:
        """Follow topics (patterns: `builds.*` one level, `builds.>` all below) and take items of queues, too.

        At most `max_in_flight` items (1 to 1,000) of all the queues together come here at a time without having been
        settled; the number given last counts. It stays in force over reconnects. Waits up to `timeout` seconds (None:
        for ever) for the bus to confirm; without a connection it is remembered for the next one, and not waited for.

        Raises what the bus refused, Offline, and ReceiptTimeout (which leaves it in force).
        """
        self._link.subscriptions.add(topics, queues, max_in_flight)
        try:
            self._ask(lambda ref: subscribe_frame(topics, queues, max_in_flight, ref), timeout)
        except (Offline, ReceiptTimeout):
            raise
        except (BusError, RuntimeError, TypeError, ValueError):  # refused, or no frame could be made of it
            self._link.subscriptions.remove(topics, queues)
            raise

    def unsubscribe(
        self, *, topics: Sequence[str] = (), queues: Sequence[str] = (), timeout: float | None = 10.0
    ) -> None:
        """Undo `subscribe`, and wait as it does. Items of queues that are here stay, to be settled."""
        self._link.subscriptions.remove(topics, queues)
        self._ask(lambda ref: unsubscribe_frame(topics, queues, ref), timeout)

    def worker(
        self, queue: str, handler: Handler, *, max_in_flight: int = 1, ack_wait: float = 30.0, count: int | None = None
    ) -> Worker:
        """As `Calls.worker`; `close` stops it."""
        made = super().worker(queue, handler, max_in_flight=max_in_flight, ack_wait=ack_wait, count=count)
        with self._adding:
            self._workers = [worker for worker in self._workers if not worker.has_ended]
            self._workers.append(made)
        return made

    # ---- inside

    def _submit(self, to: str | list[str], payload: Any, options: SendOptions) -> Pending:
        pending = self._outbox.draft(to, payload, options)
        self._link.submit(pending)
        return pending

    def _ask(self, frame_with: Callable[[str], bytes], timeout: float | None) -> None:
        if self._link.is_readers_thread:
            raise RuntimeError("this would wait for its own thread; call it from another one")
        self._link.raise_if_over()
        answer: Future[ServerFrame] | None = self._link.ask(frame_with)
        if answer is None:
            return
        try:
            answer.result(timeout)
        except TimeoutError:
            raise ReceiptTimeout(f"The bus did not confirm within {timeout} s.") from None

    def _next(self, timeout: float | None, type: str | None) -> Message:
        if type is not None and self._handlers.of(type):
            raise ValueError(f"messages of type {type} go to their handler")
        self._link.start()
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            entry = self._mailbox.take(
                lambda message: (type is None or message.type == type) and not self._handlers.take(message),
                timeout=None if deadline is None else deadline - time.monotonic(),
                others_take=self._handlers.take,
            )
            if entry is None:
                self._link.raise_if_over()
                raise TimeoutError(f"no message within {timeout} s")
            self._mailbox.done(entry)
            message = entry.message
            if not (message.requires_ack and self._link.deliveries.is_done(message)):
                return message
            message.ack()  # An older attempt of it was acked while this one waited.
