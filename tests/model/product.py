"""The product under test, in one process and without a socket: two writers and a reader of one file, and its workers' work.

Time is what the test says. `kill` leaves the files as SIGKILL would: copied while they are open, with whatever the WAL
holds, and never closed in order.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import msgspec

from bus.bus import MIGRATIONS
from bus.delivery import dead_letters
from bus.delivery.dead_letters import Choice
from bus.delivery.housekeeper import Housekeeper
from bus.delivery.reaper import Reaper
from bus.errors import BusError
from bus.message import PRIORITIES, REQUIRES_ACK, Kind, Message, Terms
from bus.metrics import Metrics
from bus.storage import Item, Job, Pending, Transaction, ledger, work
from bus.storage.deliveries import Settled, Swept
from bus.storage.sqlite import SqliteStore
from extensions.log_cap import LogCap
from tests.model.model import Answer, Attempt, Sending, Verdict

STATES = ("waiting", "leased", "resting")
START_US = 1_700_000_000_000_000


class Killed(BaseException):
    """The process ends here."""


class Seen(NamedTuple):
    """What an operator could see of the store, all of it committed."""

    deliveries: dict[tuple[str, int], tuple[str, int, int, str | None, int | None]]
    dead: dict[tuple[str, str], tuple[str, str | None, int, tuple[Attempt, ...], bytes]]
    settled: dict[tuple[int, str], tuple[str, int, str]]
    scheduled: dict[str, int]
    seqs: list[int]
    head: tuple[int, int, int]
    backlogs: dict[str, tuple[int, int]]


class Product:
    """A store that `make_template` prepared, copied to `folder`. `now` is the bus's clock, in microseconds,
    and `skew` what somebody has added to the wall's."""

    def __init__(self, template: Path, folder: Path, inbox_limit: int, queue_limit: int) -> None:
        self.now = START_US
        self.skew = 0
        self.chance = 0.0
        self.failures: list[tuple[str, str, str]] = []
        self.freed: list[tuple[str, str, int]] = []
        self._limits = {"inbox_limit": inbox_limit, "queue_limit": queue_limit}
        self._folder = folder
        self._lives = 0
        self._patches = [
            mock.patch.object(work, "now_us", self._wall),
            mock.patch.object(work, "Ledger", self._ledger),
            mock.patch.object(ledger, "_size", lambda message: len(message.payload)),
        ]
        for patch in self._patches:
            patch.start()
        shutil.copytree(template, self._home)
        self._open()

    def close(self) -> None:
        self._shut()
        for patch in self._patches:
            patch.stop()

    @property
    def wall(self) -> int:
        """The wall's clock."""
        return self.now + self.skew

    def _wall(self) -> int:
        return self.wall

    # ---- life

    @property
    def _home(self) -> Path:
        return self._folder / str(self._lives)

    def _open(self) -> None:
        store = store_in(self._home, lambda: self.now, **self._limits)
        store.open([("core", MIGRATIONS)])
        self.epochs = store.epochs
        self.writers = [store.writer(), store.writer()]
        self.reader = store.reader()

    def _shut(self) -> None:
        self.reader.close()
        for writer in self.writers:
            writer.close()

    def kill(self) -> None:
        """End without a word, and start again."""
        former = self._home
        self._lives += 1
        shutil.copytree(former, self._home, ignore=shutil.ignore_patterns("*-shm"))
        self._shut()
        shutil.rmtree(former)
        self._open()

    def leave_open(self) -> None:
        """Begin a transaction that will never be committed, and do harm in it."""
        execute = self.writers[0]._connection.execute
        execute("BEGIN IMMEDIATE")
        for table in ("deliveries", "dead_letters", "backlogs", "settled", "messages", "idempotency"):
            execute(f"DELETE FROM {table}")

    def _ledger(self, execute: Any, epochs: Any, now_us: int, announcer: Any) -> Any:
        return ledger.Ledger(execute, epochs, now_us, lambda: self.chance, announcer)

    # ---- doing

    def commit(self, items: Sequence[Item], writer: int = 0) -> None:
        self.writers[writer].commit(items)

    def do(self, run: Callable[[Transaction], Any], writer: int = 0) -> Any:
        """Run one job in a transaction of its own. Raises what it raised."""
        job = Job(run, unheard)
        self.commit([job], writer)
        if job.error is not None:
            raise job.error
        return job.value

    def pending(self, sending: Sending, live: Sequence[str], own_id: str) -> Pending:
        """A send, as the bus would hand it to its writer."""
        kind, address = Kind.CLIENT, sending.owners[0]
        names: tuple[str, ...] = sending.owners
        if len(names) > 1:
            kind, address = Kind.LIST, msgspec.json.encode(names).decode()
        elif address.startswith("queue:"):
            kind, address, names = Kind.QUEUE, address[6:], ()
        delay = sending.delay or None
        terms = Terms(PRIORITIES[sending.priority], sending.ack_wait, sending.ttl, delay)
        extras = b"" if sending.priority == "normal" else b',"priority":"%b"' % sending.priority.encode()
        flags = REQUIRES_ACK if sending.is_tracked else 0
        message = Message(
            kind,
            address,
            names,
            sending.sender,
            "message",
            sending.payload,
            self.wall,
            flags,
            None,
            extras,
            terms=terms,
        )
        message.own_id = own_id if delay else ""
        present = bool(names) and set(live).issuperset(names)
        return Pending(message, unheard, None, sending.key, present, [name for name in names if name in live])

    def id_of(self, seq: int) -> str:
        return self.epochs.id_of(seq).decode()

    # ---- its workers

    def reap(self) -> None:
        """One tick of the reaper."""
        courier: Any = SimpleNamespace(tell_failures=self._hear, tell_swept=self._hear_swept)
        Reaper(lambda look: look(self.reader), self.do, self._clock(), lambda: courier).tick()

    def cap_log(self, max_bytes: int) -> None:
        """One tick of the log's cap."""
        heard: Any = SimpleNamespace(tell_swept=lambda swept: self._hear(swept.failures))
        bus: Any = SimpleNamespace(metrics=Metrics(), write=self.do, courier=heard)
        LogCap(bus, max_bytes).tick()

    def _hear_swept(self, swept: Swept) -> None:
        self._hear(swept.failures)
        self.freed += [held for held in swept.freed if "/" in held[1]]

    def keep_house(self) -> None:
        """One tick of the housekeeper."""
        Housekeeper(self.do, self._clock(), lambda: ()).tick()

    def redrive(self, choice: Choice, limit: int) -> int:
        return dead_letters.redrive(self.do, choice, limit).done

    def purge(self, choice: Choice, limit: int) -> int:
        return dead_letters.purge(self.do, choice, limit).done

    def _clock(self) -> Any:
        return SimpleNamespace(now_us=lambda: self.now, look_for_step=lambda: None)

    def _hear(self, failures: Sequence[Any]) -> None:
        self.failures += [(failure.message_id, failure.owner, failure.reason) for failure in failures]

    # ---- looking

    def look(self) -> Seen:
        rows = self.reader.execute
        deliveries = rows("SELECT owner, seq, state, attempt, failures, holder, until FROM deliveries")
        letters = rows("SELECT id, owner, reason, detail, died_at, attempts, payload FROM dead_letters")
        settled = rows("SELECT seq, owner, outcome, attempt, consumer FROM settled")
        return Seen(
            {(owner, seq): (STATES[state], *others) for owner, seq, state, *others in deliveries},
            {
                (letter, owner): (reason, detail if reason != "overflow" else None, died, _attempts(attempts), payload)
                for letter, owner, reason, detail, died, attempts, payload in letters
            },
            {(seq, owner): (("acked", "dead")[outcome], *others) for seq, owner, outcome, *others in settled},
            dict(rows("SELECT id, due_at FROM scheduled")),
            [seq for (seq,) in rows("SELECT seq FROM messages ORDER BY seq")],
            rows("SELECT seq, kept_bytes, lost_through FROM log_head")[0],
            {
                owner: (waiting, leased)
                for owner, waiting, leased in rows("SELECT owner, waiting, leased FROM backlogs")
            },
        )

    def waiting(self, name: str) -> int:
        """What `GET /api/clients/<name>` would say waits."""
        row = self.reader.client(name)
        return row.waiting if row else 0

    def open_order(self, name: str) -> list[int]:
        """The seqs of a client's open deliveries, as a reading orders them."""
        return [lease.message.seq for lease in self.reader.open_deliveries(name, 1000, 1_000_000)]


