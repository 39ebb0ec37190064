"""Server-Sent Events on the wire: blocks of lines, and the encoding that makes messages into them.

`id:` is a cursor, the stream's place in the log. What comes out of order carries none, so that a browser keeps the last.
A message is `message_received` with all of it as data; one that was sent as an event goes under its own name, with its
payload as data. The format is the WHATWG's (HTML, 9.2); whoever makes an event's name checks it, so no line can be
smuggled in.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

import msgspec

from bus.message import EVENT, REQUIRES_ACK, Epochs, Message

RETRY_MS = 3000
"""How long a browser waits before it reconnects, give or take a third, so that they do not all come back at once."""

MESSAGE = "message_received"
EVERYTHING = None

_LINE_END = re.compile(rb"\r\n|\r|\n")


class Wanted(msgspec.Struct, frozen=True):
    """What a stream asked for: names of events, and types of messages; None means all of them."""

    events: frozenset[str] | None = EVERYTHING
    types: frozenset[str] | None = EVERYTHING

    @property
    def everything(self) -> bool:
        """True when nothing is filtered out."""
        return self.events is None and self.types is None

    @property
    def all_messages(self) -> bool:
        """True when no message is filtered out, but for those that were sent as events."""
        return self.types is None and self.takes_event(MESSAGE)

    def takes_event(self, event: str) -> bool:
        return self.events is None or event in self.events

    def takes_type(self, type_: str) -> bool:
        return self.types is None or type_ in self.types


ALL = Wanted()


def block(event: str, data: bytes, place: bytes = b"") -> bytes:
    """One event. `data` may have line ends of any sort: each of its lines becomes one of the block. `place`: `id_line`'s."""
    if b"\n" in data or b"\r" in data:
        data = b"\ndata: ".join(_LINE_END.split(data))
    return b"%bevent: %b\ndata: %b\n\n" % (place, event.encode(), data)


def id_line(place: str) -> bytes:
    """The line that says where the stream is."""
    return b"id: %b\n" % place.encode()


def retry(milliseconds: int | None = None) -> bytes:
    """Tells a browser how long to wait before it reconnects; about RETRY_MS unless given."""
    if milliseconds is None:
        milliseconds = int(RETRY_MS * random.uniform(2 / 3, 4 / 3))
    return b"retry: %d\n\n" % milliseconds


def data_of(json_text: bytes) -> bytes:
    """The data of an event: strings as they are, all else as JSON on one line."""
    if json_text.startswith(b'"'):
        return msgspec.json.decode(json_text, type=str).encode()
    return msgspec.json.format(json_text, indent=-1)


class _Payload(msgspec.Struct):
    payload: msgspec.Raw


class _Type(msgspec.Struct):
    type: str


class _Control(msgspec.Struct):
    type: str
    reconnect_after_ms: int | None = None


_payload_of = msgspec.json.Decoder(_Payload).decode
_type_of = msgspec.json.Decoder(_Type).decode
_control_of = msgspec.json.Decoder(_Control).decode


class EventStreamEncoding:
    """See `bus.connection.Encoding`. One for all streams that want the same: what they share is made once.

    A message that is filtered out is no bytes.
    """

    name = "sse"
    answers = False

    def __init__(self, epochs: Epochs, wanted: Wanted, *, named: bool, beat_seconds: float) -> None:
        """`named`: the streams are a client's, not a stranger's. `beat_seconds`: how often they get a heartbeat."""
        self.wanted = wanted
        self.beat_seconds = beat_seconds
        self.takes_messages = wanted.all_messages
        self.keeps_place = named and wanted.everything
        self._filters = not wanted.everything
        self._id = b"id: %b:" % epochs.current.encode()
        self._beat = (-1, b"")

    def messages(self, messages: Sequence[Message], texts: Sequence[bytes]) -> list[bytes]:
        return list(map(self.message, messages, texts))

    def message(self, message: Message, rendered: bytes) -> bytes:
        flags = message.flags
        if self._filters and not self._takes(MESSAGE if not flags & EVENT else message.type, message.type):
            return b""
        place = b"%b%d\n" % (self._id, message.seq) if message.seq and not flags & REQUIRES_ACK else b""
        if not flags & EVENT:
            return block(MESSAGE, rendered, place)
        # A neighbour's message comes rendered, without its payload.
        return block(message.type, data_of(message.payload or bytes(_payload_of(rendered).payload)), place)

    def leased(self, rendered: bytes) -> bytes:
        if self._filters and not self._takes(MESSAGE, _type_of(rendered).type):
            return b""
        return block(MESSAGE, rendered)

    def control(self, text: bytes) -> bytes:
        said = _control_of(text)
        wait = retry(said.reconnect_after_ms) if said.reconnect_after_ms is not None else b""
        return wait + block(said.type, text)

    def ping(self, seq: int) -> bytes:
        """The heartbeat: a comment, and the place, which moves on over what was filtered out."""
        if self._beat[0] != seq:
            self._beat = (seq, b"%b%d\n: heartbeat\n\n" % (self._id, seq))
        return self._beat[1]

    def close(self, code: int, reason: str) -> bytes:
        return b": %d %b\n\n" % (code, reason.encode())

    def _takes(self, event: str, type_: str) -> bool:
        return self.wanted.takes_event(event) and self.wanted.takes_type(type_)
