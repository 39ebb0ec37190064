"""Copies of the embedded store: taken whole while the bus runs, and put in place of the log while it does not.

A copy is one read transaction of SQLite's (`VACUUM INTO`): what was acknowledged before it began is in it, and publishing
goes on beside it. While it is made the WAL can't be cut, so it grows by what is sent meanwhile.

A restored log begins a new epoch: what was sent after the copy is gone, its places will be given again, and every client
that has a cursor of that time is told so by a gap. What stood there before is set aside, never removed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import apsw
import msgspec

from bus.backplane.local import Slot
from bus.errors import StartRefused, StoreDamaged
from bus.message import new_epoch
from bus.storage.sqlite import WritersLock

MIGRATIONS = Path(__file__).parent / "migrations"
NAME = "bus-{}.db"
"""How copies in a folder are called, with the time in place of the braces."""

STAMP = "%Y%m%dT%H%M%S.%fZ"


class NoCopy(Exception):
    """There is nothing to copy, or no place for it. The text is one sentence for the operator."""


class Copy(msgspec.Struct, frozen=True):
    """What a copy holds: where it is, its last seq, how many messages, its epoch, its size."""

    path: Path
    seq: int
    messages: int
    epoch: str
    size_bytes: int


class Restored(msgspec.Struct, frozen=True):
    """The log that was put in place, and where the one before it went (None: there was none)."""

    copy: Copy
    epoch: str
    set_aside: Path | None


# ---- taking one


def back_up(database: Path, target: Path, *, replace: bool = False) -> Copy:
    """Write a copy of the log to `target`, a new file; it is there whole, checked and synced, or not at all.

    Raises NoCopy (also for a target that is there already, unless it is to be replaced) and StoreDamaged.
    """
    if not database.exists():
        raise NoCopy(f"There is no log at {database}; DATA_DIR or DATABASE_URL says where it is.")
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        _check_target(database, target, replace=replace)
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except OSError as error:
        raise NoCopy(f"{target} can't be written: {error.strerror}.") from None
    try:
        with _reading(database, in_use=True) as connection:
            connection.execute("VACUUM INTO ?", (str(part),))
        copy = inspect(part)
        _sync(part)
        part.replace(target)
        _sync(target.parent)
    except (apsw.FullError, apsw.IOError) as error:
        raise NoCopy(
            f"The copy could not be written: the disk of {target.parent} is full or fails ({error})."
        ) from None
    except (apsw.CorruptError, apsw.NotADBError) as error:
        raise StoreDamaged(f"{database} is damaged ({error}); nothing was written.") from None
    except apsw.Error as error:
        raise NoCopy(f"{database} can't be read ({error}); is this the bus's user?") from None
    except OSError as error:
        raise NoCopy(f"{target} can't be written: {error.strerror}.") from None
    finally:
        part.unlink(missing_ok=True)
    return msgspec.structs.replace(copy, path=target)


def _check_target(database: Path, target: Path, *, replace: bool) -> None:
    """Refuse what a copy must not take the place of. Raises NoCopy, OSError."""
    if not target.exists():
        return
    own = [path for path in (database, Path(f"{database}-wal"), Path(f"{database}-shm")) if path.exists()]
    if any(target.samefile(path) for path in own):
        raise NoCopy(f"{target} is the log itself; name another file.")
    if not target.is_file():
        raise NoCopy(f"{target} is no file that a copy could replace; name another.")
    if not replace:
        raise NoCopy(f"{target} is there already; name another file, or say --force.")


def back_up_into(database: Path, folder: Path, *, keep: int | None = None) -> tuple[Copy, list[Path]]:
    """Write a copy named by its time into a folder; with `keep`, remove the oldest of those beyond so many.

    Returns the copy, and what was removed. Raises as `back_up`.
    """
    copy = back_up(database, folder / NAME.format(datetime.now(UTC).strftime(STAMP)))
    old = sorted(folder.glob(NAME.format("[0-9]*Z")))[:-keep] if keep else []
    for path in old:
        path.unlink()
    return copy, old


def inspect(path: Path) -> Copy:
    """Look at a copy page by page. Raises NoCopy, StoreDamaged when it is not whole, StartRefused when it is too new."""
    if not path.is_file():
        raise NoCopy(f"There is no file {path}.")
    try:
        with _reading(path) as connection:
            (finding,) = connection.execute("PRAGMA quick_check(1)").fetchall()
            if finding != ("ok",):
                raise StoreDamaged(f"{path} is damaged ({str(finding[0]).splitlines()[-1]}); nothing was changed.")
            number = connection.execute("SELECT max(number) FROM migrations WHERE owner = 'core'").get
            seq = connection.execute("SELECT seq FROM log_head").get
            messages = connection.execute("SELECT count(*) FROM messages").get
            epoch = connection.execute("SELECT epoch FROM epochs ORDER BY first_seq DESC, epoch DESC LIMIT 1").get
    except (apsw.CorruptError, apsw.NotADBError, apsw.SQLError) as error:
        raise StoreDamaged(f"{path} is no copy of a log ({error}); nothing was changed.") from None
    if number > max(int(file.name.split("_")[0]) for file in MIGRATIONS.glob("[0-9]*.sql")):
        raise StartRefused(f"{path} was written by a newer version of the bus; restore it with that one.")
    return Copy(path, seq, messages, epoch, path.stat().st_size)


# ---- putting one in place


def restore(source: Path, database: Path, lock_folder: Path) -> Restored:
    """Put a copy in place of the log. Raises StartRefused while a server has the log open, and as `inspect`.

    Killed at any point, it leaves the old log, or the new one: which of them, the next start shows by its epoch.
    """
    done: list[Restored] = []

    def replace() -> None:
        done.append(_replace(source, database, lock_folder))

    slot = Slot(lock_folder, replace)
    slot.release()
    if not slot.alone:
        raise StartRefused(f"A server has {database} open; stop it first.")
    return done[0]


def _replace(source: Path, database: Path, lock_folder: Path) -> Restored:
    copy = inspect(source)
    draft = database.with_name(f"{database.name}.restoring")
    try:
        for leftover in (draft, Path(f"{draft}-wal"), Path(f"{draft}-shm")):
            leftover.unlink(missing_ok=True)
        os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        with _reading(source) as connection:
            connection.execute("VACUUM INTO ?", (str(draft),))
        epoch = new_epoch(copy.epoch)
        with contextlib.closing(apsw.Connection(str(draft), flags=apsw.SQLITE_OPEN_READWRITE)) as connection:
            connection.execute("PRAGMA journal_mode=DELETE")
            connection.execute("INSERT INTO epochs VALUES (?, ?)", (copy.seq + 1, epoch))
        _sync(draft)
        set_aside = _set_aside(database)
        draft.replace(database)
        _sync(database.parent)
    except (apsw.Error, OSError) as error:
        draft.unlink(missing_ok=True)
        raise StartRefused(
            f"{database} could not be replaced ({error}); make room on its disk, or see to its owner."
        ) from None
    with contextlib.closing(WritersLock(lock_folder / "writers.lock")) as lock, lock:
        lock.note(copy.seq)
    return Restored(copy, epoch, set_aside)


def _set_aside(database: Path) -> Path | None:
    """Give the present log another name. Its own stays until the new one takes it: there is no moment without a log.

    The WAL goes first, since its pages would be taken for the new file's.
    """
    if not database.exists():
        return None
    aside = database.with_name(f"{database.name}.before-{datetime.now(UTC).strftime(STAMP)}")
    wal = Path(f"{database}-wal")
    if wal.exists():
        wal.replace(f"{aside}-wal")
    Path(f"{database}-shm").unlink(missing_ok=True)
    os.link(database, aside)
    return aside


@contextlib.contextmanager
def _reading(path: Path, *, in_use: bool = False) -> Iterator[apsw.Connection]:
    """A log or a copy, with its WAL. One that is not in use and has none is read alone: its disk may be read-only."""
    flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
    alone = "" if in_use or Path(f"{path}-wal").exists() else "?immutable=1"
    with contextlib.closing(apsw.Connection(path.absolute().as_uri() + alone, flags=flags)) as connection:
        connection.set_busy_timeout(10_000)
        yield connection


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
