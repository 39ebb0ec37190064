"""A store with policies, a sweep, and a clock that a test moves: retention without a server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bus.bus import MIGRATIONS
from bus.errors import BusError
from bus.events import Event, MessageExpired
from bus.message import REQUIRES_ACK, Kind, Message, Terms
from bus.metrics import Metrics
from bus.protocol import Settle
from bus.retention import policies
from bus.retention.host import Host
from bus.retention.retention import Retention
from bus.retention.sweep import Sweeper
from bus.storage import Job, Pending, Transaction
from bus.storage.sqlite import SqliteStore

SECOND = 1_000_000
HOUR = 3600 * SECOND
DAY = 24 * HOUR
RETENTION_MIGRATIONS = Path(policies.__file__).parent / "migrations"


class RetentionBench:
    """One process's share, in the calling thread."""

    def __init__(self, folder: Path, *, inbox_limit: int = 100_000) -> None:
        self.folder = folder
        self.now = 1_700_000_000 * SECOND
        self.wall_ahead = 0
        self.pauses: list[float] = []
        self.events: list[Event] = []
        self.heard: set[type[Event]] = set()
        self.failures: list[Any] = []
        self.store = SqliteStore(
            folder / "bus.db",
            folder / "locks",
            lambda: self.now,
            durability="relaxed",
            inbox_limit=inbox_limit,
            queue_limit=100_000,
        )
        self.store.open([("core", MIGRATIONS), ("retention", RETENTION_MIGRATIONS)])
        self.writer = self.store.writer()
        self.reader = self.store.reader()
        self.upkeep = self.store.upkeep()
        self.host = Host(
            lambda job: job(self.reader),
            self.write,
            lambda: self.now,
            lambda: self.store.epochs,
            folder / "archive",
            lambda swept: self.failures.extend(swept.failures),
            self.events.append,
            lambda kind: kind in self.heard,
            lambda: False,
            Metrics(),
            lambda: self.now + self.wall_ahead,
            self.pauses.append,
        )
        self.archive_seconds = 0.0
        self.retention = Retention(self.host)
        self.restart()

    def close(self) -> None:
        for part in (self.writer, self.reader, self.upkeep):
            part.close()

    def restart(self) -> None:
        """Another process begins to sweep."""
        self.sweeper = Sweeper(self.host, 0, self.archive_seconds)

    def write(self, run: Callable[[Transaction], Any]) -> Any:
        job = Job(run, lambda _: None)
        self.writer.commit([job])
        if job.error is not None:
            raise job.error
        return job.value

    def send_all(self, messages: list[Message]) -> list[Message]:
        for start in range(0, len(messages), 500):
            self.writer.commit([Pending(m, lambda _: None, present=True) for m in messages[start : start + 500]])
        return messages

    def message(self, type: str = "message", to: str = "bob", **terms: Any) -> Message:
        """One to a client, a topic, a queue or all; `ack` asks for one."""
        ack = terms.pop("ack", False) or to.startswith("queue:")
        kind, _, rest = to.partition(":")
        address = rest or to
        kinds = {"queue": Kind.QUEUE, "topic": Kind.TOPIC, "all": Kind.ALL}
        found = kinds.get(kind, Kind.CLIENT)
        names = (address,) if found == Kind.CLIENT else ()
        return Message(
            found,
            "" if found == Kind.ALL else address,
            names,
            "ann",
            type,
            b'{"n":1}',
            self.now + self.wall_ahead,
            REQUIRES_ACK if ack else 0,
            terms=Terms(**terms) if terms or ack else None,
        )

    def send(self, type: str = "message", to: str = "bob", **terms: Any) -> int:
        item = Pending(self.message(type, to, **terms), lambda _: None)
        self.writer.commit([item])
        if isinstance(item.error, BusError):
            raise item.error
        return item.message.seq

    def id_of(self, seq: int) -> str:
        return self.store.epochs.id_of(seq).decode()

    def policy(self, type: str, *, name: str | None = None, seconds: float | None = None, **more: Any) -> None:
        archive = more.pop("archive", False)
        self.retention.put(policies.policy_of(type, name, seconds, archive=archive), **more)

    def wait(self, microseconds: int, *, sweep: bool = True) -> None:
        """Let time pass; a sweep looks every second in truth, here once at the end."""
        self.now += microseconds
        if sweep:
            self.sweep()

    def sweep(self) -> None:
        self.sweeper.tick()

    def read_confirmed(self, name: str, seq: int) -> None:
        """A push connection has confirmed all up to a seq."""
        self.write(lambda t: t.execute("UPDATE clients SET cursor = ?1, mark = ?1 WHERE name = ?2", (seq, name)))

    def settle(self, verb: str, seq: int, client: str = "bob") -> None:
        self.write(lambda t: t.ledger.settle(Settle(verb, self.id_of(seq), client)))

    # ---- what is there

    def stored(self) -> list[int]:
        """The rows there are, readable or not."""
        return [seq for (seq,) in self.reader.execute("SELECT seq FROM messages ORDER BY seq")]

    def readable(self, name: str = "bob") -> list[int]:
        """What an inbox shows, plain and tracked."""
        page = self.reader.inbox(name, 0, None, 10_000, 10**9)
        leases = self.reader.open_deliveries(name, 10_000, 10**9)
        return sorted([m.seq for m in page.messages] + [lease.message.seq for lease in leases])

    def archived(self) -> list[int]:
        """The seqs in the archive's files."""
        return [line.seq for name in self.retention._folder.names() for line in self.retention._folder.read(name)]

    def expired_events(self) -> list[tuple[int, str]]:
        return [(event.message.seq, event.reason) for event in self.events if isinstance(event, MessageExpired)]
