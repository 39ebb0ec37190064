"""The message: its names, addresses, identifiers, cursors, and the JSON that recipients see.

A message is decoded once, stays bytes inside, and is rendered once for everybody. Its place in the log (`seq`)
is given by the store at the commit; the id is made of the log's epoch and the seq, so it is unique, sorts by
time, and is found without an index.
"""

from __future__ import annotations

import enum
import re
import secrets
import time
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

import msgspec

from bus.errors import Malformed

MAX_JSON_DEPTH = 32
MAX_NAME_LENGTH = 128
MAX_RECIPIENTS = 1000
_NAME = re.compile(r"[A-Za-z0-9._:@-]{1,128}\Z")
_RESERVED_CLIENTS = frozenset({"all", ".", ".."})
_CURSOR = re.compile(r"([0-9a-f]{12}):([0-9]{1,18})\Z")
_ID = re.compile(r"msg-([0-9a-f]{12})-([0-9a-f]{12})\Z")
_START = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_TEXT_OR_BRACKET = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[\]{}]', re.DOTALL)


class Kind(enum.IntEnum):
    """What sort of address a message has. The numbers are stored."""

    CLIENT = 0
    LIST = 1
    ALL = 2
    TOPIC = 3
    QUEUE = 4


Address = tuple[Kind, str, tuple[str, ...]]
"""What a `to` means: its kind, the address without its prefix, the named recipients."""

REQUIRES_ACK = 1
EVENT = 2
OWN_ID = 4
"""Bits of a message's `flags`. Stored. OWN_ID: the id is not made of the seq; `own_id` has it."""

REDRIVEN = b',"redriven":true'
"""Among a message's `extras`: it was a dead letter, and is sent again."""

OWN_EXPIRY = 8
TYPE_EXPIRY = 16
"""Further bits, in the stored row only: who set its `expires_at`. Neither: the default policy did."""

PRIORITIES = {"critical": 1, "high": 3, "normal": 5, "low": 7, "bulk": 9}
NORMAL = 5
ACK_WAIT_US = 30_000_000
"""The lease of what needs an ack, unless the sender or the consumer says otherwise."""


class Terms(msgspec.Struct, gc=False, frozen=True):
    """What a sender asks for beyond plain delivery; it goes with the message into the store, and no further.

    Durations are in microseconds: `delay_us` is counted from the send, `ttl_us` from the moment the message enters the
    log. `deliver_us` is a time of day, in microseconds since 1970. `may_lengthen`: the ttl may go beyond its type's policy.
    """

    priority: int = NORMAL
    ack_wait_us: int = ACK_WAIT_US
    ttl_us: int | None = None
    delay_us: int | None = None
    deliver_us: int | None = None
    correlation_id: str | None = None
    thread_id: str | None = None
    may_lengthen: bool = True


class Message(msgspec.Struct, gc=False):
    """One message. Mutable only in what the store sets at the commit: `seq`, `expires_us`, `leased_to`.

    `address` is the client, topic or queue without its prefix, the JSON array of names for a list, and empty
    for `all`; `names` are the named recipients (one or many), empty for `all`, topics and queues. `stamp_us` and
    `expires_us` are microseconds since 1970 UTC, the one by the wall's clock, the other by the bus's (bus.clock). That is
    what is shown: None when the default policy holds, and 0 for what its type's policy keeps.
    `payload` is the JSON text exactly as it came. `extras` is the JSON text of the optional fields, ready to be
    appended (`,"priority":"high"`), or empty. `own_id` is set for ephemeral messages and those with OWN_ID. `rendered`
    keeps what `text_of` made, for as long as the message is on its way. `terms` is there on the way into the store.
    `leased_to`, of a message that needs an ack: the recipients whose lease began with its commit, since they were
    online; None when that is not known: it was read from the store, and its deliveries have gone on. `excluded`, of an
    event to all: the clients that do not get it; they stand in `extras` too.
    """

    kind: int
    address: str
    names: tuple[str, ...]
    sender: str
    type: str
    payload: bytes
    stamp_us: int
    flags: int = 0
    expires_us: int | None = None
    extras: bytes = b""
    seq: int = 0
    own_id: str = ""
    rendered: bytes = b""
    terms: Terms | None = None
    leased_to: tuple[str, ...] | None = None
    excluded: tuple[str, ...] = ()


