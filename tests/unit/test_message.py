"""The message: names, addresses, depth, time, ids, cursors, and the JSON that recipients see."""

from __future__ import annotations

import json
import string
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from bus import message as message_module
from bus.errors import Malformed
from bus.message import (
    MAX_JSON_DEPTH,
    MAX_RECIPIENTS,
    REQUIRES_ACK,
    Epochs,
    Kind,
    Message,
    Names,
    check_depth,
    is_cursor,
    iso,
    new_epoch,
    parse_address,
    parse_cursor,
    parse_time,
    render,
    text_of,
)

ALPHABET = string.ascii_letters + string.digits + "._:@-"
NAMES = st.text(ALPHABET, min_size=1, max_size=128)
RESERVED = ["all", ".", "..", "topic:", "topic:a", "queue:", "queue:a"]


# ---- names


@given(NAMES)
def test_a_good_name_is_taken_again_and_again(name: str) -> None:
    names = Names()
    assert [names.check(name, "to") for _ in range(2)] == [name, name]


@given(st.text() | st.builds("{}\n".format, NAMES) | st.builds("${}".format, NAMES) | st.text(ALPHABET, min_size=129))
@example("")
@example("n" * 129)
@example("שלום")
@example("٣")
def test_exactly_names_of_the_alphabet_are_good(name: str) -> None:
    if 1 <= len(name) <= 128 and set(name) <= set(ALPHABET):
        assert Names().check(name, "from") == name
        return
    with pytest.raises(Malformed) as refusal:
        Names().check(name, "from")
    assert (refusal.value.code, refusal.value.field) == ("bad_name", "from")


@pytest.mark.parametrize("name", [None, 5, True, b"bytes", [], {}, ["a"]])
def test_a_name_is_a_string(name: object) -> None:
    with pytest.raises(Malformed) as refusal:
        Names().check(name, "to")
    assert refusal.value.code == "bad_name"


@pytest.mark.parametrize("name", RESERVED)
def test_a_client_has_no_reserved_name_even_if_the_name_is_good_elsewhere(name: str) -> None:
    names = Names()
    assert names.check(name, "type") == name
    with pytest.raises(Malformed) as refusal:
        names.check_client(name, "client_id")
    assert (refusal.value.code, refusal.value.field) == ("reserved_name", "client_id")


@pytest.mark.parametrize("name", ["All", "...", "topic", "queue", "a:topic:b", "all.", "@me", "-"])
def test_a_name_like_a_reserved_one_is_free(name: str) -> None:
    assert Names().check_client(name, "to") == name


def test_the_memory_for_names_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Names, "LIMIT", 10)
    names = Names()
    for number in range(95):
        names.check(f"n{number}", "to")
        assert len(names._good) <= 10


# ---- addresses


@pytest.mark.parametrize(
    ("to", "kind", "address", "recipients"),
    [
        ("browser", Kind.CLIENT, "browser", ("browser",)),
        ("all", Kind.ALL, "", ()),
        ("*", Kind.ALL, "", ()),
        ("topic:builds.linux", Kind.TOPIC, "builds.linux", ()),
        ("queue:reviews", Kind.QUEUE, "reviews", ()),
        ("queue:topic:x", Kind.QUEUE, "topic:x", ()),
        (["a"], Kind.CLIENT, "a", ("a",)),
        (["a", "a"], Kind.CLIENT, "a", ("a",)),
        (["b", "a", "b"], Kind.LIST, '["b","a"]', ("b", "a")),
    ],
)
def test_an_address_is_read(to: Any, kind: Kind, address: str, recipients: tuple[str, ...]) -> None:
    assert parse_address(to, Names()) == (kind, address, recipients)