def store_in(folder: Path, clock: Callable[[], int], *, inbox_limit: int, queue_limit: int) -> SqliteStore:
    return SqliteStore(
        folder / "bus.db",
        folder / "workers",
        clock,
        durability="relaxed",
        inbox_limit=inbox_limit,
        queue_limit=queue_limit,
    )


def make_template(folder: Path) -> Path:
    """A migrated, empty store in `folder`, to be copied: migrating takes longer than most histories."""
    store = store_in(folder, lambda: START_US, inbox_limit=1, queue_limit=1)
    store.open([("core", MIGRATIONS)])
    store.writer().close()
    return folder


def unheard(_: object) -> None:
    """Nobody waits for the answer: the test looks at the item."""


def refusal_of(error: BaseException | None) -> str | None:
    """The code of a refusal."""
    assert error is None or isinstance(error, BusError), error
    return error.code if error is not None else None


def answer_of(pending: Pending, sending: Sending) -> Answer:
    """What the product answered to a send."""
    message, outcome = pending.message, pending.outcome
    if pending.error is not None or outcome is None:
        return Answer(refusal_of(pending.error))
    if outcome.duplicate:
        states = [(state["client"], state["state"]) for state in msgspec.json.decode(outcome.answer)]
    elif outcome.scheduled:
        states = [(owner, "scheduled") for owner in sending.owners]
    else:
        states = [(name, "refused") for name in outcome.refused]
        states += [(name, "unknown" if name in outcome.unknown else "queued") for name in message.names]
        states = states or [(sending.owners[0], "sent")]
    failures = tuple((failure.message_id, failure.owner, failure.reason) for failure in outcome.failures)
    return Answer(
        None, message.seq, tuple(states), message.leased_to or (), failures, outcome.duplicate, outcome.scheduled
    )


def verdict_of(said: Settled | BusError) -> Verdict:
    """What the product answered to a verdict."""
    if isinstance(said, BusError):
        return Verdict(said.code)
    failure = said.failure
    return Verdict(
        said.status, said.attempt, None if failure is None else (failure.message_id, failure.owner, failure.reason)
    )


def _attempts(text: bytes) -> tuple[Attempt, ...]:
    return tuple(
        Attempt(line["attempt"], line["consumer"], line["began_us"], line["ended_us"], line["outcome"], line["reason"])
        for line in msgspec.json.decode(text)
    )