# ---- names


class Names:
    """Checks names, and remembers good ones, so that a known name costs one set lookup.

    Not thread-safe by design: each event loop has its own. The memory is bounded: it is emptied when full.
    """

    LIMIT = 50_000

    def __init__(self) -> None:
        self._good: set[str] = set()
        self._addresses: dict[str, Address] = {}

    def check(self, name: object, field: str) -> str:
        """Return `name` if it is a good client, type, topic or queue name; raise Malformed otherwise."""
        if not isinstance(name, str):
            raise Malformed(f"`{field}` must be a string.", code="bad_name", field=field)
        if name in self._good:
            return name
        if not _NAME.match(name):
            raise Malformed(
                f"`{field}` must be 1 to {MAX_NAME_LENGTH} characters out of A-Z a-z 0-9 . _ : @ - and may not"
                " start with $.",
                code="bad_name",
                field=field,
            )
        if len(self._good) >= self.LIMIT:
            self._good.clear()
        self._good.add(name)
        return name

    def check_client(self, name: object, field: str) -> str:
        """As `check`, and refuse what a client may not be called (`all`, `topic:…`, `queue:…`, dots)."""
        good = self.check(name, field)
        if good in _RESERVED_CLIENTS or good.startswith(("topic:", "queue:")):
            raise Malformed(f"`{field}` can't be the reserved name {good}.", code="reserved_name", field=field)
        return good

    def address(self, to: str) -> Address:
        """What a `to` that is a string means: (kind, address, named recipients). Raises Malformed."""
        known = self._addresses.get(to)
        if known is None:
            known = self._read_address(to)
            if len(self._addresses) >= self.LIMIT:
                self._addresses.clear()
            self._addresses[to] = known
        return known

    def _read_address(self, to: str) -> Address:
        if to in ("all", "*"):
            return Kind.ALL, "", ()
        if to.startswith("topic:"):
            return Kind.TOPIC, self.check(to[6:], "to"), ()
        if to.startswith("queue:"):
            return Kind.QUEUE, self.check(to[6:], "to"), ()
        client = self.check_client(to, "to")
        return Kind.CLIENT, client, (client,)


def parse_address(to: str | list[str], names: Names) -> Address:
    """Read the `to` of a request into (kind, address, named recipients). Raises Malformed."""
    if isinstance(to, str):
        return names.address(to)
    if not to:
        raise Malformed("`to` is an empty list; name at least one recipient.", code="no_recipient", field="to")
    if len(to) > MAX_RECIPIENTS:
        raise Malformed(
            f"`to` names {len(to)} recipients; at most {MAX_RECIPIENTS} fit one message.",
            code="too_many_recipients",
            field="to",
        )
    recipients = tuple(dict.fromkeys(names.check_client(name, "to") for name in to))
    if len(recipients) == 1:
        return Kind.CLIENT, recipients[0], recipients
    return Kind.LIST, msgspec.json.encode(recipients).decode(), recipients


def check_depth(json_text: bytes, field: str = "payload") -> None:
    """Refuse JSON that is nested deeper than MAX_JSON_DEPTH. Linear in the text; a cheap count settles most."""
    if json_text.count(b"[") + json_text.count(b"{") <= MAX_JSON_DEPTH:
        return
    depth = 0
    for token in _TEXT_OR_BRACKET.findall(json_text):
        if token in (b"[", b"{"):
            depth += 1
            if depth > MAX_JSON_DEPTH:
                raise Malformed(
                    f"`{field}` is nested deeper than {MAX_JSON_DEPTH} levels; flatten it.",
                    code="too_deep",
                    field=field,
                )
        elif token in (b"]", b"}"):
            depth -= 1