@pytest.mark.parametrize(
    ("to", "code"),
    [
        ("", "bad_name"),
        ("$x", "bad_name"),
        ("topic:", "bad_name"),
        ("queue:", "bad_name"),
        ("topic:$x", "bad_name"),
        ("topic:a b", "bad_name"),
        ("topic:" + "n" * 129, "bad_name"),
        (".", "reserved_name"),
        ([], "no_recipient"),
        (["a", ""], "bad_name"),
        (["*"], "bad_name"),
        (["a", "all"], "reserved_name"),
        (["a", "topic:b"], "reserved_name"),
        (["a", 5], "bad_name"),
        (["a", ["b"]], "bad_name"),
    ],
)
def test_a_bad_address_is_refused(to: Any, code: str) -> None:
    with pytest.raises(Malformed) as refusal:
        parse_address(to, Names())
    assert (refusal.value.code, refusal.value.field) == (code, "to")


def test_a_list_names_at_most_a_thousand() -> None:
    names = [f"n{number}" for number in range(MAX_RECIPIENTS + 1)]
    assert parse_address(names[:-1], Names())[2] == tuple(names[:-1])
    with pytest.raises(Malformed, match=f"{MAX_RECIPIENTS + 1} recipients; at most {MAX_RECIPIENTS} ") as refusal:
        parse_address(names, Names())
    assert refusal.value.code == "too_many_recipients"


# ---- depth

TEXTS = st.text('[]{}"\\,:a ש', max_size=12)
VALUES = st.recursive(
    st.none() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=15,
)


def depth_of(value: object) -> int:
    """The depth of a value, from what the standard library decoded."""
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(depth_of, value), default=0) if isinstance(value, list) else 0


def is_refused(json_text: bytes) -> bool:
    try:
        check_depth(json_text)
    except Malformed as refusal:
        return (refusal.code, refusal.field) == ("too_deep", "payload")
    return False


@given(VALUES, VALUES, st.text("[{", max_size=40), st.booleans(), st.sampled_from([None, 1]))
def test_depth_is_what_a_decoder_sees(
    value: Any, beside: Any, around: str, ascii_only: bool, indent: int | None
) -> None:
    for bracket in around:
        value = [beside, value] if bracket == "[" else {'"\\[{': beside, "]}": value}
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    assert is_refused(text) == (depth_of(json.loads(text)) > MAX_JSON_DEPTH)


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        (b"[" * 32 + b"]" * 32, False),
        (b"[" * 33 + b"]" * 33, True),
        (b"[" + b"[]," * 100 + b"[]]", False),
        (b"[" + b"{}," * 5000 + b"1]", False),
        (b'"' + b"[" * 100 + b'"', False),
        (b'["' + rb"\"[" * 100 + b'"]', False),
        (b'["\\\\",' + b"[" * 32 + b"]" * 33, True),
        (b'["]]]]",' + b"[" * 32 + b"]" * 33, True),
        (b'{"a":' * 33 + b"1" + b"}" * 33, True),
        (b"[{" * 16 + b"}]" * 16, False),
    ],
)
def test_only_brackets_outside_of_texts_count(text: bytes, refused: bool) -> None:
    assert is_refused(text) is refused


# ---- time

LAST_US = 253_402_300_799_999_999  # the end of the year 9999
STAMPS = st.integers(0, LAST_US)
THIS_CENTURY = st.integers(0, 4_102_444_800_000_000)  # 1970 to 2100
START = datetime(1970, 1, 1, tzinfo=UTC)


@given(st.lists(STAMPS, min_size=1, max_size=5))
def test_a_time_is_rendered_as_the_standard_library_does(stamps: list[int]) -> None:
    for stamp in stamps:
        for near in (stamp, min(stamp + 999_999, LAST_US), stamp):
            moment = START + timedelta(microseconds=near)
            assert iso(near).decode() == moment.isoformat(timespec="microseconds")


@given(THIS_CENTURY, st.integers(-1439, 1439))
def test_a_time_is_read_to_the_microsecond_in_any_zone(stamp: int, offset_minutes: int) -> None:
    zone = timezone(timedelta(minutes=offset_minutes))
    text = (START + timedelta(microseconds=stamp)).astimezone(zone).isoformat()
    assert parse_time(text, "since") == stamp
    assert parse_time(text.replace("+", " "), "since") == stamp  # as a URL leaves it
    assert parse_time(iso(stamp).decode(), "since") == stamp


