"""Replay: a range of the log is put into an inbox again, as new messages marked `replayed`, at a bounded rate.

A replay is a row: how far it has come is written with the copies, in one transaction, so a crash neither skips nor repeats
one. One process in the cluster carries them all on. An inbox that is full makes its replay wait.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable
from typing import Any

import msgspec

from bus.delivery.courier import Courier
from bus.errors import Conflict, NotFound
from bus.message import EVENT, Epochs, Kind, Message, now_us
from bus.protocol import encode
from bus.storage import Filter, Outcome, Page, Reader, Transaction
from bus.storage.deliveries import Failure
from bus.topics import TopicSet

INTERVAL_SECONDS = 0.1
MAX_RUNNING = 100
MAX_STEP = 500
STEP_BYTES = 1024 * 1024
DEFAULT_RATE, MAX_RATE = 500.0, 10_000.0
"""Messages a second."""

_MARKS = re.compile(rb',"re(?:played|driven)":true(?:,"replay_of":"[^"]*")?')
"""What the original itself was marked with: a name stands once in a JSON object. Nothing a sender says looks like it."""

_COLUMNS = "id, recipient, first, upto, position, narrow, rate, copied, status, created_at"


class Replay(msgspec.Struct):
    """Messages behind the seq `first`, up to `upto`, that fit `narrow`, go to `recipient`; `position` is how far it is."""

    id: str
    recipient: str
    first: int
    upto: int
    position: int
    narrow: Filter
    rate: float
    copied: int
    status: str
    created_us: int


class Replays:
    """`tick` is the work of an exclusive worker; the rest runs in any process. `read` and `write` are the bus's."""

    def __init__(
        self,
        read: Callable[[Any], Any],
        write: Callable[[Any], Any],
        epochs: Callable[[], Epochs],
        courier: Callable[[], Courier],
    ) -> None:
        self._read = read
        self._write = write
        self._epochs = epochs
        self._courier = courier
        self._ticked = time.monotonic()
        self._owed: dict[str, float] = {}  # what each may copy now, by its rate

    def begin(self, recipient: str, first: int, upto: int, narrow: Filter, rate: float) -> Replay:
        """Have a range copied. Raises Conflict when too many replays run."""
        replay = Replay(
            f"rpl-{secrets.token_hex(8)}", recipient, first, upto, first, narrow, rate, 0, "running", now_us()
        )

        def job(transaction: Transaction) -> None:
            (running,) = transaction.execute("SELECT count(*) FROM replays WHERE status = 'running'")[0]
            if running >= MAX_RUNNING:
                raise Conflict(
                    f"{MAX_RUNNING} replays run already; wait until one is done, or cancel one.",
                    code="too_many_replays",
                )
            row = msgspec.structs.astuple(replay)
            transaction.execute(
                "INSERT INTO replays VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (*row[:5], _narrow_text(narrow), *row[6:])
            )

        self._write(job)
        return replay

    def find(self, replay_id: str) -> Replay:
        """One replay. Raises NotFound."""
        rows = self._read(lambda reader: _select(reader, "id = ?", (replay_id,)))
        if not rows:
            raise NotFound("There is no replay with this id.", code="unknown_replay")
        return rows[0]  # type: ignore[no-any-return]

    def latest(self, limit: int) -> list[Replay]:
        """The replays, the youngest first."""
        return self._read(lambda reader: _select(reader, "true ORDER BY created_at DESC, id LIMIT ?", (limit,)))  # type: ignore[no-any-return]

    def cancel(self, replay_id: str) -> Replay:
        """Stop one where it is; what was copied stays. Raises NotFound."""
        self._write(
            lambda transaction: transaction.execute(
                "UPDATE replays SET status = 'cancelled' WHERE id = ? AND status = 'running'", (replay_id,)
            )
        )
        return self.find(replay_id)

    # ---- the worker

    def tick(self) -> None:
        """Carry every running replay on, by what its rate allows since the last tick."""
        now = time.monotonic()
        elapsed, self._ticked = min(now - self._ticked, 1.0), now
        running = self._read(lambda reader: _select(reader, "status = 'running'", ()))
        self._owed = {replay.id: self._owed.get(replay.id, 0.0) + replay.rate * elapsed for replay in running}
        for replay in running:
            step = int(min(self._owed[replay.id], MAX_STEP))
            if step:
                self._owed[replay.id] = min(self._owed[replay.id] - step, MAX_STEP)
                self._carry_on(replay, step)

    def _carry_on(self, replay: Replay, limit: int) -> None:
        def job(reader: Reader) -> Page:
            return reader.log(replay.position, replay.upto, limit, STEP_BYTES, replay.narrow)

        page: Page = self._read(job)
        epochs = self._epochs()

        def copy(transaction: Transaction) -> list[Failure]:
            current = _select(transaction, "id = ?", (replay.id,))[0]
            failures: list[Failure] = []
            if current.status != "running" or current.position != replay.position:
                return failures
            position, copied = page.upto, 0
            for message in page.messages:
                outcome = transaction.append(_copy(message, replay.recipient, epochs))
                if isinstance(outcome, Outcome):
                    failures += outcome.failures
                else:
                    position = message.seq - 1  # the inbox is full: go on here when it has been read
                    break
                copied += 1
            status = "done" if position >= replay.upto else "running"
            transaction.execute(
                "UPDATE replays SET position = ?, copied = copied + ?, status = ? WHERE id = ?",
                (position, copied, status, replay.id),
            )
            return failures

        self._courier().tell_failures(self._write(copy))


def _copy(message: Message, recipient: str, epochs: Epochs) -> Message:
    original = message.own_id or epochs.id_of(message.seq).decode()
    extras = _MARKS.sub(b"", message.extras) + b',"replayed":true,"replay_of":"%b"' % original.encode()
    return Message(
        Kind.CLIENT,
        recipient,
        (recipient,),
        message.sender,
        message.type,
        message.payload,
        now_us(),
        message.flags & EVENT,
        extras=extras,
    )


def _select(reader: Reader | Transaction, where: str, bindings: tuple[Any, ...]) -> list[Replay]:
    rows = reader.execute(f"SELECT {_COLUMNS} FROM replays WHERE {where}", bindings)
    return [Replay(*row[:5], _narrow_of(row[5]), *row[6:]) for row in rows]  # type: ignore[call-arg]


def _narrow_text(narrow: Filter) -> bytes:
    fields = msgspec.structs.asdict(narrow)
    fields["topics"] = sorted(narrow.topics.patterns) if narrow.topics is not None else None
    return encode(fields)


def _narrow_of(text: bytes) -> Filter:
    fields = msgspec.json.decode(text)
    patterns = fields.pop("topics")
    return Filter(**fields, topics=TopicSet(patterns) if patterns is not None else None)
