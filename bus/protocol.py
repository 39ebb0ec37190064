"""What travels: frames and bodies to objects and back, with validation. No I/O; server and client share it.

One decode step (msgspec) checks the form; `Draft` is what a good `send` becomes. The payload stays the bytes it
came as: it is never altered, escaped or filtered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import msgspec

from bus.errors import BusError, Malformed
from bus.message import (
    ACK_WAIT_US,
    NORMAL,
    PRIORITIES,
    REQUIRES_ACK,
    Kind,
    Message,
    Names,
    Terms,
    check_depth,
    parse_address,
    parse_time,
)
from bus.trace_context import without_trace

_PRIORITY_NAMES = {number: name for name, number in PRIORITIES.items()}
MAX_KEY_LENGTH = 255
MAX_HEADERS = 64
MAX_DELAY_SECONDS = 366 * 86400.0
MAX_TTL_SECONDS = 3660 * 86400.0
MIN_ACK_WAIT_SECONDS, MAX_ACK_WAIT_SECONDS = 0.1, 86400.0
_EMPTY_PAYLOAD = msgspec.Raw(b"{}")

T = TypeVar("T")


class Content(msgspec.Struct, kw_only=True):
    """What a send may say, over whatever transport."""

    to: str | list[str] | None = None
    payload: msgspec.Raw = msgspec.field(default_factory=lambda: _EMPTY_PAYLOAD)  # a plain default is in no schema
    require_ack: bool = False
    ephemeral: bool = False
    priority: str | int | None = None
    ttl: float | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    thread_id: str | None = None
    headers: dict[str, str] | None = None
    idempotency_key: str | None = None
    deliver_at: str | None = None
    delay: float | None = None
    ack_wait: float | None = None
    on_behalf_of: str | None = None


class Send(Content, kw_only=True):
    """A send over REST, alone or in a batch."""

    sender: str | None = msgspec.field(default=None, name="from")
    type: str = "message"


class Frame(Content, kw_only=True):
    """Any inbound WebSocket frame: a flat union, since one decode is cheaper than choosing first."""

    type: str = ""
    msg_type: str = "message"
    ref: str | int | None = None
    message_id: str | None = None
    attempt: int | None = None
    reason: str | None = None
    topics: list[str] | None = None
    queues: list[str] | None = None
    max_in_flight: int | None = None
    wait: float | None = None
    require_online: bool = False
    token: str | None = None


class Plain(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, gc=False):
    """The most frequent sends: those that say nothing beyond this. It takes less time to read than a Content."""

    to: str
    payload: msgspec.Raw = msgspec.field(default_factory=lambda: _EMPTY_PAYLOAD)
    ephemeral: bool = False


class PlainFrame(Plain, kw_only=True):
    """A plain send over a WebSocket. Anything else is a Frame."""

    type: Literal["send"]
    msg_type: str = "message"
    ref: str | int | None = None


class PlainPost(Plain, kw_only=True):
    """A plain send over REST. Anything else is a Send."""

    sender: str = msgspec.field(name="from")
    type: str = "message"


class Verdict(msgspec.Struct, kw_only=True):
    """What a recipient says of a message, over REST. Durations in seconds: `delay` of a nack, `ack_wait` of a progress."""

    client: str | None = None
    attempt: int | None = None
    delay: float | None = None
    reason: str | None = None
    ack_wait: float | None = None


class Settle(msgspec.Struct):
    """A checked verdict. `verb`: ack, nack, progress, release, reject. Durations in microseconds."""

    verb: str
    message_id: str
    client: str
    attempt: int | None = None
    delay_us: int | None = None
    ack_wait_us: int | None = None
    reason: str | None = None


class Question(Send, kw_only=True):
    """A request over REST: a send that waits up to `wait` seconds for its answer."""

    wait: float | None = None
    require_online: bool = False


class PlainBatch(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a batch of plain sends alone, as nearly all batches are."""

    messages: list[PlainPost]
    atomic: bool = False


class Batch(msgspec.Struct):
    """The body of a batch: each item is decoded by itself, so that one bad one does not spoil the rest."""

    messages: list[msgspec.Raw]
    atomic: bool = False


class Draft(msgspec.Struct, gc=False):
    """A send that was found good: the message, and the key under which it is done at most once.

    `rows` are statements for its transaction; only those of a message with terms or flags are looked at.
    """

    message: Message
    ephemeral: bool = False
    key: str | None = None
    rows: Sequence[tuple[str, Sequence[Any]]] = ()