@pytest.mark.parametrize(
    "text", ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59.999999-23:59", "1969-12-31T23:59:59Z"]
)
def test_times_beyond_the_calendar_are_numbers_all_the_same(text: str) -> None:
    assert abs(parse_time(text, "since")) < 2**63


def test_a_time_without_an_offset_is_utc() -> None:
    assert parse_time("2026-02-21T17:27:21", "since") == parse_time("2026-02-21T17:27:21Z", "since")
    assert parse_time("2026-02-21T17:27:21.5", "since") == 1_771_694_841_500_000


@pytest.mark.parametrize("text", ["T", "2026-02-30T00:00:00", "17:27T", "2026-02-21T25:00", "2026-02-21T00:00+99:00"])
def test_what_is_no_time_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(Malformed, match="such as 2026-") as refusal:
        parse_time(text, "until")
    assert (refusal.value.code, refusal.value.field) == ("bad_time", "until")


@given(st.text("0123456789T:-+. Z", max_size=30))
def test_any_text_is_a_time_or_refused(text: str) -> None:
    with suppress(Malformed):
        assert isinstance(parse_time(text, "since"), int)


# ---- epochs, ids, cursors

NAMES_OF_EPOCHS = st.text("0123456789abcdef", min_size=12, max_size=12)
SEQS = st.integers(1, 2**48 - 1)


@st.composite
def lives(draw: st.DrawFn) -> Epochs:
    """A log that was restored from a copy a few times: each epoch begins where a new name sorts last."""
    names = sorted(draw(st.sets(NAMES_OF_EPOCHS, min_size=1, max_size=4)))
    firsts = sorted(draw(st.sets(st.integers(2, 2000), min_size=len(names) - 1, max_size=len(names) - 1)))
    return Epochs(zip([1, *firsts], names, strict=True))


@given(lives(), SEQS | st.integers(1, 2001))
def test_an_id_leads_back_to_its_seq_in_every_life(epochs: Epochs, seq: int) -> None:
    message_id = epochs.id_of(seq).decode()
    born = max(life for life in epochs.lives if life[0] <= seq)[1]
    assert message_id == f"msg-{born}-{seq:012x}"
    assert set(message_id) <= set(string.ascii_letters + string.digits + "_-")
    assert epochs.seq_of(message_id) == seq


@given(lives(), st.integers(1, 2500), st.integers(1, 2500))
def test_ids_sort_as_their_seqs_do_over_all_lives(epochs: Epochs, one: int, other: int) -> None:
    assert (epochs.id_of(one) < epochs.id_of(other)) == (one < other)


@given(lives(), st.integers(1, 2500), NAMES_OF_EPOCHS)
def test_an_id_of_another_life_is_none_of_this_log(epochs: Epochs, seq: int, epoch: str) -> None:
    message_id = f"msg-{epoch}-{seq:012x}"
    assume(message_id.encode() != epochs.id_of(seq))
    assert epochs.seq_of(message_id) is None


def test_an_id_that_a_former_life_gave_after_the_copy_was_made_is_none_of_this_log() -> None:
    epochs = Epochs([(1, "0000000000aa"), (100, "0000000000bb")])
    assert epochs.current == "0000000000bb"
    assert epochs.seq_of(f"msg-0000000000aa-{99:012x}") == 99
    assert epochs.seq_of(f"msg-0000000000aa-{100:012x}") is None
    assert epochs.seq_of(f"msg-0000000000bb-{99:012x}") is None
    assert epochs.seq_of(f"msg-0000000000bb-{100:012x}") == 100


@pytest.mark.parametrize(
    "message_id",
    [
        "",
        "msg-",
        f"msg-{'a' * 12}-1",
        f"msg-{'a' * 12}-00000000000A",
        f"MSG-{'a' * 12}-{1:012x}",
        f"msg-{'a' * 12}-{1:012x}\n",
    ],
)
def test_what_has_not_the_form_of_an_id_is_none(message_id: str) -> None:
    assert Epochs([(1, "a" * 12)]).seq_of(message_id.format("a" * 12)) is None


