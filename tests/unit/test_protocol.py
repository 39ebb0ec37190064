"""What travels: JSON to sends and frames and back. What is refused, and as what; what a send becomes; what goes out."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bus.errors import BusError, Malformed
from bus.message import REQUIRES_ACK, Kind, Names, Terms
from bus.protocol import (
    PRIORITIES,
    Draft,
    Frame,
    Send,
    Settle,
    Verdict,
    acked_frame,
    body_key,
    decode_batch,
    decode_frame,
    decode_send,
    draft_of,
    error_body,
    error_frame,
    message_frame,
    priority_of,
    read,
    sent_frame,
    settle_of,
    wait_of,
)


def draft(**fields: Any) -> Draft:
    """What a send with these fields becomes."""
    send = read(decode_send, json.dumps({"to": "b", **fields}).encode(), "body")
    return draft_of(send, "a", send.type, names=Names(), stamp_us=1)


def refused(**fields: Any) -> BusError:
    """Why a send with these fields is refused."""
    with pytest.raises(BusError) as refusal:
        draft(**fields)
    return refusal.value


# ---- reading


@pytest.mark.parametrize(
    ("text", "code", "field", "sentence"),
    [
        (b"", "bad_json", None, "The frame is not JSON: input data was truncated."),
        (b"{'type': 1}", "bad_json", None, "The frame is not JSON: object keys must be strings (byte 1)."),
        (b"{} {}", "bad_json", None, "The frame is not JSON: trailing characters (byte 4)."),
        (b'{"payload":NaN}', "bad_json", None, "The frame is not JSON: invalid character (byte 11)."),
        (b"\xff", "bad_utf8", None, "The frame is not UTF-8."),
        (b'{"type":"\xed\xa0\x80"}', "bad_utf8", None, "The frame is not UTF-8."),
        (b"[]", "not_an_object", None, "The frame must be a JSON object."),
        (b"null", "not_an_object", None, "The frame must be a JSON object."),
        (b'{"type":5}', "bad_field", "type", "`type` is wrong: expected str, got int."),
        (b'{"to":["a",5]}', "bad_field", "to", "`to` is wrong: expected str, got int."),
        (b'{"headers":{"a":[]}}', "bad_field", "headers", "`headers` is wrong: expected str, got array."),
        (b'{"ref":{}}', "bad_field", "ref", "`ref` is wrong: expected int | str | null, got object."),
        (b'{"payload":' + b"[" * 100_000, "too_deep", None, "The frame is nested too deeply; flatten it."),
        (b'{"more":' + b"[" * 100_000, "too_deep", None, "The frame is nested too deeply; flatten it."),
    ],
)
def test_what_can_not_be_read_is_refused_with_a_sentence(
    text: bytes, code: str, field: str | None, sentence: str
) -> None:
    with pytest.raises(Malformed) as refusal:
        read(decode_frame, text, "frame")
    assert (refusal.value.code, refusal.value.field, refusal.value.sentence) == (code, field, sentence)


def test_a_field_that_has_to_be_there_is_named_when_it_is_not() -> None:
    with pytest.raises(Malformed) as refusal:
        read(decode_batch, b"{}", "body")
    assert (refusal.value.code, refusal.value.field) == ("missing_field", "messages")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
JSON_TEXTS = st.builds(json.dumps, VALUES, ensure_ascii=st.booleans(), indent=st.sampled_from([None, 2]))
EDITS = st.tuples(
    st.integers(0, 60), st.integers(0, 3), st.text('[]{}",:\\/u0d8+-.eE1 \t\n\x00\x1f\x7fntf', max_size=3)
)


def edited(text: str, edit: tuple[int, int, str]) -> str:
    at, cut, inserted = edit
    return text[:at] + inserted + text[at + cut :]


def is_json(text: str) -> bool:
    """What the standard library takes, less what only Python writes (NaN) and what no UTF-8 can hold."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    with suppress(ValueError):
        json.dumps(json.loads(text, parse_constant=refuse), ensure_ascii=False).encode()
        return True
    return False


@given(st.builds(edited, JSON_TEXTS, EDITS) | JSON_TEXTS)
@example('"\\ud800"')
@example('"\\ud83d\\ude00"')
@example("[1,]")
@example("1e999")
@example("01")
@example('"\x7f"')
@example('"\x1f"')
def test_a_payload_is_taken_exactly_when_it_is_json_and_not_one_byte_is_changed(text: str) -> None:
    body = b'{"to":"b","payload":%b}' % text.encode()
    if not is_json(text) and not is_json(body.decode()):
        with pytest.raises(Malformed) as refusal:
            read(decode_send, body, "body")
        assert refusal.value.code == "bad_json"
    elif is_json(text):
        assert bytes(read(decode_send, body, "body").payload) == text.strip(" \t\r\n").encode()


@given(st.binary(max_size=100))
def test_any_bytes_are_a_frame_or_malformed(data: bytes) -> None:
    with suppress(Malformed):
        assert isinstance(read(decode_frame, data, "frame"), Frame)