# ---- time


def now_us() -> int:
    """The wall clock, in microseconds since 1970 UTC."""
    return time.time_ns() // 1000


class _Stamps:
    """Renders microseconds as ISO 8601. The last text is kept, since what one read brought shares it, and so is its second.

    Thread-safe: each pair is replaced whole, and read once.
    """

    def __init__(self) -> None:
        self._last = (-1, b"")
        self._last_second = (-1, b"")

    def render(self, stamp_us: int) -> bytes:
        last, text = self._last
        if stamp_us == last:
            return text
        second, micros = divmod(stamp_us, 1_000_000)
        last, begin = self._last_second
        if second != last:
            begin = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S").encode()
            self._last_second = (second, begin)
        text = b"%b.%06d+00:00" % (begin, micros)
        self._last = (stamp_us, text)
        return text


iso = _Stamps().render


def parse_time(text: str, field: str) -> int:
    """Read an ISO 8601 time (a missing offset is UTC; a `+` that a URL turned into a space is mended) as microseconds."""
    try:
        moment = datetime.fromisoformat(text.strip().replace(" ", "+") if "T" in text else text)
    except ValueError:
        raise Malformed(
            f"`{field}` must be a cursor or an ISO 8601 time such as 2026-02-21T17:27:21+00:00.",
            code="bad_time",
            field=field,
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - _START) // _MICROSECOND  # a float would lose the last digit of some


# ---- epochs, ids, cursors


def new_epoch(after: str = "0") -> str:
    """A name for a log's life: 8 hex digits of the second it began, 4 of chance. Sorts behind the life before, `after`."""
    return max(f"{int(time.time()):08x}{secrets.token_hex(2)}", f"{int(after, 16) + 1:012x}")


class Epochs:
    """The lives of one log, oldest first. A log restored from a copy begins a new one at the next seq.

    Immutable after construction; safe to share between threads.
    """

    def __init__(self, lives: Iterable[tuple[int, str]]) -> None:
        """`lives` are (first seq, epoch), in order; there is at least one."""
        self.lives = tuple(lives)
        self._firsts = [first for first, _ in self.lives]
        self._prefixes = [f"msg-{epoch}-".encode() for _, epoch in self.lives]
        self._only = self._prefixes[0] if len(self.lives) == 1 else None
        self.current = self.lives[-1][1]

    def id_of(self, seq: int) -> bytes:
        """The id of the message at `seq`."""
        return b"%b%012x" % (self.prefix_of(seq), seq)

    def prefix_of(self, seq: int) -> bytes:
        """What the id of the message at `seq` begins with: 12 hexadecimal digits of the seq follow."""
        return self._only or self._prefixes[max(bisect_right(self._firsts, seq) - 1, 0)]

    def seq_of(self, message_id: str) -> int | None:
        """The seq that an id names, or None when it is not an id of this log."""
        match = _ID.match(message_id)
        if match is None:
            return None
        seq = int(match[2], 16)
        return seq if self.id_of(seq) == message_id.encode() else None

    def cursor(self, seq: int) -> str:
        """The cursor that stands just behind `seq`."""
        return f"{self.current}:{seq}"


def parse_cursor(text: str, field: str = "since") -> tuple[str, int]:
    """Read `<epoch>:<seq>`. Raises Malformed."""
    match = _CURSOR.match(text)
    if match is None:
        raise Malformed(
            f"`{field}` is not a cursor of this bus; use one that an answer gave you (<epoch>:<seq>).",
            code="bad_cursor",
            field=field,
        )
    return match[1], int(match[2])


def is_cursor(text: str) -> bool:
    """True when `text` has the form of a cursor."""
    return _CURSOR.match(text) is not None


# ---- rendering

_TO = (b'"%b"', b"%b", b'"all"%b', b'"topic:%b"', b'"queue:%b"')
"""How `to` shows the address, by kind."""