@given(lives(), st.integers(0, 10**18 - 1))
def test_a_cursor_is_read_as_it_was_given(epochs: Epochs, seq: int) -> None:
    cursor = epochs.cursor(seq)
    assert is_cursor(cursor)
    assert parse_cursor(cursor) == (epochs.current, seq)


@given(st.text("0123456789abcdef:-+ ٣\n", max_size=40) | st.text())
@example("0123456789ab:٣")
@example("0123456789ab:1\n")
@example("0123456789ab:1000000000000000000")
@example("0123456789AB:1")
def test_only_a_cursor_is_a_cursor(text: str) -> None:
    epoch, colon, seq = text.partition(":")
    good = len(epoch) == 12 and set(epoch) <= set("0123456789abcdef") and set(seq) <= set(string.digits)
    if good and colon and 1 <= len(seq) <= 18:
        assert parse_cursor(text, "until") == (epoch, int(seq))
        return
    assert not is_cursor(text)
    with pytest.raises(Malformed) as refusal:
        parse_cursor(text, "until")
    assert (refusal.value.code, refusal.value.field) == ("bad_cursor", "until")


def test_a_new_epoch_sorts_after_those_of_earlier_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(message_module.time, "time", lambda: 1_771_694_841.9)
    earlier = {new_epoch() for _ in range(20)}
    monkeypatch.setattr(message_module.time, "time", lambda: 1_771_694_842.0)
    assert max(earlier) < new_epoch()
    assert len(earlier) > 1
    assert all(is_cursor(f"{epoch}:0") for epoch in earlier)


# ---- rendering

EPOCHS = Epochs([(1, "0123456789ab")])


def message(**fields: Any) -> Message:
    usual = {"kind": Kind.CLIENT, "address": "b", "names": ("b",), "sender": "a", "type": "note", "payload": b"{}"}
    return Message(**{**usual, "stamp_us": 1_771_694_841_123_456, "seq": 4711, **fields})


@pytest.mark.parametrize(
    ("kind", "address", "to"),
    [
        (Kind.CLIENT, "b", "b"),
        (Kind.LIST, '["b","c"]', ["b", "c"]),
        (Kind.ALL, "", "all"),
        (Kind.TOPIC, "builds.linux", "topic:builds.linux"),
        (Kind.QUEUE, "reviews", "queue:reviews"),
    ],
)
def test_a_message_is_rendered_with_the_eight_fields_that_are_always_there(kind: Kind, address: str, to: Any) -> None:
    assert json.loads(render(message(kind=kind, address=address), EPOCHS)) == {
        "id": "msg-0123456789ab-000000001267",
        "seq": 4711,
        "from": "a",
        "to": to,
        "type": "note",
        "payload": {},
        "timestamp": "2026-02-21T17:27:21.123456+00:00",
        "requires_ack": False,
    }


@given(st.text(), st.integers(0, 30))
def test_a_payload_is_rendered_byte_for_byte(text: str, spaces: int) -> None:
    payload = json.dumps({"a": [text, 1.50]}, ensure_ascii=False, indent=spaces).encode("utf-8", "surrogatepass")
    assert b'"payload":%b,"timestamp":' % payload in render(message(payload=payload), EPOCHS)


def test_what_is_optional_is_rendered_when_it_is_there() -> None:
    rich = message(flags=REQUIRES_ACK, extras=b',"priority":"high","headers":{"k":"v"}')
    rendered = json.loads(render(rich, EPOCHS))
    assert (rendered["requires_ack"], rendered["priority"], rendered["headers"]) == (True, "high", {"k": "v"})


def test_what_is_not_in_the_log_has_no_seq() -> None:
    rendered = json.loads(render(message(seq=0, own_id="msg-0-e1"), EPOCHS))
    assert (rendered["id"], rendered["seq"]) == ("msg-0-e1", None)


def test_a_message_is_rendered_once_for_everybody() -> None:
    one = message()
    assert text_of(one, EPOCHS) == render(one, EPOCHS)
    assert text_of(one, EPOCHS) is text_of(one, EPOCHS)