def test_a_frame_has_every_field_of_a_send_with_the_same_default() -> None:
    send = {field.name: (field.type, field.default) for field in msgspec.structs.fields(Send)}
    frame = {field.name: (field.type, field.default) for field in msgspec.structs.fields(Frame)}
    del send["sender"]  # a connection speaks for its own client only
    assert frame["msg_type"] == send.pop("type")
    for decode in (decode_send, decode_frame):
        assert read(decode, b"{}", "body").payload == msgspec.Raw(b"{}")
    assert {name: frame.get(name) for name in send} == send


# ---- a send becomes a draft


def test_the_least_of_a_send_is_a_recipient() -> None:
    message = draft().message
    assert (message.kind, message.address, message.names, message.sender) == (Kind.CLIENT, "b", ("b",), "a")
    assert (message.type, message.payload, message.extras, message.stamp_us, message.seq) == (
        "message",
        b"{}",
        b"",
        1,
        0,
    )
    assert (draft().key, draft().ephemeral) == (None, False)


def test_extras_are_json_that_can_be_appended() -> None:
    given = {"priority": "HIGH", "correlation_id": 'c"', "reply_to": "r", "thread_id": "ש", "headers": {"k": "\n"}}
    extras = draft(**given).message.extras
    assert json.loads(b'{"id":1%b}' % extras) == {"id": 1, **given, "priority": "high"}


@pytest.mark.parametrize("fields", [{"priority": "normal"}, {"priority": 5}, {"headers": {}}, {"thread_id": None}])
def test_what_says_nothing_is_not_kept(fields: dict[str, Any]) -> None:
    assert draft(**fields).message.extras == b""


@pytest.mark.parametrize(("name", "number"), PRIORITIES.items())
def test_a_priority_is_a_name_or_a_number(name: str, number: int) -> None:
    assert [priority_of(given) for given in (name, name.title(), number)] == [number] * 3


@pytest.mark.parametrize("given", ["", "urgent", "5", 0, 2, 10, -1, 10**30])
def test_any_other_priority_is_refused(given: str | int) -> None:
    assert refused(priority=given).field == "priority"


@pytest.mark.parametrize("field", ["correlation_id", "reply_to", "thread_id", "idempotency_key"])
def test_names_of_the_sender_have_1_to_255_characters(field: str) -> None:
    assert draft(**{field: "ש" * 255})
    for bad in ("", "x" * 256):
        refusal = refused(**{field: bad})
        assert (refusal.code, refusal.field) == ("bad_field", field)


def test_at_most_64_headers_are_taken() -> None:
    assert draft(headers={f"h{n}": "v" for n in range(64)})
    assert refused(headers={f"h{n}": "v" for n in range(65)}).field == "headers"


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({"to": None}, "missing_field", "to"),
        ({"to": []}, "no_recipient", "to"),
        ({"type": "$x"}, "bad_name", "type"),
        ({"payload": json.loads("[" * 33 + "]" * 33)}, "too_deep", "payload"),
        ({"to": "all", "require_ack": True}, "ack_needs_names", "require_ack"),
        ({"to": "topic:t", "require_ack": True}, "ack_needs_names", "require_ack"),
        ({"ephemeral": True, "require_ack": True}, "ephemeral_conflict", "require_ack"),
        ({"ephemeral": True, "to": "queue:q"}, "ephemeral_conflict", "to"),
        ({"ephemeral": True, "delay": 0}, "ephemeral_conflict", "delay"),
        ({"ephemeral": True, "deliver_at": ""}, "ephemeral_conflict", "deliver_at"),
        ({"ephemeral": True, "idempotency_key": "k"}, "ephemeral_conflict", "idempotency_key"),
    ],
)
def test_what_the_form_can_not_say_is_refused(fields: dict[str, Any], code: str, field: str) -> None:
    refusal = refused(**fields)
    assert (type(refusal), refusal.code, refusal.field) == (Malformed, code, field)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"require_ack": True}, Terms()),
        ({"to": "queue:q"}, Terms()),
        ({"to": "queue:q", "require_ack": True, "priority": "critical"}, Terms(priority=1)),
        ({"ack_wait": 0.1}, Terms(ack_wait_us=100_000)),
        ({"ack_wait": 86400}, Terms(ack_wait_us=86_400_000_000)),
        ({"ttl": 1.5}, Terms(ttl_us=1_500_000)),
        ({"delay": 0}, Terms(delay_us=0)),
        ({"delay": 366 * 86400}, Terms(delay_us=366 * 86_400_000_000)),
        ({"deliver_at": "1970-01-01T00:00:02+00:00"}, Terms(deliver_us=2_000_000)),
        ({"correlation_id": "c", "thread_id": "t"}, Terms(correlation_id="c", thread_id="t")),
    ],
)
def test_a_send_asks_for_terms_beyond_plain_delivery(fields: dict[str, Any], expected: Terms | None) -> None:
    assert draft(**fields).message.terms == expected


