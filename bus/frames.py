"""WebSocket framing (RFC 6455) without I/O: bytes to frames, payloads to frames. Server side: reads masked, writes bare.

`read_frames` takes as many frames as one read brought; unmasking is one C call a frame.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from websockets.speedups import apply_mask

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
WHOLE_TEXT = 0x80 | TEXT
"""The first byte of a text message that is one frame."""

MAX_CONTROL_PAYLOAD = 125

_MASKED_126 = 0x80 | 126
_unpack_usual = struct.Struct("!BBH4s").unpack_from
_unpack_16 = struct.Struct("!H").unpack_from
_unpack_64 = struct.Struct("!Q").unpack_from
_pack_16 = struct.Struct("!BBH").pack
_pack_64 = struct.Struct("!BBQ").pack


class FrameError(Exception):
    """The peer broke the protocol: `close_code` says how, the text is for the close frame."""

    def __init__(self, close_code: int, reason: str) -> None:
        super().__init__(reason)
        self.close_code = close_code
        self.reason = reason


Parsed = tuple[list[tuple[int, bytes]], int, int, FrameError | None]


def read_frames(data: bytes, max_bytes: int) -> Parsed:
    """Parse the complete frames at the head of `data`.

    Returns (frames, bytes used, bytes the next frame needs as far as known, error). A frame is (first byte, unmasked
    payload): the first byte carries FIN (0x80) and the opcode. An error ends the connection after the frames before it
    were handled. A frame whose announced length is over `max_bytes` is refused before its payload is there.
    """
    frames: list[tuple[int, bytes]] = []
    append = frames.append
    offset = 0
    end = len(data)
    need = 2
    while end - offset >= 2:
        if end - offset >= 8:  # the most frequent kind, at once: a whole text of 126 to 65,535 bytes
            first, second, length, mask = _unpack_usual(data, offset)
            if first == WHOLE_TEXT and second == _MASKED_126 and length <= max_bytes:
                stop = offset + 8 + length
                if stop > end:
                    need = stop - offset
                    break
                append((first, apply_mask(data[offset + 8 : stop], mask)))
                offset = stop
                continue
        first, second = data[offset], data[offset + 1]
        if second < 0x80:
            return frames, offset, 0, FrameError(1002, "A client's frame must be masked.")
        start, length = _length(data, offset, second & 0x7F)
        if length < 0:
            need = start - offset
            break
        if first != WHOLE_TEXT and (error := _refusal(first, length)):
            return frames, offset, 0, error
        if length > max_bytes:
            return frames, offset, 0, FrameError(1009, f"A message may have at most {max_bytes} bytes.")
        stop = start + 4 + length
        if stop > end:
            need = stop - offset
            break
        append((first, apply_mask(data[start + 4 : stop], data[start : start + 4])))
        offset = stop
    return frames, offset, need, None


def _length(data: bytes, offset: int, short: int) -> tuple[int, int]:
    """Where the mask of the frame at `offset` begins, and its payload's length; -1 when that is not all there."""
    start = offset + 2
    if short < 126:
        return start, short
    size, unpack = (2, _unpack_16) if short == 126 else (8, _unpack_64)
    if len(data) < start + size:
        return start + size, -1
    return start + size, int(unpack(data, start)[0])


def _refusal(first: int, length: int) -> FrameError | None:
    opcode = first & 0x0F
    if first & 0x70:
        return FrameError(1002, "No extension was agreed on, so the reserved bits must be 0.")
    if opcode >= CLOSE:
        if opcode > PONG:
            return FrameError(1002, "Unknown opcode.")
        if not first & 0x80:
            return FrameError(1002, "A control frame can't be fragmented.")
        if length > MAX_CONTROL_PAYLOAD:
            return FrameError(1002, "A control frame may carry at most 125 bytes.")
    elif opcode > BINARY:
        return FrameError(1002, "Unknown opcode.")
    return None


def frame(opcode: int, payload: bytes) -> bytes:
    """One whole, unmasked frame."""
    size = len(payload)
    first = 0x80 | opcode
    if size < 126:
        return b"%c%c%b" % (first, size, payload)
    if size < 65536:
        return _pack_16(first, 126, size) + payload
    return _pack_64(first, 127, size) + payload


def text_frame(payload: bytes) -> bytes:
    """A text message in one frame, unmasked: what nearly all frames are."""
    size = len(payload)
    if 126 <= size < 65536:
        return _pack_16(WHOLE_TEXT, 126, size) + payload
    return frame(TEXT, payload)


def text_frames(texts: Sequence[bytes], before: bytes = b"", after: bytes = b"") -> list[bytes]:
    """As `text_frame`, of each of the texts, with what stands before and after it."""
    more, pack = len(before) + len(after), _pack_16
    return [
        b"%b%b%b%b" % (pack(WHOLE_TEXT, 126, size), before, text, after)
        if 126 <= (size := len(text) + more) < 65536
        else frame(TEXT, before + text + after)
        for text in texts
    ]


def close_frame(code: int, reason: str = "") -> bytes:
    """A close frame; the reason is cut to what a control frame holds."""
    return frame(
        CLOSE, struct.pack("!H", code) + reason.encode()[: MAX_CONTROL_PAYLOAD - 2].decode(errors="ignore").encode()
    )


def read_close(payload: bytes) -> int:
    """The close code a peer sent (1005 when it sent none). Raises FrameError for one that may not be sent."""
    if not payload:
        return 1005
    if len(payload) == 1:
        raise FrameError(1002, "A close frame has no code or a whole one.")
    (code,) = _unpack_16(payload, 0)
    if not (1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999):
        raise FrameError(1002, f"Close code {code} may not be sent.")
    try:
        payload[2:].decode("utf-8")
    except UnicodeDecodeError:
        raise FrameError(1007, "A close reason must be UTF-8.") from None
    return int(code)
