"""What travels: frames and bodies to objects and back, with validation. No I/O; server and client share it.

One decode step (msgspec) checks the form; `Draft` is what a good `send` becomes. The payload stays the bytes it
came as: it is never altered, escaped or filtered.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from bus.errors import BusError, Malformed, NotBuilt
from bus.message import Kind, Message, Names, check_depth, parse_address

PRIORITIES = {"critical": 1, "high": 3, "normal": 5, "low": 7, "bulk": 9}
_PRIORITY_NAMES = {number: name for name, number in PRIORITIES.items()}
MAX_KEY_LENGTH = 255
MAX_HEADERS = 64
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
    topics: list[str] | None = None
    queues: list[str] | None = None
    token: str | None = None


class Batch(msgspec.Struct):
    """The body of a batch: each item is decoded by itself, so that one bad one does not spoil the rest."""

    messages: list[msgspec.Raw]
    atomic: bool = False


class Draft(msgspec.Struct, gc=False):
    """A send that was found good: the message, and the key under which it is done at most once."""

    message: Message
    ephemeral: bool = False
    key: str | None = None


decode_send = msgspec.json.Decoder(Send).decode
decode_frame = msgspec.json.Decoder(Frame).decode
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


def _lower(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:].rstrip(".")


def _explain(error: msgspec.ValidationError, what: str) -> Malformed:
    text = str(error)
    problem, _, path = text.partition(" - at `")
    field = path.rstrip("`").removeprefix("$").lstrip(".").split(".")[0].split("[")[0]
    if not field and "missing required field" in problem:
        missing = problem.split("`")[1]
        return Malformed(f"`{missing}` is missing.", code="missing_field", field=missing)
    if not field:
        return Malformed(f"The {what} must be a JSON object.", code="not_an_object")
    return Malformed(f"`{field}` is wrong: {_lower(problem).replace('`', '')}.", code="bad_field", field=field)


# ---- a send becomes a draft


def draft_of(send: Send | Frame, sender: str, type_: str, *, names: Names, stamp_us: int) -> Draft:
    """Check what the form can't say, and build the message. Raises Malformed, NotBuilt.

    `sender` is a checked name; `stamp_us` the receive time. Runs on the event loop and does no I/O.
    """
    if send.to is None:
        raise Malformed("`to` is missing; say who the message is for.", code="missing_field", field="to")
    kind, address, recipients = parse_address(send.to, names)
    if type_ != "message":
        names.check(type_, "msg_type" if isinstance(send, Frame) else "type")
    payload = bytes(send.payload)
    check_depth(payload)
    if _is_special(send, kind):
        _check_special(send, kind)
    message = Message(
        kind,
        address,
        recipients,
        sender,
        type_,
        payload,
        stamp_us,
        0,
        None,
        _extras(send) if _has_extras(send) else b"",
    )
    return Draft(message, send.ephemeral, send.idempotency_key)


def _is_special(send: Send | Frame, kind: Kind) -> bool:
    return (
        send.require_ack
        or send.ephemeral
        or kind >= Kind.TOPIC
        or send.idempotency_key is not None
        or send.ttl is not None
        or send.delay is not None
        or send.deliver_at is not None
        or send.ack_wait is not None
    )


def _check_special(send: Send | Frame, kind: Kind) -> None:
    key = send.idempotency_key
    if key is not None and not 1 <= len(key) <= MAX_KEY_LENGTH:
        raise Malformed(
            f"`idempotency_key` must be 1 to {MAX_KEY_LENGTH} characters.", code="bad_field", field="idempotency_key"
        )
    if send.require_ack and kind in (Kind.ALL, Kind.TOPIC):
        raise Malformed(
            "`require_ack` goes with named clients, lists of them and queues; everybody can't owe an ack.",
            code="ack_needs_names",
            field="require_ack",
        )
    if send.ephemeral:
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
    for field, given in (
        ("require_ack", send.require_ack),
        ("to", kind >= Kind.TOPIC),
        ("ttl", send.ttl is not None),
        ("delay", send.delay is not None),
        ("deliver_at", send.deliver_at is not None),
        ("ack_wait", send.ack_wait is not None),
    ):
        if given:
            what = {"to": "An address of a topic or a queue"}.get(field, f"`{field}`")
            raise NotBuilt(f"{what} is not served by this version yet; nothing was stored.", field=field)


def _has_extras(send: Send | Frame) -> bool:
    return not (
        send.priority is None
        and send.correlation_id is None
        and send.reply_to is None
        and send.thread_id is None
        and send.headers is None
    )


def _extras(send: Send | Frame) -> bytes:
    extras: dict[str, object] = {}
    if send.priority is not None:
        priority = priority_of(send.priority)
        if priority != PRIORITIES["normal"]:
            extras["priority"] = _PRIORITY_NAMES[priority]
    for field in ("correlation_id", "reply_to", "thread_id"):
        value = getattr(send, field)
        if value is None:
            continue
        if not 1 <= len(value) <= MAX_KEY_LENGTH:
            raise Malformed(f"`{field}` must be 1 to {MAX_KEY_LENGTH} characters.", code="bad_field", field=field)
        extras[field] = value
    if send.headers is not None:
        if len(send.headers) > MAX_HEADERS:
            raise Malformed(f"`headers` has more than {MAX_HEADERS} entries.", code="bad_field", field="headers")
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
    return b"\x00".join(
        (b"%d" % message.kind, message.address.encode(), message.type.encode(), message.payload, message.extras)
    )


# ---- outbound frames


def message_frame(rendered: bytes) -> bytes:
    """A rendered message as the text of its WebSocket frame."""
    return b'{"type":"message","message":%b}' % rendered


def sent_frame(ref: str | int, message_id: bytes, seq: int | None, recipients: bytes, duplicate: bool) -> bytes:
    """The receipt of a send; `recipients` is JSON, `message_id` ASCII."""
    return b'{"type":"sent","ref":%b,"message_id":"%b","seq":%b,"recipients":%b%b}' % (
        encode(ref),
        message_id,
        b"null" if seq is None else b"%d" % seq,
        recipients,
        b',"duplicate":true' if duplicate else b"",
    )


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
