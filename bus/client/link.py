"""The client's connection, which comes back by itself: one thread that connects, reads, and connects again.

What it reads goes to the mailbox, receipts to the outbox, and what the client is only told to the callbacks. Writing is
anybody's: what matters stays in the outbox, or is remembered, until a connection has taken it.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Literal

import msgspec

from bus.client.deliveries import Deliveries
from bus.client.errors import Offline, refusal
from bus.client.mailbox import Mailbox
from bus.client.outbox import Outbox, Pending, closed_before_receipt, lost_before_receipt
from bus.client.received import Failed, Fate, Gap, Receipt, ServerFrame, Settler, message_of, receipt_of
from bus.client.reconnection import Backoff, Ending
from bus.client.rest import Rest
from bus.client.session import Session, SessionEnded
from bus.client.subscriptions import Subscriptions
from bus.errors import BusError, TooLarge, Unavailable

log = logging.getLogger("bus.client")

GRACE_SECONDS = 0.005
"""How long the reader, with receipts behind a full mailbox, waits for room before it asks for them over REST."""
SETTLE_AT_ONCE = 100
AGAIN_SECONDS = 1.0
IDLE_SECONDS = 60.0


class Callbacks(msgspec.Struct):
    """Whom to tell what is no message. Called on the reader's thread, where they must not wait; failures are logged."""

    gap: Callable[[Gap], object] | None = None
    dropped: Callable[[int], object] | None = None
    failed: Callable[[Failed], object] | None = None


