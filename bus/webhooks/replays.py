"""Replay: deliveries that ended are sent again, under the same webhook-id and marked `webhook-replay: 1`.

A replay is a row. One worker in the cluster puts its deliveries back, in batches; how far it has come is written with each,
so a crash neither skips nor repeats one. What is waiting already, or was replayed within the last minute, is left alone: a
double click is one replay. The rate is the claims' business: half of what the endpoint takes.
"""

from __future__ import annotations

import secrets

import msgspec

from bus.errors import Conflict, NotFound
from bus.storage import Reader, Transaction
from bus.webhooks.claims import DONE, REPLAYED, WAITING
from bus.webhooks.deliveries import Choice

AT_ONCE = 500
AGAIN_AFTER_US = 60_000_000
MAX_RUNNING = 100


class Replay(msgspec.Struct):
    """What was asked for: deliveries up to the number `upto`; `position` is how far it is.

    status: running, done, cancelled.
    """

    id: str
    choice: Choice
    position: int
    upto: int
    matched: int
    replayed: int
    status: str
    created_us: int


class Batch(msgspec.Struct, frozen=True):
    """Deliveries to be put back for a replay, by number, and how far it has come then: None to its end."""

    replay: str
    numbers: list[int]
    position: int | None


def matching(reader: Reader, choice: Choice, now_us: int) -> int:
    """How many would be replayed now."""
    where, bindings = choice.where()
    return int(reader.execute(f"SELECT count(*) {_READY} AND {where}", (now_us - AGAIN_AFTER_US, *bindings))[0][0])


def begin(transaction: Transaction, choice: Choice, matched: int, now_us: int) -> Replay:
    """Have what matches replayed; `matched` is how many that were. Raises Conflict when too many replays run."""
    (running,) = transaction.execute("SELECT count(*) FROM webhook_replays WHERE status = 'running'")[0]
    if running >= MAX_RUNNING:
        raise Conflict(f"{MAX_RUNNING} replays run already; wait until one is done.", code="too_many_replays")
    (upto,) = transaction.execute("SELECT coalesce(max(number), 0) FROM webhook_deliveries")[0]
    replay = Replay(f"whr-{secrets.token_hex(8)}", choice, 0, upto, matched, 0, "running", now_us)
    fields = (replay.id, msgspec.json.encode(choice), 0, upto, matched, 0, replay.status, now_us)
    transaction.execute("INSERT INTO webhook_replays VALUES (?, ?, ?, ?, ?, ?, ?, ?)", fields)
    return replay


def replay_one(transaction: Transaction, number: int, now_us: int) -> int:
    """Put one delivery back. Returns 1, or 0 if it waits already or was replayed just now. Raises NotFound."""
    if not transaction.execute("SELECT 1 FROM webhook_deliveries WHERE number = ?", (number,)):
        raise NotFound("There is no delivery with this id; it may be too old.", code="unknown_delivery")
    return _put_back(transaction, [number], now_us)


def next_batch(reader: Reader, now_us: int) -> Batch | None:
    """What the oldest running replay puts back next. None: none runs."""
    found = _select(reader, "status = 'running' ORDER BY created_at, id LIMIT 1")
    if not found:
        return None
    (replay,) = found
    where, bindings = replay.choice.where()
    rows = reader.execute(
        f"SELECT d.number {_READY} AND {where} AND d.number > ? AND d.number <= ? ORDER BY d.number LIMIT ?",
        (now_us - AGAIN_AFTER_US, *bindings, replay.position, replay.upto, AT_ONCE),
    )
    numbers = [number for (number,) in rows]
    return Batch(replay.id, numbers, numbers[-1] if len(numbers) == AT_ONCE else None)


def put_back(transaction: Transaction, batch: Batch, now_us: int) -> None:
    """Put a batch back, unless the replay was stopped in the meantime."""
    if not transaction.execute(_RUNNING, (batch.replay,)):
        return
    done = _put_back(transaction, batch.numbers, now_us)
    status = "done" if batch.position is None else "running"
    transaction.execute(_CARRIED_ON, (batch.position, done, status, batch.replay))


def cancel(transaction: Transaction, replay_id: str) -> None:
    """Stop a replay where it is; what was put back is sent."""
    transaction.execute(
        "UPDATE webhook_replays SET status = 'cancelled' WHERE id = ? AND status = 'running'", (replay_id,)
    )


def find(reader: Reader, replay_id: str) -> Replay:
    """One replay. Raises NotFound."""
    found = _select(reader, "id = ?", replay_id)
    if not found:
        raise NotFound("There is no replay with this id.", code="unknown_replay")
    return found[0]


def latest(reader: Reader, limit: int) -> list[Replay]:
    """Replays, the youngest first."""
    return _select(reader, "true ORDER BY created_at DESC, id LIMIT ?", limit)


def _put_back(transaction: Transaction, numbers: list[int], now_us: int) -> int:
    done = 0
    for number in numbers:
        put = transaction.execute(_PUT_BACK, (WAITING, REPLAYED, now_us, number, now_us - AGAIN_AFTER_US))
        for endpoint, size in put:
            transaction.execute(_PENDING, (size, endpoint))
        done += len(put)
    return done


def _select(reader: Reader | Transaction, where: str, *bindings: object) -> list[Replay]:
    rows = reader.execute(f"SELECT {_COLUMNS} FROM webhook_replays WHERE {where}", bindings)
    return [Replay(row[0], msgspec.json.decode(row[1], type=Choice), *row[2:]) for row in rows]


_COLUMNS = "id, choice, position, upto, matched, replayed, status, created_at"
_READY = f"""
FROM webhook_deliveries d JOIN webhook_events e ON e.number = d.event JOIN webhook_lanes l ON l.endpoint = d.endpoint
WHERE d.state >= {DONE} AND (d.replayed_at IS NULL OR d.replayed_at < ?)"""
_PUT_BACK = """
UPDATE webhook_deliveries SET state = ?1, class = ?2, due_at = ?3, replayed_at = ?3, tried = 0, lapses = 0, order_key = NULL,
 ended_at = NULL, cause = NULL
 WHERE number = ?4 AND state >= 3 AND (replayed_at IS NULL OR replayed_at < ?5)
   AND endpoint IN (SELECT endpoint FROM webhook_lanes) RETURNING endpoint, bytes"""
_RUNNING = "SELECT 1 FROM webhook_replays WHERE id = ? AND status = 'running'"
_CARRIED_ON = """
UPDATE webhook_replays SET position = coalesce(?, upto), replayed = replayed + ?, status = ? WHERE id = ?"""
_PENDING = "UPDATE webhook_lanes SET pending = pending + 1, pending_bytes = pending_bytes + ? WHERE endpoint = ?"
