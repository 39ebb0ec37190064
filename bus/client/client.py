"""`Client`: one named party of the bus, on one connection that comes back by itself.

A reader thread holds the connection: it connects, reads, and connects again, in one loop. What it reads waits in a
bounded mailbox for `receive` or for the handlers, which run one after another on a thread of their own and so may
send and wait for receipts. Sends stay in the outbox until the server has answered them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Literal, Self, Unpack, overload

import msgspec

from bus.client.errors import Offline, refusal
from bus.client.handlers import Handler, Handlers
from bus.client.mailbox import Mailbox, Seen
from bus.client.outbox import Outbox, Pending, SendOptions, closed_before_receipt, lost_before_receipt, too_late
from bus.client.received import Fate, Gap, Message, Receipt, ServerFrame, message_of, receipt_of
from bus.client.reconnection import Backoff, Ending
from bus.client.rest import Rest
from bus.client.session import Session, SessionEnded
from bus.errors import BusError, TooLarge, Unavailable
from bus.message import Names

log = logging.getLogger("bus.client")

GRACE_SECONDS = 0.005
"""How long the reader, with receipts behind a full mailbox, waits for room before it asks for them over REST."""
SETTLE_AT_ONCE = 100
AGAIN_SECONDS = 1.0
IDLE_SECONDS = 60.0


class Client:
    """A client of the bus. Every method is thread-safe.

    Building one opens nothing. `connect`, or the first send or receive, starts the reader; `close` ends it, and a
    closed client stays closed. As a context manager it connects on entering and closes on leaving.

    What comes is held in memory up to `max_received` messages; then reading stops until some are taken, and the
    server keeps the rest. A message whose type has a handler goes to the handlers, all others to `receive`.

    The bus counts a plain message as received when this process has read it from the socket, which may be before it
    was taken out here. A program that must not lose what it had read when it crashed keeps `cursor` itself, and
    gives it as `since`.
    """

    def __init__(  # noqa: PLR0913 - one keyword for each thing that can be chosen
        self,
        client_id: str,
        url: str = "http://127.0.0.1:5001",
        *,
        api_key: str | None = None,
        since: str | None = None,
        offline: Literal["queue", "raise"] = "queue",
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
        `max_queued`: sends without a receipt; one more raises QueueFull.
        `on_gap(gap)`: messages were missed that the server no longer has. `on_dropped(n)`: so many ephemeral messages
        were left out because this client was slow. Both are logged anyway; they run on the reader's thread and must
        not wait.

        Raises Malformed for a name or URL that can't be one.
        """
        self.client_id = Names().check_client(client_id, "client_id")
        self._rest = Rest(url, api_key=api_key)
        self._api_key = api_key
        self._since = since
        self._offline = offline
        self._on_gap = on_gap
        self._on_dropped = on_dropped
        self._outbox = Outbox(max_queued)
        self._mailbox = Mailbox(max_received)
        self._seen = Seen()
        self._handlers = Handlers(client_id, self._mailbox, self._seen, self.ack)
        # Held while frames are written: the order in the outbox is the order on the wire. Taken before `_state`.
        self._writing = threading.RLock()
        # Guards what follows, and tells who waits for it.
        self._state = threading.Condition()
        self._session: Session | None = None
        self._failure: BusError | None = None
        self._problem = "no attempt was made yet"
        self._closed = False
        self._reader: threading.Thread | None = None
        # Set once: no more connections.
        self._ending = threading.Event()
        self._settle_again_at = 0.0

    # ---- life

    def connect(self, timeout: float | None = 10.0) -> None:
        """Wait until the server has confirmed the connection, at most `timeout` seconds (None: for ever).

        Raises Offline when that takes longer (the client goes on trying until it is closed); Unauthenticated,
        Forbidden or Malformed when trying again is no use.
        """
        self._start()
        with self._state:
            self._state.wait_for(lambda: self._session or self._failure or self._closed, timeout)
            self._raise_if_over()
            if self._session is None:
                raise Offline(f"Not connected within {timeout} s: {self._problem}.")

    @property
    def is_connected(self) -> bool:
        """True while a confirmed connection is open."""
        with self._state:
            return self._session is not None

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
        """End: let the handler that runs finish, wait for receipts, shake hands for closing; do not come back.

        `timeout` bounds the first two, in seconds. Returns how many sends were given up; their futures raise Offline.
        What was received and not taken can still be received, and lies behind `cursor`. Closing twice is fine.
        """
        deadline = time.monotonic() + timeout
        self._mailbox.close()
        self._handlers.join(timeout)
        me = threading.current_thread()
        if self._reader is not None and self._reader is not me and self._failure is None:
            self.flush(max(0.0, deadline - time.monotonic()))
        with self._writing:
            with self._state:
                self._closed = True
                session = self._session
                self._state.notify_all()
            self._ending.set()
            given_up = self._outbox.fail_where(lambda _: True, closed_before_receipt)
        if given_up:
            log.warning("Closed with %d sends unanswered", given_up, extra=self._about("given_up"))
        if session is not None:
            session.close()
        if self._reader is not None and self._reader is not me:
            self._reader.join(timeout)
        return given_up

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

        `payload` is anything that msgspec encodes as JSON (NaN becomes null). A durable send carries an
        idempotency key, one of its own unless `idempotency_key` is given, so that it is stored once however often the
        connection breaks. An ephemeral one is not repeated: offline, its fate is `dropped`.

        Raises Offline (see `offline`), QueueFull, ReceiptTimeout, what the server refused (InboxFull, TooLarge,
        Malformed, …), TypeError for a payload that is no JSON, RuntimeError in a callback of the reader's thread.
        """
        if threading.current_thread() is self._reader:
            raise RuntimeError("send() would wait for its own thread here; use send_nowait()")
        pending = self._submit(to, payload, options)
        try:
            return pending.future.result(timeout)
        except TimeoutError:
            self._outbox.withdraw(pending)
            if pending.future.done():
                return pending.future.result()
            raise too_late(pending, timeout, self._problem) from None

    def send_nowait(self, to: str | list[str], payload: Any, **options: Unpack[SendOptions]) -> Future[Receipt]:
        """Send a message and return at once; the future brings the receipt, or raises as `send` does.

        The way to send much: sends of one client are stored in the order of these calls. The future can't be
        cancelled, and its callbacks run on the reader's thread.
        """
        return self._submit(to, payload, options).future

    def ack(self, message: Message) -> None:
        """Tell the bus that a message with `requires_ack` was dealt with; it does not come again. Others need none.

        Offline it is remembered: the message comes again on reconnecting, and is acked then, not received twice.
        """
        if not message.requires_ack:
            return
        self._seen.mark_acked(message)
        frame: dict[str, object] = {"type": "ack", "message_id": message.id}
        if message.attempt > 1:
            frame["attempt"] = message.attempt
        with self._writing:
            session = self._session
            if session is not None:
                _write(session, msgspec.json.encode(frame))

    # ---- receiving

    @overload
    def on(self, type: str | None, handler: Handler) -> Handler: ...
    @overload
    def on(self, type: str | None = None) -> Callable[[Handler], Handler]: ...

    def on(self, type: str | None = None, handler: Handler | None = None) -> Handler | Callable[[Handler], Handler]:
        """Have `handler(message)` called for each message of a type (None: of every type). Also a decorator.

        Handlers run one at a time, in order, on one thread; first those of the type, then those of all. When all
        have returned, a message that needs an ack is acked. When one raises, that is logged, there is no ack, and the
        bus delivers the message again when its lease has run out; a plain message does not come again.
        """
        if handler is None:
            return lambda function: self.on(type, function)
        self._handlers.add(type, handler)
        return handler

    def receive(self, timeout: float | None = None, type: str | None = None) -> Message:
        """Return the next message, or the next of a type; the others stay where they are, in order.

        Waits up to `timeout` seconds (None: for ever). A message that needs an ack wants `ack` afterwards.

        Raises TimeoutError; BacklogFull when others fill the local queue so that none of this type can come; Offline
        when the client was closed and nothing is left; what made the connection fail for good; ValueError for a
        type that has a handler.
        """
        if type is not None and self._handlers.of(type):
            raise ValueError(f"messages of type {type} go to their handler")
        self._start()
        entry = self._mailbox.take(
            lambda message: (type is None or message.type == type) and not self._handlers.take(message),
            timeout=timeout,
            others_take=self._handlers.take,
        )
        if entry is None:
            with self._state:
                self._raise_if_over()
            raise TimeoutError(f"no message within {timeout} s")
        self._mailbox.done(entry)
        return entry.message

    def __iter__(self) -> Iterator[Message]:
        """The messages as they come, until the client is closed. Raises what made the connection fail for good."""
        while True:
            try:
                message = self.receive()
            except Offline:
                if self._failure is None:
                    return
                raise
            yield message

    # ---- inside: sending

    def _submit(self, to: str | list[str], payload: Any, options: SendOptions) -> Pending:
        pending = self._outbox.draft(to, payload, options)
        self._start()
        with self._writing:
            with self._state:
                self._raise_if_over()
                session, problem = self._session, self._problem
            if session is None and self._offline == "raise":
                raise Offline(f"There is no connection, and nothing was sent: {problem}.")
            if session is None and pending.ephemeral:
                names = [to] if isinstance(to, str) else to
                pending.future.set_result(Receipt(None, None, tuple(Fate(name, "dropped") for name in names)))
                return pending
            self._outbox.add(pending)
            if session is not None:
                pending.attempted = True
                _write(session, pending.frame())
        if self._mailbox.is_full:
            self._mailbox.wake()
        return pending

    def _write_again(self) -> None:
        now = time.monotonic()
        with self._writing:
            session = self._session
            for pending in self._outbox.unsettled():
                if session is not None and pending.again_at is not None and pending.again_at <= now:
                    pending.again_at = None
                    _write(session, pending.frame())

    def _must_settle(self) -> bool:
        return bool(self._outbox.awaiting_receipts()) and time.monotonic() >= self._settle_again_at

    def _settle_over_rest(self) -> None:
        """Ask REST for receipts: they are in the socket, behind messages that wait for the application.

        An application that sends on each message it handles would wait for ever otherwise. The keys are those that
        were sent over the socket, so the answer is that of the first, whichever arrives first.
        """
        batch = self._outbox.awaiting_receipts()[:SETTLE_AT_ONCE]
        try:
            outcomes = self._rest.send_batch([pending.body(self.client_id) for pending in batch])
        except BusError as error:
            log.info("Receipts could not be had over REST: %s", error, extra=self._about("settle_failed"))
            self._settle_again_at = time.monotonic() + AGAIN_SECONDS
            return
        for pending, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Receipt):
                self._outbox.settle(pending.ref, outcome)
            elif not isinstance(outcome, Unavailable):
                self._outbox.fail(pending.ref, outcome)

    # ---- inside: the reader's thread

    def _start(self) -> None:
        with self._state:
            if self._reader is None and not self._closed:
                self._reader = threading.Thread(target=self._run, name=f"bus-client-{self.client_id}", daemon=True)
                self._reader.start()

    def _raise_if_over(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._closed:
            raise Offline("The client was closed.")

    def _about(self, action: str) -> dict[str, object]:
        return {"action": action, "client": self.client_id}

    def _run(self) -> None:
        try:
            failure = self._stay_connected()
        except Exception:
            log.exception("The client failed", extra=self._about("client_failed"))
            if self._session is not None:
                self._session.close(1011)
            failure = BusError("The client failed by a fault of its own; its log has the details.")
        if failure is None:
            return
        self._mailbox.close()
        with self._writing:
            with self._state:
                self._failure = failure
                self._state.notify_all()
            self._outbox.fail_where(lambda _: True, lambda _: failure)

    def _stay_connected(self) -> BusError | None:
        """Connect, read, and come back until the client is closed (None), or until that is no use (why)."""
        backoff = Backoff()
        while not self._ending.is_set():
            ending = self._live()
            if self._ending.is_set():
                break
            failure = ending.refusal()
            if failure is not None:
                return failure
            pause = backoff.pause(ending)
            log.warning("Not connected: %s; again in %.1f s", ending.reason, pause, extra=self._about("disconnected"))
            self._ending.wait(pause)
        return None

    def _live(self) -> Ending:
        """One connection, from its beginning to its end."""
        began: float | None = None
        asked: float | None = None
        try:
            session = Session.open(
                self._rest.address, self.client_id, self._mailbox.received or self._since, self._api_key
            )
            began = time.monotonic()
            self._begin(session)
            while True:
                frame = session.read(self._idle_seconds())
                if frame is None:
                    self._write_again()
                elif frame.type == "goaway":
                    asked = (frame.reconnect_after_ms or 0.0) / 1000
                else:
                    self._take_in(frame, session.confirmed.epoch)
        except SessionEnded as end:
            ending = end.ending
        lasted = time.monotonic() - began if began is not None else 0.0
        after = ending.after_seconds if asked is None else asked
        self._disconnect(ending)
        return msgspec.structs.replace(ending, lasted_seconds=lasted, after_seconds=after)

    def _idle_seconds(self) -> float:
        again_at = self._outbox.next_again()
        return IDLE_SECONDS if again_at is None else max(0.0, again_at - time.monotonic())

    def _begin(self, session: Session) -> None:
        confirmed = session.confirmed
        self._mailbox.stand_at(confirmed.cursor or self._mailbox.received)
        gap = confirmed.resumed.gap if confirmed.resumed else None
        if gap is not None:
            log.warning(gap.sentence(), extra=self._about("gap"))
            self._call_back(self._on_gap, gap)
        with self._writing:
            for pending in self._outbox.unsettled():
                pending.attempted, pending.again_at = True, None
                session.write(pending.frame())
            with self._state:
                self._session = session
                self._state.notify_all()
                over = self._closed
        log.info("Connected", extra=self._about("connected"))
        if over:
            session.close()

    def _disconnect(self, ending: Ending) -> None:
        with self._writing:
            with self._state:
                self._session, self._problem = None, ending.reason.rstrip(".")
            self._outbox.fail_where(lambda pending: pending.ephemeral or self._offline == "raise", lost_before_receipt)
        if ending.close_code == 1009:
            self._outbox.fail_largest(TooLarge(f"The message is larger than the server takes: {ending.reason}"))

    def _take_in(self, frame: ServerFrame, epoch: str) -> None:
        match frame.type:
            case "message":
                self._take_in_message(frame, epoch)
            case "sent":
                self._outbox.settle(frame.ref, receipt_of(frame))
            case "error":
                self._refused(frame)
            case "dropped":
                log.warning("%d ephemeral messages were dropped", frame.n, extra=self._about("dropped"))
                self._call_back(self._on_dropped, frame.n)
            case "failed":
                about = {**self._about("message_failed"), "message_id": frame.message_id}
                log.warning("A message that was sent could not be delivered: %s", frame.reason, extra=about)

    def _take_in_message(self, frame: ServerFrame, epoch: str) -> None:
        try:
            message = message_of(bytes(frame.message))
        except msgspec.DecodeError as error:
            log.error("A message has not the promised form: %s", error, extra=self._about("bad_message"))
            return
        if self._seen.is_repeat(message):
            if self._seen.was_acked(message):
                self.ack(message)
            return
        while not self._mailbox.put(message, epoch, timeout=AGAIN_SECONDS, unless=self._must_settle):
            if self._mailbox.put(message, epoch, timeout=GRACE_SECONDS):
                return
            if self._must_settle():
                self._settle_over_rest()

    def _refused(self, frame: ServerFrame) -> None:
        after = frame.retry_after_seconds
        error = refusal(frame.code, frame.error, field=frame.field, retry_after_seconds=after)
        if isinstance(error, Unavailable) and self._offline == "queue":
            if self._outbox.postpone(frame.ref, time.monotonic() + (AGAIN_SECONDS if after is None else after)):
                return
        elif self._outbox.fail(frame.ref, error):
            return
        if frame.ref is not None or frame.code != "too_large" or not self._outbox.fail_largest(error):
            log.warning("The server refused a frame: %s", frame.error, extra=self._about("refused"))

    def _call_back(self, function: Callable[[Any], object] | None, value: object) -> None:
        if function is None:
            return
        try:
            function(value)
        except Exception:
            log.exception("A callback failed", extra=self._about("callback_failed"))


def _write(session: Session, text: bytes) -> None:
    """Write, and leave it to the reader to notice that the connection is gone: what matters stays in the outbox."""
    try:
        session.write(text)
    except SessionEnded as end:
        log.debug("A write failed: %s", end)
