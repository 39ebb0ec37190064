"""The embedded store: one SQLite file in WAL mode, opened, checked and migrated here.

The writers of several processes take one `flock` on a side file before BEGIN, since SQLite's busy handler starves
under load (4 processes: 6674/569/1/1 commits without, 1305/1644/966/1212 with). The side file keeps the last seq:
a log found behind it was restored from a copy, and begins a new epoch.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw
import psutil

from bus.companions import Companions
from bus.errors import StartRefused, StoreAway, StoreDamaged
from bus.message import Epochs, new_epoch, now_us
from bus.storage.sqlite_reader import SqliteReader
from bus.storage.sqlite_upkeep import SqliteUpkeep
from bus.storage.sqlite_writer import SqliteWriter

OLDEST_ENGINE = (3, 51, 3)
NETWORK_FILE_SYSTEMS = frozenset(
    [
        "nfs",
        "nfs3",
        "nfs4",
        "cifs",
        "smb",
        "smb2",
        "smb3",
        "smbfs",
        "afs",
        "ncpfs",
        "9p",
        "ceph",
        "glusterfs",
        "lustre",
        "fuse.sshfs",
        "fuse.glusterfs",
        "fuse.s3fs",
    ]
)
CHECKED_WHOLE_BYTES = 128 * 1024 * 1024
"""A file up to this size is checked page by page at the first start (about 0.3 s); of a larger one, the ends."""

BUSY_TIMEOUT_MS = 10_000
STATEMENTS = 300
"""Prepared statements that a connection keeps: the inserts of up to 64 rows, and all others."""

_MAGIC = b"SQLite format 3\x00"


class WritersLock:
    """The one lock of all writers, in all processes, of one file. Held from before BEGIN until after COMMIT.

    Its file also keeps the last seq (8 bytes, little-endian, not synced: it may lag, never lead what is durable
    after a process crash).
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with self:
            if os.fstat(self._descriptor).st_size < 8:
                self.note(0)  # the place is taken now, so that a full disk can't refuse a later note

    def __enter__(self) -> WritersLock:
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        return self

    def __exit__(self, *_: object) -> None:
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    @property
    def last_seq(self) -> int:
        noted = os.pread(self._descriptor, 8, 0)
        return int(struct.unpack("<q", noted)[0]) if len(noted) == 8 else 0

    def note(self, seq: int) -> None:
        """Note the last seq. Held, and after the COMMIT: what is committed stays committed if this fails."""
        os.pwrite(self._descriptor, struct.pack("<q", seq), 0)

    def close(self) -> None:
        os.close(self._descriptor)