_decode_plain_frame = msgspec.json.Decoder(PlainFrame).decode
_decode_plain_post = msgspec.json.Decoder(PlainPost).decode
_decode_plain_batch = msgspec.json.Decoder(PlainBatch).decode
decode_send = msgspec.json.Decoder(Send).decode
decode_frame = msgspec.json.Decoder(Frame).decode
decode_verdict = msgspec.json.Decoder(Verdict).decode
decode_question = msgspec.json.Decoder(Question).decode
decode_batch = msgspec.json.Decoder(Batch).decode
encode = msgspec.json.encode


def read(decode: Any, data: bytes, what: str) -> Any:
    """Decode JSON `data` with one of the decoders above; every failure is Malformed with a sentence and a field."""
    try:
        if not data.isascii():
            data.decode("utf-8")
        return decode(data)
    except UnicodeDecodeError:
        raise Malformed(f"The {what} is not UTF-8.", code="bad_utf8") from None
    except RecursionError:
        raise Malformed(f"The {what} is nested too deeply; flatten it.", code="too_deep") from None
    except msgspec.ValidationError as error:
        raise _explain(error, what) from None
    except msgspec.DecodeError as error:
        problem = str(error).removeprefix("JSON is malformed: ")
        raise Malformed(f"The {what} is not JSON: {_lower(problem)}.", code="bad_json") from None


def plain_frame(text: bytes) -> PlainFrame | None:
    """A frame as a plain send. None when it is something else, or nothing good: `read` says which."""
    return _plain(_decode_plain_frame, text) if b'"send"' in text else None


def plain_post(body: bytes) -> PlainPost | None:
    """As `plain_frame`, of the body of a send over REST."""
    return _plain(_decode_plain_post, body)


def plain_batch(body: bytes) -> PlainBatch | None:
    """As `plain_frame`, of the body of a batch."""
    return _plain(_decode_plain_batch, body)


def _plain(decode: Callable[[bytes], T], text: bytes) -> T | None:
    try:
        if not text.isascii():
            text.decode("utf-8")
        return decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _lower(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:].rstrip(".")


def _explain(error: msgspec.ValidationError, what: str) -> Malformed:
    text = str(error)
    problem, _, path = text.partition(" - at `")
    field = path.rstrip("`").removeprefix("$").lstrip(".").split(".")[0].split("[")[0]
    if "unknown field" in problem:
        unknown = problem.split("`")[1]
        return Malformed(f"`{unknown}` is no field of this.", code="unknown_field", field=unknown)
    if not field and "missing required field" in problem:
        missing = problem.split("`")[1]
        return Malformed(f"`{missing}` is missing.", code="missing_field", field=missing)
    if not field:
        return Malformed(f"The {what} must be a JSON object.", code="not_an_object")
    return Malformed(f"`{field}` is wrong: {_lower(problem).replace('`', '')}.", code="bad_field", field=field)


# ---- a send becomes a draft


def draft_of(send: Send | Frame, sender: str, type_: str, *, names: Names, stamp_us: int) -> Draft:
    """Check what the form can't say, and build the message. Raises Malformed.

    `sender` is a checked name; `stamp_us` the receive time. Runs on the event loop and does no I/O.
    """
    if send.to is None:
        raise Malformed("`to` is missing; say who the message is for.", code="missing_field", field="to")
    kind, address, recipients = parse_address(send.to, names)
    if type_ != "message":
        names.check(type_, "msg_type" if isinstance(send, Frame) else "type")
    payload = bytes(send.payload)
    check_depth(payload)
    flags, extras, terms = 0, b"", None
    if kind >= Kind.TOPIC or _says_more(send):
        _check_agreement(send, kind)
        flags = REQUIRES_ACK if send.require_ack or kind is Kind.QUEUE else 0
        terms = _terms(send, stamp_us)
        extras = _extras(send, terms)
    message = Message(kind, address, recipients, sender, type_, payload, stamp_us, flags, None, extras, terms=terms)
    return Draft(message, send.ephemeral, send.idempotency_key)


def plain_draft(send: Plain, sender: str, type_: str, *, names: Names, stamp_us: int) -> Draft | None:
    """As `draft_of`, of a plain send. None when its address asks for more: a topic, a queue."""
    message = plain_message(send, sender, type_, names, stamp_us)
    return None if message is None else Draft(message, send.ephemeral)


