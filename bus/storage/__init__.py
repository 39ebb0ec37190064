"""Where the log lives: the interface of a store, and the values that cross it.

A store opens one `Writer` and any number of `Reader`s, each with a connection of its own. Both block: the writer
belongs to the one writer thread of a process (bus.storage.log_writer), a reader to one reader thread. Nothing here
runs on the event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from bus.errors import BusError
from bus.events import Event
from bus.message import Epochs, Message
from bus.storage.deliveries import Failure, Lease
from bus.topics import TopicSet

if TYPE_CHECKING:
    from bus.storage.ledger import Ledger


class _Later(Enum):
    """What a message does not know of itself until it is in its transaction."""

    SEQ = "its place in the log"
    TEXT = "its JSON, as recipients get it, in bytes"


SEQ: Final = _Later.SEQ
TEXT: Final = _Later.TEXT
"""Stand in the bindings of a row that is written with a message (`Bus.with_commit` for `MessageSent`)."""

MAKE_KNOWN: Final = """
INSERT INTO clients VALUES (?1, 1, ?2, ?2, ?3, ?3) ON CONFLICT (name) DO UPDATE SET known = 1, last_seen = ?3"""
"""Makes ?1 a known client, seen at ?3; an inbox that opens by it begins behind the seq ?2."""

Row = tuple[str, Sequence[Any]]
"""A statement and its bindings, written in the transaction of the event it belongs to; of a message's, with SEQ and TEXT."""


class Outcome(msgspec.Struct, gc=False):
    """What became of a committed send: names that were refused (inbox full) and names that the bus does not know.

    `scheduled`: it waits for its time outside the log. `failures`: what was set aside to make room for it.
    """

    refused: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    duplicate: bool = False
    answer: bytes = b""
    """The JSON of `recipients` that the first send was answered with; set for duplicates."""

    scheduled: bool = False
    failures: tuple[Failure, ...] = ()


STORED: Final = Outcome()
"""The outcome of a send of which there is nothing more to say. Shared: whoever has more to say makes one of its own."""


class Pending(msgspec.Struct):
    """A message on its way through the writer, and what came of it: `error`, or `message.seq` and `outcome`.

    `settled(pending)` is called on the event loop after the commit; `answer` is its caller's, who wants to hear of what is
    stored only with `receipt`. `present`: every named recipient was online when it was accepted, so that the inbox's cap
    need not be looked at.
    """

    message: Message
    settled: Callable[[Pending], None]
    answer: Callable[[Any], None] | None = None
    key: str | None = None
    present: bool = False
    live: Sequence[str] = ()
    rows: Sequence[Row] = ()
    more_rows: int = 0
    receipt: bool = True
    outcome: Outcome | None = None
    error: BusError | None = None


class Job(msgspec.Struct):
    """Any other write: `run(transaction)` on the writer, in its own savepoint; then `settled(job)` on the event loop."""

    run: Callable[[Transaction], Any]
    settled: Callable[[Job], None]
    rows: int = 1
    """About how much it writes: what a batch is cut by, and what back-pressure counts."""
    value: Any = None
    error: BaseException | None = None
    lazy: bool = False
    """It may go with the power, until something that may not is committed: it need not wait for the disk."""


class Group(msgspec.Struct):
    """An atomic batch: all of its members are stored, or none. Each member is settled by itself."""

    members: Sequence[Pending]


class Burst(msgspec.Struct):
    """Plain sends that came together: without key, terms or flags, and each stored or refused by itself.

    With each message goes a ref, by which its sender knows it (None: it wants to hear of a refusal only); `stored(refs,
    messages, fates)` and `heard(ref, answer)` tell the sender. `ephemeral`: none of them gets to the writer. `weight`: the
    bytes of all payloads. `present`: of each, whether every named recipient was online when it was accepted.
    `settled(burst)` is called on the event loop after the commit. By a message's place: its `rows`; its error in
    `errors`, if it was refused; its outcome in `outcomes`, unless that is STORED.
    """

    messages: list[Message]
    refs: list[Any]
    heard: Callable[[Any, Any], None]
    stored: Callable[[Sequence[Any], Sequence[Message], Sequence[bytes]], None]
    ephemeral: bool = False
    weight: int = 0
    present: list[bool] = []
    rows: dict[int, Sequence[Row]] = {}
    settled: Callable[[Burst], None] | None = None
    errors: dict[int, BusError] = {}
    outcomes: dict[int, Outcome] = {}


Item = Pending | Group | Job | Burst
"""What the writer takes."""