def test_what_is_for_a_queue_always_needs_an_ack() -> None:
    assert [draft(to=to).message.flags for to in ("queue:q", "b")] == [REQUIRES_ACK, 0]
    assert draft(require_ack=True).message.flags == REQUIRES_ACK


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("ack_wait", [0, 0.09, 86401, -1]),
        ("ttl", [0, -1, 3661 * 86400]),
        ("delay", [-0.001, 367 * 86400]),
        ("deliver_at", ["", "soon", "9999-01-01T00:00:00Z"]),
    ],
)
def test_durations_and_dates_out_of_bounds_are_refused(field: str, values: list[Any]) -> None:
    assert {refused(**{field: value}).field for value in values} == {field}


def test_a_delay_and_a_date_are_too_much() -> None:
    assert refused(delay=1, deliver_at="2030-01-01T00:00:00Z").field == "deliver_at"


def test_a_verdict_is_checked_and_in_microseconds() -> None:
    said = Verdict(client="b", attempt=2, delay=1.5, reason="r", ack_wait=10)
    assert settle_of("nack", said, "m", "b") == Settle("nack", "m", "b", 2, 1_500_000, 10_000_000, "r")


@pytest.mark.parametrize(
    ("field", "value"),
    [("attempt", 0), ("attempt", -1), ("delay", -1), ("delay", 1e12), ("reason", "x" * 1001), ("ack_wait", 0)],
)
def test_a_wrong_verdict_is_refused_and_its_field_named(field: str, value: Any) -> None:
    with pytest.raises(Malformed) as refusal:
        settle_of("nack", Verdict(client="b", **{field: value}), "m", "b")
    assert (refusal.value.code, refusal.value.field) == ("bad_field", field)


def test_a_wait_is_0_to_50_seconds() -> None:
    assert [wait_of(given, 25.0) for given in (None, 0, 50)] == [25.0, 0, 50]
    for bad in (-0.1, 50.1, float("inf")):
        with pytest.raises(Malformed):
            wait_of(bad, 25.0)


def test_a_wrong_type_is_blamed_on_the_field_it_came_in() -> None:
    frame = read(decode_frame, b'{"type":"send","to":"b","msg_type":"a b"}', "frame")
    with pytest.raises(Malformed) as refusal:
        draft_of(frame, "a", frame.msg_type, names=Names(), stamp_us=1)
    assert refusal.value.field == "msg_type"


SEND = {"to": ["b", "c"], "type": "t", "payload": {"n": 1}, "correlation_id": "c"}
OTHERS = [
    {"to": "b"},
    {"to": ["c", "b"]},
    {"to": "all"},
    {"type": "u"},
    {"payload": {"n": 2}},
    {"payload": [["n", 1]]},
    {"correlation_id": "d"},
    {"correlation_id": None, "thread_id": "c"},
    {"priority": "low"},
    {"require_ack": True},
    {"ack_wait": 5},
    {"ttl": 5},
    {"delay": 5},
    {"delay": 6},
    {"deliver_at": "1970-01-02T00:00:00Z"},
]


def test_two_sends_are_the_same_when_the_sender_chose_the_same() -> None:
    same = body_key(draft(**SEND).message)
    later = draft(**SEND, idempotency_key="k")
    later.message.stamp_us, later.message.seq = 99, 7
    assert body_key(later.message) == same
    assert len({same, *[body_key(draft(**{**SEND, **other}).message) for other in OTHERS]}) == 1 + len(OTHERS)


# ---- what goes out


@pytest.mark.parametrize("ref", [7, "seven", 'a"b', "ש", 10**30])
def test_a_receipt_is_json_with_the_ref_as_it_was_given(ref: str | int) -> None:
    members = b'"message_id":"msg-1","seq":5,"recipients":[{"client":"b","state":"queued"}]'
    assert json.loads(sent_frame(ref, members)) == {
        "type": "sent",
        "ref": ref,
        "message_id": "msg-1",
        "seq": 5,
        "recipients": [{"client": "b", "state": "queued"}],
    }
    told = {"type": "acked", "ref": ref, "message_id": "msg-1", "status": "acked", "attempt": 2}
    assert json.loads(acked_frame(ref, "msg-1", "acked", 2)) == told


def test_a_message_travels_as_it_was_rendered() -> None:
    assert message_frame(b'{"payload": 1.0}') == b'{"type":"message","message":{"payload": 1.0}}'


def test_an_error_says_only_what_is_known() -> None:
    bare = BusError("It failed.")
    assert json.loads(error_frame(bare)) == {"type": "error", "code": "internal", "error": "It failed."}
    assert error_body(bare, "r") == {"error": "It failed.", "code": "internal", "request_id": "r"}
    full = Malformed("No.", code="bad_field", field="to", retry_after_seconds=2)
    told = {"type": "error", "code": "bad_field", "error": "No.", "field": "to", "ref": 0, "retry_after_seconds": 2}
    assert json.loads(error_frame(full, 0)) == told
    assert error_body(full, "r") == {"error": "No.", "code": "bad_field", "request_id": "r", "field": "to"}