def plain_message(send: Plain, sender: str, type_: str, names: Names, stamp_us: int) -> Message | None:
    """As `plain_draft`: the message alone."""
    kind, address, recipients = names.address(send.to)
    if not recipients and kind is not Kind.ALL:
        return None
    if type_ != "message":
        names.check(type_, "type" if isinstance(send, PlainPost) else "msg_type")
    payload = bytes(send.payload)
    check_depth(payload)
    return Message(kind, address, recipients, sender, type_, payload, stamp_us)


def _says_more(send: Content) -> bool:
    """True when any field beyond address, type and payload is set: most sends have none."""
    return (
        send.require_ack
        or send.ephemeral
        or send.priority is not None
        or send.ttl is not None
        or send.correlation_id is not None
        or send.reply_to is not None
        or send.thread_id is not None
        or send.headers is not None
        or send.idempotency_key is not None
        or send.deliver_at is not None
        or send.delay is not None
        or send.ack_wait is not None
        or send.on_behalf_of is not None
    )


def _check_agreement(send: Content, kind: Kind) -> None:
    """Refuse fields that contradict one another."""
    key = send.idempotency_key
    if key is not None and not 1 <= len(key) <= MAX_KEY_LENGTH:
        raise _wrong("idempotency_key", f"must be 1 to {MAX_KEY_LENGTH} characters")
    if send.require_ack and kind in (Kind.ALL, Kind.TOPIC):
        raise Malformed(
            "`require_ack` goes with named clients, lists of them and queues; everybody can't owe an ack.",
            code="ack_needs_names",
            field="require_ack",
        )
    if send.delay is not None and send.deliver_at is not None:
        raise _wrong("deliver_at", "and `delay` say the same thing; give one of them")
    if not send.ephemeral:
        return
    for field, given in (
        ("require_ack", send.require_ack),
        ("to", kind is Kind.QUEUE),
        ("delay", send.delay is not None),
        ("deliver_at", send.deliver_at is not None),
        ("idempotency_key", key is not None),
    ):
        if given:
            raise Malformed(
                f"An ephemeral message skips the log, so `{field}` can't be kept; drop one of the two.",
                code="ephemeral_conflict",
                field=field,
            )


def _terms(send: Content, stamp_us: int) -> Terms:
    deliver_us = None
    if send.deliver_at is not None:
        deliver_us = parse_time(send.deliver_at, "deliver_at")
        if deliver_us - stamp_us > MAX_DELAY_SECONDS * 1e6:
            raise _wrong("deliver_at", f"may be at most {MAX_DELAY_SECONDS / 86400:.0f} days from now")
    return Terms(
        NORMAL if send.priority is None else priority_of(send.priority),
        ACK_WAIT_US if send.ack_wait is None else ack_wait_of(send.ack_wait),
        None if send.ttl is None else _within("ttl", send.ttl, 0.001, MAX_TTL_SECONDS),
        None if send.delay is None else _within("delay", send.delay, 0.0, MAX_DELAY_SECONDS),
        deliver_us,
        send.correlation_id,
        send.thread_id,
    )


def ack_wait_of(seconds: float) -> int:
    """A lease's length in microseconds. Raises Malformed."""
    return _within("ack_wait", seconds, MIN_ACK_WAIT_SECONDS, MAX_ACK_WAIT_SECONDS)


MAX_REASON_LENGTH = 1000
DEFAULT_REQUEST_WAIT, MAX_WAIT_SECONDS = 25.0, 50.0


def settle_of(verb: str, said: Verdict | Frame, message_id: str, client: str) -> Settle:
    """What a recipient says of a message, checked. Raises Malformed."""
    if said.attempt is not None and said.attempt < 1:
        raise _wrong("attempt", "counts from 1")
    if said.reason is not None and len(said.reason) > MAX_REASON_LENGTH:
        raise _wrong("reason", f"may have at most {MAX_REASON_LENGTH} characters")
    return Settle(
        verb,
        message_id,
        client,
        said.attempt,
        None if said.delay is None else _within("delay", said.delay, 0.0, MAX_DELAY_SECONDS),
        None if said.ack_wait is None else ack_wait_of(said.ack_wait),
        said.reason,
    )


def wait_of(seconds: float | None, default: float) -> float:
    """How long somebody is ready to wait, in seconds. Raises Malformed."""
    if seconds is None:
        return default
    _within("wait", seconds, 0.0, MAX_WAIT_SECONDS)
    return seconds