class Transaction(Protocol):
    """The write transaction that a job runs in."""

    @property
    def head(self) -> int:
        """The last seq given."""
        ...

    @property
    def ledger(self) -> Ledger:
        """What must be acked one by one; its `now` is the bus's clock."""
        ...

    def execute(self, statement: str, bindings: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run one statement; `?` marks are bound in order. Returns its rows."""
        ...

    def append(self, message: Message, *, again: bool = False) -> Outcome | BusError:
        """Put a message into the log, like a send. An error: it was refused, and nothing of it was written.

        `again`: it was sent before, so its companions have their rows.
        """
        ...

    def wants(self, kind: type[Event]) -> bool:
        """True when somebody has rows for such events: making one for nobody is in vain."""
        ...

    def announce(self, event: Event) -> None:
        """Write what the companions of an event (`Bus.with_commit`) have to say of it."""
        ...


class Page(msgspec.Struct, gc=False):
    """Some messages in seq order. `upto`: everything due up to that seq is in it. `more`: a limit ended it early.

    `expired`: how many more there would be, had their ttl not ended. With topics, a page that looked at many messages and
    found few, or none, is ended early, too.
    """

    messages: list[Message]
    upto: int
    more: bool
    lost_through: int
    expired: int = 0


class ClientRow(msgspec.Struct):
    """What the store knows of a client. Times in microseconds; `waiting` counts what was neither pushed nor fetched."""

    name: str
    known: bool
    cursor: int
    mark: int
    first_seen_us: int
    last_seen_us: int
    waiting: int = 0


class Filter(msgspec.Struct, frozen=True):
    """Narrows a reading; None means any."""

    type: str | None = None
    sender: str | None = None
    to: str | None = None
    since_us: int | None = None
    until_us: int | None = None
    topics: TopicSet | None = None


class Head(msgspec.Struct, frozen=True):
    """The end of the log. `total` counts every message there ever was; `last_stamp_us` is None on an empty log."""

    seq: int
    total: int
    kept_bytes: int
    lost_through: int
    last_stamp_us: int | None


class Writer(Protocol):
    """The write side. One thread."""

    def commit(self, batch: Sequence[Item]) -> tuple[int, list[Message]]:
        """Write the batch in one transaction and make it durable.

        Returns (first seq, new messages in seq order) and fills each item's outcome or error. Raises DiskFull or
        Unavailable when nothing of it was stored.
        """
        ...

    def close(self) -> None: ...


class Reader(Protocol):
    """The read side. One thread; each call is one snapshot."""

    def head(self) -> Head: ...

    def changed(self) -> bool:
        """True when anything was committed since the last call."""
        ...

    def inbox(
        self,
        name: str,
        after: int,
        upto: int | None,
        limit: int,
        max_bytes: int,
        only: Filter | None = None,
        topics: TopicSet | None = None,
    ) -> Page:
        """What is addressed to a client directly, in lists, and to all; with `topics`, also what they match."""
        ...

    def expired(self, name: str, after: int) -> int:
        """About how many plain messages to a client behind the seq `after` expired before it had them."""
        ...

    def open_deliveries(self, name: str, limit: int, max_bytes: int, only: Filter | None = None) -> list[Lease]:
        """What needs an ack of a client and is not settled, the most urgent first; nobody gets a lease by this."""
        ...

    def log(self, after: int, upto: int | None, limit: int, max_bytes: int, only: Filter | None = None) -> Page: ...

    def tail(self, after: int, limit: int, max_bytes: int) -> Page:
        """As `log`, up to the end, with the `leased_to` of what needs an ack, where that can still be told."""
        ...

    def message(self, seq: int) -> Message | None: ...

    def seq_before(self, stamp_us: int) -> int:
        """A seq such that everything behind it may be as young as `stamp_us`, and nothing up to it is."""
        ...

    def now_us(self) -> int:
        """The bus's clock (bus.clock)."""
        ...

    def size_bytes(self) -> int:
        """What the log takes on its disk, with all that was freed in it and not given back."""
        ...

    def client(self, name: str) -> ClientRow | None: ...

    def clients(self, after: str, limit: int) -> list[ClientRow]: ...

    def execute(self, statement: str, bindings: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run one reading statement. Returns its rows."""
        ...

    def messages(self, seqs: Sequence[int], max_bytes: int | None = None) -> list[Message]:
        """The messages at these seqs that are kept and alive, in the order given; about `max_bytes`, at least one."""
        ...

    def close(self) -> None: ...


class Upkeep(Protocol):
    """Work on the files that no commit should wait for. One thread in the whole cluster."""

    def tick(self) -> None:
        """Called about four times a second; blocks for as long as it takes."""
        ...

    def close(self) -> None: ...


class Store(Protocol):
    """A place for the log. `check` and `open` raise StartRefused or StoreDamaged with a sentence."""

    @property
    def epochs(self) -> Epochs: ...

    @property
    def survives(self) -> str:
        """What an acknowledged send survives, in words for status pages."""
        ...

    def check(self) -> None:
        """Refuse a damaged log, and leave it as it is. Called while no process has it open, before any may."""
        ...

    def open(self, migrations: Sequence[tuple[str, Path]]) -> None:
        """Migrate, and begin a new epoch if it is due. Several processes may do so at once."""
        ...

    def due(self, migrations: Sequence[tuple[str, Path]]) -> list[str]:
        """Which migrations `open` would apply: `core 3`, say. Changes nothing."""
        ...

    def writer(self) -> Writer: ...

    def reader(self) -> Reader: ...

    def upkeep(self) -> Upkeep: ...