class Link:
    """One client's connection. Thread-safe; the reader alone runs what stands under "the reader's thread".

    Building opens nothing. `start` sets the reader off, once; `close` ends it for good.
    """

    def __init__(
        self,
        client_id: str,
        rest: Rest,
        *,
        api_key: str | None,
        since: str | None,
        offline: Literal["queue", "raise"],
        outbox: Outbox,
        mailbox: Mailbox,
        settler: Settler,
    ) -> None:
        """`settler` carries what is said about the messages that come."""
        self.client_id = client_id
        self.callbacks = Callbacks()
        self.deliveries = Deliveries()
        self.subscriptions = Subscriptions()
        self._rest = rest
        self._api_key = api_key
        self._since = since
        self._offline = offline
        self._outbox = outbox
        self._mailbox = mailbox
        self._settler = settler
        # Held while frames are written: the order in the outbox is the order on the wire. Taken before `_state`.
        self._writing = threading.RLock()
        # Guards what follows, and tells who waits for it.
        self._state = threading.Condition()
        self._session: Session | None = None
        self._failure: BusError | None = None
        self._problem = "no attempt was made yet"
        self._closed = False
        self._reader: threading.Thread | None = None
        # Questions on the wire by ref. Guarded by `_writing`; as many as there are threads that ask.
        self._questions: dict[str, Future[ServerFrame]] = {}
        self._refs = itertools.count(1)
        # Set once: no more connections.
        self._ending = threading.Event()
        self._settle_again_at = 0.0

    # ---- life

    def start(self) -> None:
        """Set the reader off, if nobody did and it is not closed."""
        with self._state:
            if self._reader is None and not self._closed:
                self._reader = threading.Thread(target=self._run, name=f"bus-client-{self.client_id}", daemon=True)
                self._reader.start()

    def connect(self, timeout: float | None) -> None:
        """Wait for the confirmed connection. Raises Offline, or what made the connection fail for good."""
        self.start()
        with self._state:
            self._state.wait_for(lambda: self._session or self._failure or self._closed, timeout)
            self._raise_if_over()
            if self._session is None:
                raise Offline(f"Not connected within {timeout} s: {self._problem}.")

    def raise_if_over(self) -> None:
        """Raise what made the connection fail for good, or Offline after `close`."""
        with self._state:
            self._raise_if_over()

    @property
    def is_connected(self) -> bool:
        """True while a confirmed connection is open."""
        with self._state:
            return self._session is not None

    @property
    def has_failed(self) -> bool:
        """True once coming back is no use."""
        return self._failure is not None

    @property
    def problem(self) -> str:
        """Why there is no connection, without a full stop."""
        return self._problem

    def close(self, timeout: float) -> int:
        """Shake hands for closing, and join the reader for `timeout` seconds. Returns how many sends were given up."""
        with self._writing:
            with self._state:
                self._closed = True
                session = self._session
                self._state.notify_all()
            self._ending.set()
            given_up = self._outbox.fail_where(lambda _: True, closed_before_receipt)
            self._fail_questions(Offline("The client was closed."))
        if given_up:
            log.warning("Closed with %d sends unanswered", given_up, extra=self.about("given_up"))
        if session is not None:
            session.close()
        if self._reader is not None and not self.is_readers_thread:
            self._reader.join(timeout)
        return given_up

    @property
    def is_readers_thread(self) -> bool:
        """True on the thread that reads, where nothing can be waited for."""
        return threading.current_thread() is self._reader

    def about(self, action: str) -> dict[str, object]:
        """What a log line of this client carries."""
        return {"action": action, "client": self.client_id}

    # ---- writing

    def submit(self, pending: Pending) -> None:
        """Take in a send, and write it if there is a connection. Raises Offline, QueueFull."""
        self.start()
        with self._writing:
            with self._state:
                self._raise_if_over()
                session, problem = self._session, self._problem
            if session is None and self._offline == "raise":
                raise Offline(f"There is no connection, and nothing was sent: {problem}.")
            if session is None and pending.ephemeral:
                fates = tuple(Fate(name, "dropped") for name in pending.recipients)
                pending.future.set_result(Receipt(None, None, fates))
                return
            self._outbox.add(pending)
            if session is not None:
                pending.attempted = True
                _write(session, pending.frame())
        if self._mailbox.is_full:
            self._mailbox.wake()

    def say(self, frame: bytes) -> None:
        """Write what is said about a delivery; without a connection it is kept for the next one."""
        with self._writing:
            session = self._session
            if session is None:
                self.deliveries.keep(frame)
            else:
                _write(session, frame)

    def ask(self, frame_with: Callable[[str], bytes]) -> Future[ServerFrame] | None:
        """Write the frame that is made with a ref, and return the future of its answer; None without a connection."""
        with self._writing:
            session = self._session
            if session is None:
                return None
            ref = f"q{next(self._refs)}"
            future = self._questions[ref] = Future()
            _write(session, frame_with(ref))
        return future

    def _fail_questions(self, error: BusError) -> None:
        """Call with `_writing` held."""
        questions, self._questions = self._questions, {}
        for future in questions.values():
            future.set_exception(error)

    def _write_again(self) -> None:
        now = time.monotonic()
        with self._writing:
            session = self._session
            for pending in self._outbox.unsettled():
                if session is not None and pending.again_at is not None and pending.again_at <= now:
                    pending.again_at = None
                    _write(session, pending.frame())

    def _keep_leases(self) -> None:
        frames = self.deliveries.extensions()
        if not frames:
            return
        with self._writing:
            for frame in frames:
                if self._session is not None:
                    _write(self._session, frame)

    # ---- the reader's thread

    def _raise_if_over(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._closed:
            raise Offline("The client was closed.")

    def _run(self) -> None:
        try:
            failure = self._stay_connected()
        except Exception:
            log.exception("The client failed", extra=self.about("client_failed"))
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
            self._fail_questions(failure)

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
            log.warning("Not connected: %s; again in %.1f s", ending.reason, pause, extra=self.about("disconnected"))
            self._ending.wait(pause)
        return None

    def _live(self) -> Ending:
        """One connection, from its beginning to its end."""
        began: float | None = None
        asked: float | None = None
        since, topics = self._mailbox.received or self._since, self.subscriptions.topics
        url = self._rest.address.websocket(self.client_id, since, topics)
        try:
            session = Session.open(self._rest.address, url, self._api_key)
            began = time.monotonic()
            self._begin(session, topics)
            while True:
                frame = session.read(self._idle_seconds())
                self._keep_leases()
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
        now, again_at = time.monotonic(), self._outbox.next_again()
        due = min(self.deliveries.next_due, now + IDLE_SECONDS if again_at is None else again_at)
        return min(max(0.0, due - now), IDLE_SECONDS)

    def _begin(self, session: Session, topics: list[str]) -> None:
        confirmed = session.confirmed
        self._mailbox.stand_at(confirmed.cursor or self._mailbox.received)
        gap = confirmed.resumed.gap if confirmed.resumed else None
        if gap is not None:
            log.warning(gap.sentence(), extra=self.about("gap"))
            self._call_back(self.callbacks.gap, gap)
        with self._writing:
            for frame in [*self.deliveries.take_unsaid(), *self.subscriptions.frames(topics)]:
                session.write(frame)
            for pending in self._outbox.unsettled():
                pending.attempted, pending.again_at = True, None
                session.write(pending.frame())
            with self._state:
                self._session = session
                self._state.notify_all()
                over = self._closed
        log.info("Connected", extra=self.about("connected"))
        if over:
            session.close()

    def _disconnect(self, ending: Ending) -> None:
        with self._writing:
            with self._state:
                self._session, self._problem = None, ending.reason.rstrip(".")
            self._outbox.fail_where(lambda pending: pending.ephemeral or self._offline == "raise", lost_before_receipt)
            self._fail_questions(Offline(f"The connection was lost: {self._problem}."))
        if ending.close_code == 1009:
            self._outbox.fail_largest(TooLarge(f"The message is larger than the server takes: {ending.reason}"))

    def _take_in(self, frame: ServerFrame, epoch: str) -> None:
        match frame.type:
            case "message":
                self._take_in_message(frame, epoch)
            case "sent":
                self._outbox.settle(frame.ref, receipt_of(frame))
            case "subscribed":
                self._answer_question(frame, None)
            case "error":
                self._refused(frame)
            case "dropped":
                log.warning("%d ephemeral messages were dropped", frame.n, extra=self.about("dropped"))
                self._call_back(self.callbacks.dropped, frame.n)
            case "failed":
                about = {**self.about("message_failed"), "message_id": frame.message_id}
                log.warning("A message for %s can't be delivered: %s", frame.recipient, frame.reason, extra=about)
                self._call_back(self.callbacks.failed, Failed(frame.message_id or "", frame.recipient, frame.reason))

    def _take_in_message(self, frame: ServerFrame, epoch: str) -> None:
        try:
            message = message_of(bytes(frame.message))
        except msgspec.DecodeError as error:
            log.error("A message has not the promised form: %s", error, extra=self.about("bad_message"))
            return
        if self.deliveries.is_repeat(message):
            answer = self.deliveries.answer_again(message)
            if answer is not None:
                self.say(answer)
            return
        message.bind(self._settler)
        while not self._mailbox.put(message, epoch, timeout=AGAIN_SECONDS, unless=self._must_settle):
            self._keep_leases()
            if self._mailbox.put(message, epoch, timeout=GRACE_SECONDS):
                return
            if self._must_settle():
                self._settle_over_rest()

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
            log.info("Receipts could not be had over REST: %s", error, extra=self.about("settle_failed"))
            self._settle_again_at = time.monotonic() + AGAIN_SECONDS
            return
        for pending, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Receipt):
                self._outbox.settle(pending.ref, outcome)
            elif not isinstance(outcome, Unavailable):
                self._outbox.fail(pending.ref, outcome)

    def _refused(self, frame: ServerFrame) -> None:
        after = frame.retry_after_seconds
        error = refusal(frame.code, frame.error, field=frame.field, retry_after_seconds=after)
        if self._answer_question(frame, error):
            return
        if isinstance(error, Unavailable) and self._offline == "queue":
            if self._outbox.postpone(frame.ref, time.monotonic() + (AGAIN_SECONDS if after is None else after)):
                return
        elif self._outbox.fail(frame.ref, error):
            return
        if frame.ref is not None or frame.code != "too_large" or not self._outbox.fail_largest(error):
            log.warning("The server refused a frame: %s", frame.error, extra=self.about("refused"))

    def _answer_question(self, frame: ServerFrame, error: BusError | None) -> bool:
        with self._writing:
            future = self._questions.pop(frame.ref, None) if isinstance(frame.ref, str) else None
        if future is None:
            return False
        if error is None:
            future.set_result(frame)
        else:
            future.set_exception(error)
        return True

    def _call_back(self, function: Callable[[Any], object] | None, value: object) -> None:
        if function is None:
            return
        try:
            function(value)
        except Exception:
            log.exception("A callback failed", extra=self.about("callback_failed"))


def _write(session: Session, text: bytes) -> None:
    """Write, and leave it to the reader to notice that the connection is gone: what matters stays in the outbox."""
    try:
        session.write(text)
    except SessionEnded as end:
        log.debug("A write failed: %s", end)
