"""WebSocket framing: what one side writes the other reads, however the network cuts it; violations have their code."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus import frames
from bus.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, FrameError, close_frame, read_close, read_frames
from tests.rawws import frame_bytes

MAX_BYTES = 70_000
SIZES = [0, 1, 125, 126, 127, 65535, 65536, MAX_BYTES]
MASKS = st.binary(min_size=4, max_size=4)
DATA = st.builds(
    lambda opcode, payload, is_final, mask: (
        (0x80 if is_final else 0) | opcode,
        payload,
        frame_bytes(opcode, payload, is_final=is_final, mask=mask),
    ),
    st.sampled_from([CONTINUATION, TEXT, BINARY]),
    st.binary(max_size=300),
    st.booleans(),
    MASKS,
)
CONTROL = st.builds(
    lambda opcode, payload, mask: (0x80 | opcode, payload, frame_bytes(opcode, payload, mask=mask)),
    st.sampled_from([CLOSE, PING, PONG]),
    st.binary(max_size=125),
    MASKS,
)


def read_in_pieces(data: bytes, piece: int) -> tuple[list[tuple[int, bytes]], FrameError | None]:
    """What a connection does: keep the rest, and look at it again when as much is there as was said to be needed."""
    came: list[tuple[int, bytes]] = []
    kept, need = b"", 0
    for start in range(0, len(data), piece):
        kept += data[start : start + piece]
        if len(kept) < need:
            continue
        found, used, need, problem = read_frames(kept, MAX_BYTES)
        came += found
        if problem is not None:
            return came, problem
        kept = kept[used:]
        assert need > len(kept), "It would ask for what is there already."
    assert kept == b"", "It waits for more than there is."
    return came, None


@given(st.lists(DATA | CONTROL, max_size=6), st.integers(1, 400))
def test_frames_are_read_as_they_were_written_however_they_are_cut(
    written: list[tuple[int, bytes, bytes]], piece: int
) -> None:
    came, problem = read_in_pieces(b"".join(data for _, _, data in written), piece)
    assert problem is None
    assert came == [(first, payload) for first, payload, _ in written]


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 700])
def test_a_frame_cut_at_any_byte_is_read_when_the_rest_is_there(size: int) -> None:
    payload = bytes(range(256)) * 3
    data = frame_bytes(TEXT, payload[:size], mask=b"\x01\x80\xff\x00") + frame_bytes(PING, b"next", mask=b"mask")
    whole = [(0x80 | TEXT, payload[:size]), (0x80 | PING, b"next")]
    for at in range(len(data) + 1):
        found, used, need, problem = read_frames(data[:at], MAX_BYTES)
        assert problem is None
        assert used + need > at
        rest, end, _, _ = read_frames(data[used:], MAX_BYTES)
        assert (found + rest, used + end) == (whole, len(data))
        if need > 2 and at < len(data):
            assert used + need <= len(data), "It would wait for more than the frame has."


@pytest.mark.parametrize("size", SIZES)
def test_every_form_of_the_length_is_read_and_written(size: int) -> None:
    payload = b"\xa5" * size
    assert read_frames(frame_bytes(TEXT, payload, mask=b"four"), MAX_BYTES)[0] == [(0x80 | TEXT, payload)]
    assert frames.frame(TEXT, payload) == frame_bytes(TEXT, payload, mask=None)
    assert frames.frame(PONG, payload[:125]) == frame_bytes(PONG, payload[:125], mask=None)


def test_a_known_frame_of_the_standard_is_read() -> None:
    hello = bytes.fromhex("818537fa213d7f9f4d5158")  # RFC 6455, section 5.7
    assert read_frames(hello, MAX_BYTES) == ([(0x81, b"Hello")], 11, 2, None)
    assert frames.frame(TEXT, b"Hello") == bytes.fromhex("810548656c6c6f")


# ---- violations

VIOLATIONS = {
    "unmasked": (frame_bytes(TEXT, b"x", mask=None), 1002),
    "unmasked, of which two bytes are there": (b"\x81\x01", 1002),
    **{f"reserved bits {bits:#05b}": (frame_bytes(TEXT, b"x", reserved=bits), 1002) for bits in range(1, 8)},
    **{f"opcode {opcode:#x}": (frame_bytes(opcode, b"x"), 1002) for opcode in (*range(3, 8), *range(0xB, 0x10))},
    **{f"control frame {opcode:#x} in parts": (frame_bytes(opcode, is_final=False), 1002) for opcode in (0x8, 0x9, 0xA)},
    **{f"control frame {opcode:#x} of 126 bytes": (frame_bytes(opcode, b"x" * 126), 1002) for opcode in (0x8, 0x9, 0xA)},
    "one byte too many": (frame_bytes(TEXT, announced=MAX_BYTES + 1), 1009),
    "one byte too many in a fragment": (frame_bytes(CONTINUATION, is_final=False, announced=MAX_BYTES + 1), 1009),
    "more than a signed number holds": (frame_bytes(BINARY, announced=2**63), 1009),
}  # fmt: skip


@pytest.mark.parametrize("name", VIOLATIONS)
def test_a_violation_is_told_after_the_frames_before_it_and_hides_those_behind(name: str) -> None:
    violation, code = VIOLATIONS[name]
    before = frame_bytes(TEXT, b"before", mask=b"mask")
    found, used, _, problem = read_frames(before + violation + before, MAX_BYTES)
    assert (found, used) == ([(0x80 | TEXT, b"before")], len(before))
    assert problem is not None
    assert (problem.close_code, str(problem)) == (code, problem.reason)
    assert close_frame(code, problem.reason)[4:].decode() == problem.reason, "The reason does not fit a close frame."


@given(st.binary(max_size=400))
def test_any_bytes_are_read_without_an_exception(data: bytes) -> None:
    found, used, need, problem = read_frames(data, MAX_BYTES)
    assert 0 <= used <= len(data)
    assert problem is not None or need > len(data) - used
    assert all(first & 0x70 == 0 and len(payload) <= MAX_BYTES for first, payload in found)


# ---- closing

SENDABLE = {*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)}
"""RFC 6455, section 7.4, and the codes that IANA registered since."""


def test_exactly_the_close_codes_that_may_be_sent_are_read() -> None:
    for code in range(65536):
        payload = struct.pack("!H", code)
        if code in SENDABLE:
            assert read_close(payload + b"bye") == code
            continue
        with pytest.raises(FrameError) as refusal:
            read_close(payload)
        assert refusal.value.close_code == 1002


def test_a_close_without_a_code_is_1005_and_half_a_code_is_a_violation() -> None:
    assert read_close(b"") == 1005
    with pytest.raises(FrameError) as refusal:
        read_close(b"\x03")
    assert refusal.value.close_code == 1002


@pytest.mark.parametrize("reason", [b"\xff", b"\xd7", b"\xed\xa0\x80", b"ok\xc0\xaf"])
def test_a_close_reason_must_be_utf_8(reason: bytes) -> None:
    with pytest.raises(FrameError) as refusal:
        read_close(struct.pack("!H", 1000) + reason)
    assert refusal.value.close_code == 1007


@given(st.sampled_from(sorted(SENDABLE)), st.text(max_size=200))
def test_a_close_frame_holds_its_code_and_as_much_of_the_reason_as_fits(code: int, reason: str) -> None:
    data = close_frame(code, reason)
    assert data[0] == 0x80 | CLOSE
    assert data[1] == len(data) - 2 <= 125
    assert read_close(data[2:]) == code
    kept = data[4:].decode()
    assert reason.startswith(kept)
    assert kept == reason or len(data[4:]) > 119, "More of the reason would have fitted."
