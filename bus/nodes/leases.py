"""Leases: what one process at a time may do, of a machine or of all nodes.

On one machine a lease is a file lock, which the kernel frees when its holder dies. Over nodes it is a row with an end and a
token: who does not renew it in time loses it to whoever asks next, and the token is raised. A process that was frozen past
the end may not know yet; so each write of a holder looks at the token first, in its own transaction, and is refused.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from bus.errors import Unavailable

if TYPE_CHECKING:
    from bus.storage import Reader, Transaction

T = TypeVar("T")

LEASE_SECONDS = 10.0
RENEW_SECONDS = 3.0
"""How often leases are renewed, and those of others looked at."""

SURE_SECONDS = 7.0
"""After a renewal a lease is believed in for so long, without a look at the store."""


class LeaseLost(Unavailable):
    """Another process has the lease by now; what was to be written was not."""


class Hold(Protocol):
    """A lease that was taken. In a greenlet."""

    def holds(self) -> bool:
        """False once it is lost; then it has to be taken anew. May wait for the store. Raises Unavailable."""
        ...

    def fenced(self, job: Callable[[Transaction], T]) -> Callable[[Transaction], T]:
        """The job, refused with LeaseLost once another process has the lease."""
        ...

    def release(self) -> None:
        """Give it back. Idempotent."""
        ...


class Leases(Protocol):
    """Where work is claimed that not everybody may do. In a greenlet."""

    folder: Path
    """Where the processes of this machine that share the log meet: for locks and side files."""

    def try_take(self, name: str) -> Hold | None:
        """Take a lease of all nodes, or None while another process has it. Raises Unavailable."""
        ...

    def try_take_here(self, name: str) -> Hold | None:
        """Take a lease of this machine only: of what every node does for itself."""
        ...


HELD: ContextVar[Hold | None] = ContextVar("HELD", default=None)
"""The lease that the running greenlet works under: the writer fences its jobs with it."""


def fenced(job: Callable[[Transaction], T]) -> Callable[[Transaction], T]:
    """A job for the writer, fenced if the greenlet works under a lease."""
    hold = HELD.get()
    return job if hold is None else hold.fenced(job)


def try_exclusive(path: Path) -> int | None:
    """Take the file lock at `path`, for what one process of the machine has. The descriptor, or None if it is taken."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


class FileHold:
    """A file lock: it is held until it is given back, or until the process ends, frozen or not."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def holds(self) -> bool:
        """See Hold."""
        return self._descriptor >= 0

    def fenced(self, job: Callable[[Transaction], T]) -> Callable[[Transaction], T]:
        """See Hold."""
        return job

    def release(self) -> None:
        """See Hold."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class FileLeases:
    """Leases of processes that are all on one machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def try_take(self, name: str) -> Hold | None:
        """See Leases."""
        descriptor = try_exclusive(self.folder / f"exclusive-{name}.lock")
        return None if descriptor is None else FileHold(descriptor)

    try_take_here = try_take


class StoreHold:
    """A row of the store that names this process."""

    def __init__(self, leases: StoreLeases, name: str, token: int, renewed_at: float) -> None:
        self._leases = leases
        self.name = name
        self.token = token
        self.renewed_at = renewed_at
        self.is_lost = False

    def holds(self) -> bool:
        """See Hold."""
        if not self.is_lost and time.monotonic() - self.renewed_at > SURE_SECONDS:
            self._leases.renew()
        return not self.is_lost

    def fenced(self, job: Callable[[Transaction], T]) -> Callable[[Transaction], T]:
        """See Hold."""

        def run(transaction: Transaction) -> T:
            if not transaction.execute("SELECT 1 FROM leases WHERE name = ? AND token = ?", (self.name, self.token)):
                self.is_lost = True
                raise LeaseLost(f"Another process has taken over {self.name}; nothing was written.")
            return job(transaction)

        return run

    def release(self) -> None:
        """See Hold."""
        if not self.is_lost:
            self.is_lost = True
            self._leases.give_back(self)


class StoreLeases:
    """Leases over nodes: rows, renewed together. `holder` names this process, and is never used again.

    `taken`: how often this process took one from the hands of another, whose time was over.
    """

    def __init__(
        self,
        folder: Path,
        holder: str,
        read: Callable[[Any], Any],
        write: Callable[[Callable[[Transaction], Any]], Any],
    ) -> None:
        """`read` and `write` wait for a job of the store, in the calling greenlet; the latter's may go with the power."""
        self.folder = folder
        self.taken = 0
        self._files = FileLeases(folder)
        self._holder = holder
        self._read = read
        self._write = write
        self._holds: dict[str, StoreHold] = {}

    def try_take_here(self, name: str) -> Hold | None:
        """See Leases."""
        return self._files.try_take(name)

    def try_take(self, name: str) -> Hold | None:
        """See Leases. A look comes first: who waits for its turn writes nothing."""

        def look(reader: Reader) -> bool:
            return not reader.execute("SELECT 1 FROM leases WHERE name = ? AND until > ?", (name, reader.now_us()))

        def take(transaction: Transaction) -> tuple[int, bool] | None:
            now = transaction.ledger.now
            before = transaction.execute("SELECT token, until, holder FROM leases WHERE name = ?", (name,))
            if not before:
                transaction.execute("INSERT INTO leases VALUES (?, ?, ?, 1)", (name, self._holder, now + _LEASE_US))
                return 1, False
            ((token, until, _),) = before
            if until > now:
                return None
            transaction.execute(
                "UPDATE leases SET holder = ?, until = ?, token = ? WHERE name = ?",
                (self._holder, now + _LEASE_US, token + 1, name),
            )
            return token + 1, until > 0

        began = time.monotonic()
        found = self._write(take) if self._read(look) else None
        if found is None:
            return None
        token, was_lost = found
        self.taken += was_lost
        hold = self._holds[name] = StoreHold(self, name, token, began)
        return hold

    def renew(self) -> None:
        """Go on holding what is held, and find out what is not any more. Raises Unavailable."""
        holds = [hold for hold in self._holds.values() if not hold.is_lost]
        self._holds = {hold.name: hold for hold in holds}
        if not holds:
            return
        began = time.monotonic()

        def job(transaction: Transaction) -> dict[str, int]:
            until = transaction.ledger.now + _LEASE_US
            transaction.execute("UPDATE leases SET until = ? WHERE holder = ? AND until > 0", (until, self._holder))
            return dict(transaction.execute("SELECT name, token FROM leases WHERE holder = ?", (self._holder,)))

        mine: dict[str, int] = self._write(job)
        for hold in holds:
            if mine.get(hold.name) == hold.token:
                hold.renewed_at = began
            else:
                hold.is_lost = True

    def give_back(self, hold: StoreHold) -> None:
        """End a lease before its time: another process may have it at once."""
        self._holds.pop(hold.name, None)
        statement = "UPDATE leases SET until = 0 WHERE name = ? AND token = ?"
        self._write(lambda transaction: transaction.execute(statement, (hold.name, hold.token)))


_LEASE_US = int(LEASE_SECONDS * 1e6)
