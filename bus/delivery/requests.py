"""Request and reply: a question is a message that the store remembers until a day later, and its replies with it.

A reply is a message to the asker with the question's correlation id; it counts from whom was asked (from anybody, when a
topic, a queue or all were asked). The reply is noted with its own commit, so an answer can be fetched later, from any
worker, after any restart.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import gevent
import msgspec

from bus.errors import BusError, Conflict, Malformed, NotFound
from bus.hub import Hub
from bus.message import Epochs, Message, text_of
from bus.protocol import Draft, encode
from bus.receipts import Receipt, deliver_us
from bus.storage import SEQ, Reader
from bus.waiters import answer_to

MAX_REPLIES_BYTES = 4 * 1024 * 1024
"""Replies of one answer; those beyond stand in the asker's inbox."""

_ASK = "INSERT INTO requests VALUES (?, ?, ?, ?, ?)"


class Answer(msgspec.Struct):
    """How a question stands. `missing`: who was asked by name and has not replied."""

    request_id: str
    asker: str
    correlation_id: str
    replies: list[Message]
    missing: list[str]
    by_name: bool

    @property
    def complete(self) -> bool:
        """True when everybody who was asked by name has replied, or, of others, anybody."""
        return not self.missing if self.by_name else bool(self.replies)

    @property
    def status(self) -> str:
        """answered, partial or pending."""
        return "answered" if self.complete else "partial" if self.replies else "pending"

    def text(self, epochs: Epochs) -> bytes:
        """The JSON object that is answered."""
        replies = [text_of(message, epochs) for message in self.replies]
        first = b',"reply":%b' % replies[0] if replies else b""
        return b'{"status":"%b","request_id":"%b","correlation_id":%b,"missing":%b%b,"replies":[%b]}' % (
            self.status.encode(),
            self.request_id.encode(),
            encode(self.correlation_id),
            encode(self.missing),
            first,
            b",".join(replies),
        )


def new_correlation(key: str | None = None) -> str:
    """A correlation id for who brings none. Of an idempotency key it is always the same: a repeat is the same send."""
    name = secrets.token_hex(12) if key is None else hashlib.blake2b(key.encode(), digest_size=12).hexdigest()
    return f"req-{name}"


class Asker(Protocol):
    """What of the bus a request needs."""

    @property
    def hub(self) -> Hub: ...

    @property
    def draining(self) -> bool: ...

    def send(self, drafts: Sequence[Draft]) -> list[Receipt | BusError]:
        """Publish and wait for the receipts."""
        ...

    def is_live(self, name: str) -> bool: ...

    def audience_size(self, message: Message) -> int:
        """How many hear a message that names nobody."""
        ...


class Requests:
    """In greenlets of the event loop's thread. `read` is the bus's, `clock()` in microseconds."""

    def __init__(self, bus: Asker, read: Callable[[Any], Any], clock: Callable[[], int]) -> None:
        self._bus = bus
        self._hub = bus.hub
        self._read = read
        self._clock = clock

    def _is_anybody_there(self, message: Message) -> bool:
        if message.names:
            return any(map(self._bus.is_live, message.names))
        return self._bus.audience_size(message) > 0

    def ask(self, draft: Draft, wait: float, *, require_online: bool) -> Answer:
        """Send a question and wait up to `wait` seconds for its answer. Raises BusError: then it was not sent."""
        message = draft.message
        terms = message.terms
        assert terms is not None
        assert terms.correlation_id is not None
        if draft.ephemeral or deliver_us(message) is not None:
            field = "ephemeral" if draft.ephemeral else "delay"
            raise Malformed(
                f"A request is stored, and sent at once: `{field}` has no place in it.", code="bad_field", field=field
            )
        if require_online and not self._is_anybody_there(message):
            raise Conflict(
                "Nobody who was asked is connected, so nothing was sent; ask without `require_online` to have it wait in the"
                " inbox.",
                code="recipient_offline",
                field="to",
            )
        asked = encode(message.names) if message.names else None
        draft.rows = [(_ASK, (SEQ, message.sender, terms.correlation_id, asked, self._clock()))]
        event = self._hub.waiter(answer_to(terms.correlation_id))
        try:
            (receipt,) = self._bus.send([draft])
            if isinstance(receipt, BusError):
                try:
                    raise receipt
                finally:
                    del receipt  # it holds this frame, and the frame would hold it: a ring that keeps the body
            return self._wait(receipt.message_id.decode(), event, wait)
        finally:
            self._hub.forget(answer_to(terms.correlation_id), event)

    def look(self, request_id: str, wait: float) -> Answer:
        """How a question stands; waits up to `wait` seconds for it to be complete. Raises NotFound."""
        answer = self._state(request_id)
        if answer.complete or not wait:
            return answer
        key = answer_to(answer.correlation_id)
        event = self._hub.waiter(key)
        try:
            return self._wait(request_id, event, wait)
        finally:
            self._hub.forget(key, event)

    def _wait(self, request_id: str, event: Any, wait: float) -> Answer:
        timeout = gevent.Timeout.start_new(wait)
        answer: Answer | None = None
        try:
            while True:
                event.clear()
                answer = self._state(request_id)
                if answer.complete or self._bus.draining:
                    return answer
                event.wait()
        except gevent.Timeout as expired:
            if expired is not timeout:
                raise
            return answer if answer is not None else self._state(request_id)
        finally:
            timeout.close()

    def _state(self, request_id: str) -> Answer:
        seq = self._hub.epochs.seq_of(request_id)

        def job(reader: Reader) -> Answer | None:
            row = reader.execute("SELECT asker, correlation_id, asked FROM requests WHERE seq = ?", (seq,))
            if not row:
                return None
            asker, correlation_id, asked = row[0]
            names: list[str] = msgspec.json.decode(asked) if asked is not None else []
            found = reader.execute("SELECT seq, sender FROM replies WHERE request = ? ORDER BY seq LIMIT 1000", (seq,))
            replied = {sender for _, sender in found}
            replies = reader.messages([at for at, _ in found], MAX_REPLIES_BYTES)
            missing = [name for name in names if name not in replied]
            return Answer(request_id, asker, correlation_id, replies, missing, bool(names))

        answer = self._read(job)
        if answer is None:
            raise NotFound("There is no request with this id; they are kept for a day.", code="unknown_request")
        return answer  # type: ignore[no-any-return]
