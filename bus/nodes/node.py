"""The node that a process belongs to, where several work on one log; on a log of one machine, the machine.

A node has a key, drawn once and kept beside its locks, and a number, which is the log's to give. A process's number is made
of its node's and its slot's, so it is the same after a restart, and its successor can tell what it has left behind.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import secrets
import socket
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from bus.backplane import Backplane
from bus.backplane.local import LocalBackplane, Slot
from bus.backplane.nodes import NodesBackplane
from bus.counters import MAX_SLOTS
from bus.errors import StartRefused
from bus.nodes.leases import RENEW_SECONDS, FileLeases, Leases, StoreLeases
from bus.storage import Job
from bus.worker import Worker

if TYPE_CHECKING:
    from bus.backplane.channel import Channel
    from bus.settings import Settings
    from bus.storage import Reader, Store, Transaction
    from bus.storage.log_writer import LogWriter
    from bus.threads import Mailbox

log = logging.getLogger("bus.nodes")

MIGRATIONS = Path(__file__).parent / "migrations"

FORGOTTEN_US = 24 * 3600 * 1_000_000
"""A node that was not seen for so long gives its number to the next that comes."""

SEEN_TICKS = 20
"""Every so many renewals of leases a node says that it is there."""


class Host(Protocol):
    """What of the bus is needed."""

    settings: Settings
    lock_folder: Path
    mailbox: Mailbox
    store: Any
    writer: LogWriter
    workers: list[Any]

    def read(self, job: Callable[[Reader], Any]) -> Any: ...
    def write(self, job: Callable[[Transaction], Any]) -> Any: ...


class Node(msgspec.Struct, frozen=True):
    """`bus` names the log among others, and the life that it is in: a restored copy, which begins another, is another bus.
    `key` names the node. `number` is its own while it is seen once a day."""

    bus: str
    key: bytes
    number: int


def number_of(node: Node | None, slot: Slot) -> int:
    """A process's number among all on the log."""
    return slot.number if node is None else node.number * MAX_SLOTS + slot.number


def migrations(settings: Settings) -> list[tuple[str, Path]]:
    """The tables of nodes, for a log that has several."""
    return [("nodes", MIGRATIONS)] if settings.is_on_postgresql else []


def enter(store: Store, settings: Settings) -> Node | None:
    """Get this node's number of the log, which is open. None: the log is this machine's alone."""
    if not settings.is_on_postgresql:
        if settings.redis_url:
            log.warning(
                "REDIS_URL does nothing for a log on SQLite: its workers are all on one machine, and meet there",
                extra={"action": "redis_unused"},
            )
        return None
    if settings.redis_url:
        import_module("bus.redis_client").check(settings.redis_url)
    key = _key_in(settings.lock_folder)

    def job(transaction: Transaction) -> tuple[int, int]:
        execute, now = transaction.execute, transaction.ledger.now
        known = execute("UPDATE bus_nodes SET seen_at = ? WHERE key = ? RETURNING number", (now, key.hex()))
        execute("DELETE FROM bus_nodes WHERE seen_at < ?", (now - FORGOTTEN_US,))
        taken = {number for (number,) in execute("SELECT number FROM bus_nodes")}
        if known:
            return known[0][0], len(taken)
        number = next(number for number in range(len(taken) + 1) if number not in taken)
        execute("INSERT INTO bus_nodes VALUES (?, ?, ?)", (key.hex(), number, now))
        return number, len(taken) + 1

    number, count = _written(store, job)
    if count > 1 and settings.secret_key is None:
        log.warning(
            "This is one of %d nodes, and SECRET_KEY is unset: each has a key of its own in DATA_DIR, so sessions end at a"
            " change of nodes, and webhooks that one of them sealed fail on the others; set the same SECRET_KEY on all",
            count,
            extra={"action": "secret_key"},
        )
    epochs = store.epochs
    return Node(f"{epochs.lives[0][1]}_{epochs.current}", key, number)


def join(node: Node | None, slot: Slot, bus: Host) -> tuple[Backplane, Leases]:
    """What wakes this process and wakes others, and where it claims what only one of them does. Starts nothing.

    Over nodes, a worker that renews leases is added to the bus."""
    if node is None:
        return LocalBackplane(slot), FileLeases(bus.lock_folder)
    return _backplane(node, slot, bus), _leases(node, slot, bus)


def _backplane(node: Node, slot: Slot, bus: Host) -> NodesBackplane:
    settings = bus.settings
    channel: Channel
    if settings.redis_url:
        channel = import_module("bus.backplane.redis").RedisChannel(settings.redis_url, node.bus)
    else:
        channel = import_module("bus.backplane.notify").NotifyChannel(bus.store.conninfo, node.bus, bus.mailbox)
    return NodesBackplane(LocalBackplane(slot), channel, node.key, number_of(node, slot))


def _leases(node: Node, slot: Slot, bus: Host) -> StoreLeases:
    holder = f"{socket.gethostname()}-{number_of(node, slot)}-{secrets.token_hex(4)}"
    leases = StoreLeases(bus.lock_folder, holder, bus.read, lambda job: bus.writer.call(job, lazy=True))
    ticks = 0

    def tick() -> None:
        nonlocal ticks
        leases.renew()
        ticks += 1
        if ticks % SEEN_TICKS == 0 and slot.number == 0:
            statement = "UPDATE bus_nodes SET seen_at = ? WHERE key = ?"
            bus.write(lambda transaction: transaction.execute(statement, (transaction.ledger.now, node.key.hex())))

    bus.workers.insert(0, Worker("leases", tick, interval_seconds=RENEW_SECONDS))
    return leases


def _key_in(folder: Path) -> bytes:
    """The node's key: what its folder holds, and its host's name, so that a folder that was copied is not the same node."""
    path = folder / "node-key"
    try:
        with path.open("xb") as new:
            new.write(secrets.token_bytes(16))
    except FileExistsError:
        pass
    drawn = path.read_bytes()
    if len(drawn) != 16:
        raise StartRefused(f"{path} is damaged; remove it, and the node gets a new key.")
    return hashlib.blake2b(drawn + socket.gethostname().encode(), digest_size=8).digest()


def _written(store: Store, job: Callable[[Transaction], Any]) -> Any:
    """Run a job on a writer of its own: the bus's does not run yet."""
    done = Job(job, lambda _: None)
    with contextlib.closing(store.writer()) as writer:
        writer.commit([done])
    if done.error is not None:
        raise done.error
    return done.value