class SqliteStore:
    """A log in one file. `lock_folder` holds the side files of the processes that share it."""

    writer_type = SqliteWriter

    def __init__(
        self,
        path: Path,
        lock_folder: Path,
        clock: Callable[[], int],
        *,
        durability: str,
        inbox_limit: int,
        queue_limit: int,
        companions: Companions | None = None,
    ) -> None:
        """`clock()` is the bus's (bus.clock), in microseconds; any thread may ask it.

        `companions` have their rows written beside the events of a transaction.
        """
        self.path = path
        self.lock_folder = lock_folder
        self.clock = clock
        self.durability = durability
        self.inbox_limit = inbox_limit
        self.queue_limit = queue_limit
        self.companions = companions or Companions()
        self._epochs: Epochs | None = None

    @property
    def epochs(self) -> Epochs:
        assert self._epochs is not None, "the store is not open"
        return self._epochs

    @property
    def survives(self) -> str:
        if self.durability == "full":
            return "process kill, operating-system crash, power loss"
        return "process kill; the last second may go in a power loss"

    # ---- opening

    def open(self, migrations: Sequence[tuple[str, Path]]) -> None:
        """Check the engine and the file system, then migrate. Four processes may do so at once."""
        _check_engine()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.lock_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_file_system(self.path.parent)
        _keep_private(self.path)
        lock = self._writers_lock()
        try:
            with lock:
                self._migrate(migrations)
                self._epochs = self._read_epochs(lock)
        except apsw.CantOpenError:
            raise StartRefused(f"{self.path} can't be opened for writing; check its owner and its folder's.") from None
        except apsw.ReadOnlyError:
            raise StartRefused(f"{self.path} is read-only for this user; check its owner and mode.") from None
        except (apsw.CorruptError, apsw.NotADBError) as error:
            raise self._damaged(str(error)) from None
        except (apsw.FullError, apsw.IOError) as error:
            raise StoreAway(
                f"The disk of {self.path} is full or fails ({error}); make room, then start again."
            ) from None
        finally:
            lock.close()

    def due(self, migrations: Sequence[tuple[str, Path]]) -> list[str]:
        """See `bus.storage.Store.due`."""
        done: set[Any] = set()
        if self.path.exists() and self.path.stat().st_size:
            with contextlib.closing(self._connect(apsw.SQLITE_OPEN_READONLY)) as connection:
                if connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'migrations'").fetchall():
                    done = set(connection.execute("SELECT owner, number FROM migrations"))
        named = [
            (owner, int(file.name.split("_")[0]))
            for owner, folder in migrations
            for file in sorted(folder.glob("[0-9]*.sql"))
        ]
        return [f"{owner} {number}" for owner, number in named if (owner, number) not in done]

    def writer(self) -> SqliteWriter:
        connection = self._connect(apsw.SQLITE_OPEN_READWRITE)
        synchronous = "FULL" if self.durability == "full" else "NORMAL"
        connection.execute(f"PRAGMA synchronous={synchronous}")
        connection.execute("PRAGMA wal_autocheckpoint=0")
        connection.execute("PRAGMA cache_size=-16000")
        return SqliteWriter(
            connection,
            self._writers_lock(),
            self.epochs,
            self.clock,
            inbox_limit=self.inbox_limit,
            queue_limit=self.queue_limit,
            companions=self.companions,
            synchronous=self.durability == "full",
        )

    def reader(self) -> SqliteReader:
        connection = self._connect(apsw.SQLITE_OPEN_READONLY)
        connection.execute("PRAGMA query_only=1")
        return SqliteReader(connection, self.clock, inbox_limit=self.inbox_limit)

    def upkeep(self) -> SqliteUpkeep:
        connection = self._connect(apsw.SQLITE_OPEN_READWRITE)
        connection.execute("PRAGMA synchronous=FULL")
        connection.set_busy_timeout(0)  # with the writers' lock it waits for no reader: the next tick tries again
        return SqliteUpkeep(connection, self._writers_lock(), self.wal_bytes)

    def wal_bytes(self) -> int:
        """How much waits to be checkpointed."""
        try:
            return os.stat(f"{self.path}-wal").st_size
        except FileNotFoundError:
            return 0

    def _writers_lock(self) -> WritersLock:
        return WritersLock(self.lock_folder / "writers.lock")

    def _connect(self, flags: int) -> apsw.Connection:
        connection = apsw.Connection(str(self.path), flags=flags, statementcachesize=STATEMENTS)
        connection.set_busy_timeout(BUSY_TIMEOUT_MS)
        # What is bound changes no plan: else some statements are prepared anew each time.
        connection.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)
        return connection

    # ---- checking

    def check(self) -> None:
        """Refuse a damaged file. Reads only: neither the file nor its WAL is changed."""
        if not self.path.exists() or self.path.stat().st_size == 0:
            self._check_absence()
            return
        with self.path.open("rb") as file:
            if file.read(16) != _MAGIC:
                raise self._damaged("its first bytes are not SQLite's")
            page_bytes = max(int.from_bytes(file.read(2)), 512)
        if self.path.stat().st_size % page_bytes and not self.wal_bytes():
            raise self._damaged("it ends in the middle of a page")
        connection = self._connect(apsw.SQLITE_OPEN_READONLY)
        try:
            if self.path.stat().st_size <= CHECKED_WHOLE_BYTES:
                finding = connection.execute("PRAGMA quick_check(1)").fetchall()
            else:
                finding = _check_ends(connection)
        except (apsw.CorruptError, apsw.NotADBError, apsw.IOError) as error:
            raise self._damaged(str(error)) from None
        finally:
            connection.close()
        if finding != [("ok",)]:
            raise self._damaged(str(finding[0][0]))

    def _check_absence(self) -> None:
        """No file is a fresh start, unless its WAL is there: SQLite would throw that away. An empty file is a loss, too."""
        if self.wal_bytes():
            raise self._damaged("it is missing or empty, and its -wal file is not")
        with contextlib.closing(self._writers_lock()) as lock:
            if self.path.exists() and lock.last_seq:
                raise self._damaged(f"it is empty, and the log had reached seq {lock.last_seq}")

    def _damaged(self, finding: str) -> StoreDamaged:
        return StoreDamaged(
            f"{self.path} is damaged ({finding.splitlines()[-1][:200]}). Nothing was changed. Restore it from a copy, or"
            " move it away to begin an empty log; in both cases move its -wal file away, too."
        )

    # ---- migrating

    def _migrate(self, migrations: Sequence[tuple[str, Path]]) -> None:
        connection = self._connect(apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE)
        try:
            if self.path.stat().st_size == 0:
                # Before the first table: freed pages can then be given back in small steps.
                connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
            connection.execute("PRAGMA journal_mode=WAL")
            with _transaction(connection):
                connection.execute(
                    "CREATE TABLE IF NOT EXISTS migrations (owner TEXT, number INTEGER, checksum TEXT NOT NULL,"
                    " applied_at INTEGER NOT NULL, PRIMARY KEY (owner, number)) WITHOUT ROWID"
                )
                for owner, folder in migrations:
                    _migrate_one(connection, owner, folder)
                connection.execute("INSERT OR IGNORE INTO log_head VALUES (1, 0, 0, 0, 0, 0)")
        finally:
            connection.close()

    def _read_epochs(self, lock: WritersLock) -> Epochs:
        connection = self._connect(apsw.SQLITE_OPEN_READWRITE)
        try:
            with _transaction(connection):
                head = int(connection.execute("SELECT seq FROM log_head").get)
                lives = connection.execute("SELECT first_seq, epoch FROM epochs ORDER BY first_seq, epoch").fetchall()
                if not lives or head < lock.last_seq:
                    # A new life begins at the next seq; what was written before keeps its ids.
                    lives.append((head + 1, new_epoch(str(lives[-1][1]) if lives else "0")))
                    connection.execute("INSERT INTO epochs VALUES (?, ?)", lives[-1])
                    lock.note(head)
        finally:
            connection.close()
        return Epochs([(int(first), str(epoch)) for first, epoch in lives])  # type: ignore[arg-type]  # a NOT NULL integer