def _within(field: str, seconds: float, least: float, most: float) -> int:
    if not least <= seconds <= most:
        raise _wrong(field, f"must be {least:g} to {most:.0f} seconds")
    return int(seconds * 1e6)


def _wrong(field: str, problem: str) -> Malformed:
    return Malformed(f"`{field}` {problem}.", code="bad_field", field=field)


def _extras(send: Content, terms: Terms) -> bytes:
    extras: dict[str, object] = {}
    if terms.priority != NORMAL:
        extras["priority"] = _PRIORITY_NAMES[terms.priority]
    for field in ("correlation_id", "reply_to", "thread_id", "on_behalf_of"):
        value = getattr(send, field)
        if value is None:
            continue
        if not 1 <= len(value) <= MAX_KEY_LENGTH:
            raise _wrong(field, f"must be 1 to {MAX_KEY_LENGTH} characters")
        extras[field] = value
    if send.headers is not None:
        if len(send.headers) > MAX_HEADERS:
            raise _wrong("headers", f"has more than {MAX_HEADERS} entries")
        if send.headers:
            extras["headers"] = send.headers
    return b"," + encode(extras)[1:-1] if extras else b""


def priority_of(given: str | int) -> int:
    """A priority by name or number as its number (1, 3, 5, 7, 9). Raises Malformed."""
    number = PRIORITIES.get(given.lower()) if isinstance(given, str) else given
    if number not in _PRIORITY_NAMES:
        raise Malformed(
            "`priority` must be critical (1), high (3), normal (5), low (7) or bulk (9).",
            code="bad_field",
            field="priority",
        )
    return number


def body_key(message: Message) -> bytes:
    """What makes two sends with one idempotency key the same send: everything that the sender chose."""
    extras = without_trace(message.extras)
    parts = [b"%d" % message.kind, message.address.encode(), message.type.encode(), message.payload, extras]
    terms = message.terms or _NO_TERMS
    more = (message.flags, terms.ack_wait_us, terms.ttl_us, terms.delay_us, terms.deliver_us)
    if more != _NOTHING_MORE:
        parts.append(encode(more))
    return b"\x00".join(parts)


_NO_TERMS = Terms()
_NOTHING_MORE = (0, ACK_WAIT_US, None, None, None)


# ---- outbound frames


AROUND_MESSAGE = b'{"type":"message","message":', b"}"
"""What stands before and behind a rendered message in the text of its WebSocket frame."""


def message_frame(rendered: bytes) -> bytes:
    """A rendered message as the text of its WebSocket frame."""
    before, after = AROUND_MESSAGE
    return before + rendered + after


def sent_frame(ref: str | int, receipt: bytes) -> bytes:
    """The receipt of a send; `receipt` is JSON members (bus.receipts)."""
    return b'{"type":"sent","ref":%b,%b}' % (encode(ref), receipt)


def sent_frames(refs: Sequence[str | int], receipts: Sequence[bytes]) -> list[bytes]:
    """As `sent_frame`, of each."""
    return [
        b'{"type":"sent","ref":%b,%b}' % (encode(ref), receipt) for ref, receipt in zip(refs, receipts, strict=True)
    ]


def acked_frame(ref: str | int, message_id: str, status: str, attempt: int) -> bytes:
    """What came of an ack, nack, progress, release or reject."""
    return encode({"type": "acked", "ref": ref, "message_id": message_id, "status": status, "attempt": attempt})


def subscribed_frame(topics: Sequence[str], queues: Sequence[str], ref: str | int | None) -> bytes:
    """The answer to `subscribe` and `unsubscribe`: all that the connection is subscribed to now."""
    frame: dict[str, object] = {"type": "subscribed", "topics": topics, "queues": queues}
    if ref is not None:
        frame["ref"] = ref
    return encode(frame)


def error_frame(error: BusError, ref: str | int | None = None) -> bytes:
    """An `error` frame, with `code`, the sentence, and what can help the sender to find the frame it is about."""
    frame: dict[str, object] = {"type": "error", "code": error.code, "error": error.sentence}
    if error.field is not None:
        frame["field"] = error.field
    if ref is not None:
        frame["ref"] = ref
    if error.retry_after_seconds is not None:
        frame["retry_after_seconds"] = error.retry_after_seconds
    return encode(frame)


def error_body(error: BusError, request_id: str) -> dict[str, object]:
    """The JSON body of a refused request."""
    body: dict[str, object] = {"error": error.sentence, "code": error.code, "request_id": request_id}
    if error.field is not None:
        body["field"] = error.field
    return body
