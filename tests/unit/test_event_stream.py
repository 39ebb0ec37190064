"""The wire format of event streams: blocks, filters, and what can't be smuggled in."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus import event_stream
from bus.errors import Malformed
from bus.event_stream import EventStreamEncoding, Wanted
from bus.message import (
    EVENT,
    REQUIRES_ACK,
    Epochs,
    Kind,
    Message,
    Names,
    excluded_of,
    excluding,
    is_for,
    render,
    set_apart,
)

EPOCHS = Epochs([(1, "0123456789ab")])


def encoding(wanted: Wanted = event_stream.ALL, *, named: bool = True) -> EventStreamEncoding:
    return EventStreamEncoding(EPOCHS, wanted, named=named, beat_seconds=15.0)


def message(payload: bytes = b"{}", *, flags: int = 0, seq: int = 5, type: str = "note") -> Message:
    return Message(Kind.CLIENT, "a", ("a",), "b", type, payload, 0, flags, seq=seq, own_id="" if seq else "msg-x")


def encoded(found: Message, by: EventStreamEncoding) -> bytes:
    return by.message(found, render(found, EPOCHS))


def parsed(block: bytes) -> dict[str, str]:
    """The fields of a block, as a browser puts them together."""
    fields: dict[str, str] = {}
    for line in block.decode().removesuffix("\n\n").split("\n"):
        name, _, value = line.partition(":")
        fields[name] = fields[name] + "\n" + value[1:] if name in fields else value[1:]
    return fields


def test_a_message_has_its_place_its_name_and_its_whole() -> None:
    found = message(b'{"a":1}')
    fields = parsed(encoded(found, encoding()))
    assert fields["id"] == "0123456789ab:5"
    assert fields["event"] == "message_received"
    assert fields["data"].encode() == render(found, EPOCHS)


@pytest.mark.parametrize("odd", [message(flags=REQUIRES_ACK), message(seq=0)], ids=["needs an ack", "ephemeral"])
def test_what_is_out_of_order_has_no_place(odd: Message) -> None:
    assert b"id:" not in encoded(odd, encoding())[:4]


def test_a_lease_has_no_place() -> None:
    assert encoding().leased(b'{"type":"x"}') == b'event: message_received\ndata: {"type":"x"}\n\n'


@given(st.text())
def test_any_string_arrives_as_it_is_but_for_the_sort_of_its_line_ends(text: str) -> None:
    block = encoded(message(json.dumps(text).encode(), flags=EVENT), encoding())
    assert block.count(b"\n\n") == 1
    assert b"\r" not in block
    assert parsed(block)["data"] == text.replace("\r\n", "\n").replace("\r", "\n")
    assert parsed(block)["event"] == "note"


@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_any_other_json_arrives_on_one_line(value: object) -> None:
    if isinstance(value, str):
        return
    found = message(json.dumps(value, indent=2).encode(), flags=EVENT)
    fields = parsed(encoded(found, encoding()))
    assert json.loads(fields["data"]) == value
    assert "\n" not in fields["data"]


def test_an_event_that_comes_rendered_from_a_neighbour_is_the_same() -> None:
    whole = message(b'"text"', flags=EVENT)
    bare = message(b"", flags=EVENT)
    assert encoding().message(bare, render(whole, EPOCHS)) == encoded(whole, encoding())


@pytest.mark.parametrize("name", ["a\nid: 1", "a\rb", "a\r\nevent: x", "", "a b", "$x", "é"])
def test_a_name_that_could_be_a_field_is_no_name(name: str) -> None:
    with pytest.raises(Malformed):
        Names().check(name, "event")


def test_filters_leave_no_bytes() -> None:
    only = encoding(Wanted(frozenset({"note"})))
    assert encoded(message(), only) == b""
    assert encoded(message(flags=EVENT), only) != b""
    assert only.leased(b'{"type":"note"}') == b""
    typed = encoding(Wanted(types=frozenset({"note"})))
    assert encoded(message(), typed) != b""
    assert encoded(message(type="other"), typed) == b""
    assert typed.leased(b'{"type":"other"}') == b""
    assert typed.leased(b'{"type":"note"}') != b""


@pytest.mark.parametrize(
    ("wanted", "takes_messages", "keeps_place"),
    [
        (Wanted(), True, True),
        (Wanted(frozenset({"message_received", "x"})), True, False),
        (Wanted(frozenset({"x"})), False, False),
        (Wanted(types=frozenset({"x"})), False, False),
    ],
)
def test_only_a_whole_stream_keeps_a_place(wanted: Wanted, takes_messages: bool, keeps_place: bool) -> None:
    assert (encoding(wanted).takes_messages, encoding(wanted).keeps_place) == (takes_messages, keeps_place)
    assert not encoding(wanted, named=False).keeps_place


def test_the_heartbeat_is_a_comment_with_the_place_made_once() -> None:
    made = encoding()
    assert made.ping(7) == b"id: 0123456789ab:7\n: heartbeat\n\n"
    assert made.ping(7) is made.ping(7)


def test_a_goodbye_says_when_to_come_back() -> None:
    text = b'{"type":"goaway","reason":"restart","reconnect_after_ms":700}'
    assert encoding().control(text) == b"retry: 700\n\nevent: goaway\ndata: %b\n\n" % text


def test_exclusions_stand_in_the_message() -> None:
    assert excluded_of(excluding(["a", "b"])) == ("a", "b")
    assert excluding([]) == b""
    assert excluded_of(b"") == ()
    told = Message(Kind.ALL, "", (), "c", "x", b"1", 0, EVENT, excluded=("a",))
    assert [is_for(told, name) for name in "abc"] == [False, True, False]
    assert set_apart([told]) == {"a", "c"}