def correlation_of(message: Message) -> str | None:
    """The `correlation_id` of a message, from wherever it came."""
    if message.terms is not None:
        return message.terms.correlation_id
    if b'"correlation_id":' not in message.extras:
        return None
    found = msgspec.json.decode(b"{" + message.extras[1:] + b"}").get("correlation_id")
    return found if isinstance(found, str) else None


def is_for(message: Message, name: str) -> bool:
    """True when a message to all reaches this client."""
    return message.sender != name and name not in message.excluded


def set_apart(messages: Iterable[Message]) -> set[str]:
    """The clients that do not get all of these messages to all."""
    names = set()
    for message in messages:
        names.add(message.sender)
        if message.excluded:
            names.update(message.excluded)
    return names


def excluding(names: Sequence[str]) -> bytes:
    """The `extras` of an event that these clients do not get."""
    return b',"exclude":%b' % msgspec.json.encode(names) if names else b""


def excluded_of(extras: bytes) -> tuple[str, ...]:
    """Whom the `extras` of an event exclude."""
    return tuple(msgspec.json.decode(b"{" + extras[1:] + b"}").get("exclude", ())) if extras else ()


def audience_of(message: Message) -> str:
    """Whom a message that names nobody is for, as `to` says it: all, topic:<name>, queue:<name>."""
    if message.kind == Kind.ALL:
        return "all"
    return f"{'topic' if message.kind == Kind.TOPIC else 'queue'}:{message.address}"


def render(message: Message, epochs: Epochs) -> bytes:
    """The message as the JSON object that every recipient gets. Names need no escaping: their alphabet has none."""
    return (
        b'{"id":"%b","seq":%b,"from":"%b","to":%b,"type":"%b","payload":%b,"timestamp":"%b","requires_ack":%b%b%b}'
        % (
            message.own_id.encode() if message.own_id else epochs.id_of(message.seq),
            b"%d" % message.seq if message.seq else b"null",
            message.sender.encode(),
            _TO[message.kind] % message.address.encode(),
            message.type.encode(),
            message.payload,
            iso(message.stamp_us),
            b"true" if message.flags & REQUIRES_ACK else b"false",
            message.extras,
            b',"expires_at":"%b"' % iso(message.expires_us) if message.expires_us else b"",
        )
    )


def text_of(message: Message, epochs: Epochs) -> bytes:
    """`render`, once a message."""
    if not message.rendered:
        message.rendered = render(message, epochs)
    return message.rendered


def texts_of(messages: Sequence[Message], epochs: Epochs) -> list[bytes]:
    """As `text_of`, of each. What one has in common with the one before, as most have when they came together, is not made
    again."""
    if len(messages) == 1:
        return [text_of(messages[0], epochs)]
    texts = []
    sender = address = type_ = None
    kind = stamp_us = -1
    middle = end = b""
    for message in messages:
        text = message.rendered
        if text:
            texts.append(text)
            continue
        seq, own_id = message.seq, message.own_id
        if message.flags or message.extras or message.expires_us or (seq and own_id):
            text = render(message, epochs)
        else:
            if (
                message.stamp_us != stamp_us
                or message.sender is not sender
                or message.address is not address
                or (message.type != type_ or message.kind != kind)
            ):
                sender, address, type_ = message.sender, message.address, message.type
                kind, stamp_us = message.kind, message.stamp_us
                to = _TO[kind] % address.encode()
                middle = b',"from":"%b","to":%b,"type":"%b","payload":' % (sender.encode(), to, type_.encode())
                end = b',"timestamp":"%b","requires_ack":false}' % iso(stamp_us)
            if seq:
                text = b'{"id":"%b%012x","seq":%d%b%b%b' % (
                    epochs.prefix_of(seq),
                    seq,
                    seq,
                    middle,
                    message.payload,
                    end,
                )
            else:
                text = b'{"id":"%b","seq":null%b%b%b' % (own_id.encode(), middle, message.payload, end)
        message.rendered = text
        texts.append(text)
    return texts