@contextmanager
def _transaction(connection: apsw.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _check_engine() -> None:
    version = tuple(int(part) for part in apsw.sqlite_lib_version().split("."))
    if version < OLDEST_ENGINE:
        raise StartRefused(
            f"SQLite {apsw.sqlite_lib_version()} can corrupt a log that several processes write; install the apsw wheel"
            f" of requirements.txt, which brings {'.'.join(map(str, OLDEST_ENGINE))} or newer."
        )


def _keep_private(path: Path) -> None:
    """Let nobody else read the log. SQLite gives its -wal and -shm files the mode of the file itself."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    for file in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
        with contextlib.suppress(FileNotFoundError, PermissionError):  # of another owner, who lets us write
            file.chmod(0o600)


def _check_file_system(folder: Path) -> None:
    real = str(folder.resolve())
    mounts = [
        m
        for m in psutil.disk_partitions(all=True)
        if real == m.mountpoint or real.startswith(m.mountpoint.rstrip("/") + "/")
    ]
    if not mounts:
        return
    mount = max(mounts, key=lambda m: len(m.mountpoint))
    if mount.fstype.lower() in NETWORK_FILE_SYSTEMS:
        raise StartRefused(
            f"{folder} is on a network file system ({mount.fstype}), where SQLite's locks can't be trusted; set DATA_DIR"
            " to a local disk."
        )


def _check_ends(connection: apsw.Connection) -> list[tuple[object, ...]]:
    for query in (
        "SELECT count(*) FROM sqlite_schema",
        "SELECT max(seq) FROM log_head",
        "SELECT sum(length(payload)) FROM (SELECT payload FROM messages ORDER BY seq LIMIT 10000)",
        "SELECT sum(length(payload)) FROM (SELECT payload FROM messages ORDER BY seq DESC LIMIT 10000)",
        "SELECT count(*) FROM clients",
    ):
        connection.execute(query).fetchall()
    return [("ok",)]


def _migrate_one(connection: apsw.Connection, owner: str, folder: Path) -> None:
    done: dict[Any, Any] = dict(connection.execute("SELECT number, checksum FROM migrations WHERE owner = ?", (owner,)))
    files = sorted(folder.glob("[0-9]*.sql"))
    known = {int(file.name.split("_")[0]): file for file in files}
    if newer := set(done) - set(known):
        raise StartRefused(
            f"The log was written by a newer version (migration {owner} {max(newer)} is unknown here); start that version."
        )
    for number, file in known.items():
        text = file.read_text(encoding="utf-8")
        checksum = hashlib.sha256(text.encode()).hexdigest()
        if number not in done:
            connection.execute(text)
            connection.execute("INSERT INTO migrations VALUES (?, ?, ?, ?)", (owner, number, checksum, now_us()))
        elif done[number] != checksum:
            raise StartRefused(
                f"Migration {owner} {number} was changed after it was applied to this log; restore the file as released."
            )
