"""The archive: what is about to go, as compressed JSON lines in a folder, durable before anything is removed.

A file is written under a draft's name, synced, renamed, and its folder synced. Its row in the catalogue (the table
`archives`) follows, and only then the removal (bus.retention.archiver).
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from bus.message import OWN_ID, Epochs, Kind, Message, Names, parse_address, render
from bus.storage import Reader

SUFFIX = ".jsonl.gz"
DRAFT = ".draft"
UNREADABLE = (FileNotFoundError, gzip.BadGzipFile, EOFError, zlib.error, msgspec.DecodeError)
"""What `Folder.read` raises for a file that is gone, or damaged, or none of ours."""


class Archived(msgspec.Struct, omit_defaults=True):
    """A line. `message` is what its recipients got; `extras` and `flags` are what it takes to restore it."""

    archived_at: str
    reason: str
    message: msgspec.Raw
    seq: int = 0
    flags: int = 0
    extras: str = ""


class _Shown(msgspec.Struct):
    """What of an archived message is looked at."""

    id: str
    to: str | list[str]
    sender: str = msgspec.field(name="from")
    type: str = ""
    payload: msgspec.Raw = msgspec.Raw(b"null")
    timestamp: str = ""


_line = msgspec.json.Decoder(Archived).decode
_shown = msgspec.json.Decoder(_Shown).decode


def line_of(message: Message, epochs: Epochs, reason: str, archived_at: str) -> bytes:
    """A message as a line of the archive."""
    return msgspec.json.encode(
        Archived(
            archived_at,
            reason,
            msgspec.Raw(render(message, epochs)),
            message.seq,
            message.flags,
            message.extras.decode(),
        )
    )


def shown(entry: Archived) -> _Shown:
    """What an archived message says."""
    return _shown(entry.message)


def restored(entry: Archived, to: str | None) -> Message:
    """An archived message on its way back: with its id, and a new place in the log; `to` sends it elsewhere."""
    said = shown(entry)
    names = Names()
    kind, address, recipients = parse_address(to if to is not None else said.to, names)
    mark = b',"restored":true'
    extras = entry.extras.encode()
    return Message(
        kind,
        address,
        recipients,
        said.sender,
        said.type,
        bytes(said.payload),
        0,
        (entry.flags if to is None or kind == Kind.QUEUE else entry.flags & ~1) | OWN_ID,
        extras=extras if mark in extras else extras + mark,
        own_id=said.id,
    )


class Folder:
    """Files of lines. Its methods block on the disk: call them on a thread that may."""

    def __init__(self, path: Path) -> None:
        """Opens and makes nothing yet."""
        self.path = path

    def write(self, name: str, lines: Iterable[bytes]) -> int:
        """Write a file, durable when this returns. Its size in bytes. The same name replaces the file."""
        self.begin(name)
        self.add(name, lines)
        return self.finish(name)

    def begin(self, name: str) -> None:
        """Begin a draft."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = self.path / f"{name}{DRAFT}"
        draft.write_bytes(b"")
        draft.chmod(0o600)

    def add(self, name: str, lines: Iterable[bytes]) -> None:
        """Add lines to a draft: a member of its own in the file, as gzip has it."""
        with (self.path / f"{name}{DRAFT}").open("ab") as file:
            file.write(gzip.compress(b"".join(line + b"\n" for line in lines), compresslevel=3, mtime=0))

    def finish(self, name: str) -> int:
        """Make a draft a file, durable when this returns. Its size in bytes."""
        draft = self.path / f"{name}{DRAFT}"
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        size = draft.stat().st_size
        draft.replace(self.path / f"{name}{SUFFIX}")
        folder = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return size

    def read(self, name: str) -> Iterator[Archived]:
        """The lines of a file, in order. Raises one of UNREADABLE."""
        with gzip.open(self.path / f"{name}{SUFFIX}", "rb") as file:
            for line in file:
                yield _line(line)

    def names(self) -> list[str]:
        """The files there are, by name."""
        if not self.path.is_dir():
            return []
        return sorted(file.name.removesuffix(SUFFIX) for file in self.path.glob(f"*{SUFFIX}"))

    def has(self, name: str) -> bool:
        """True when the file is here."""
        return (self.path / f"{name}{SUFFIX}").exists()

    def forget(self, name: str) -> None:
        """Remove a file; one that is gone already is no error."""
        (self.path / f"{name}{SUFFIX}").unlink(missing_ok=True)

    def clear_drafts(self) -> None:
        """Remove what was begun, and never finished."""
        for draft in self.path.glob(f"*{DRAFT}"):
            draft.unlink(missing_ok=True)


class Entry(msgspec.Struct):
    """A file of the catalogue. Times in microseconds; `first` and `last` are of the messages' own."""

    number: int
    file: str
    reason: str
    messages: int
    bytes: int
    first_us: int
    last_us: int
    made_us: int
    complete: bool


_ENTRY = "number, file, reason, messages, bytes, first_stamp, last_stamp, made_at, complete"


def entries(source: Any, where: str, bindings: tuple[Any, ...]) -> list[Entry]:
    """Rows of the catalogue. `source` is a reader or a transaction."""
    rows = source.execute(f"SELECT {_ENTRY} FROM archives WHERE {where}", bindings)
    return [Entry(*(*row[:8], bool(row[8]))) for row in rows]


def page(reader: Reader, after: int, limit: int, since_us: int | None, until_us: int | None) -> list[Entry]:
    """Files behind number `after` that may hold messages of a time."""
    return entries(
        reader,
        "number > ?1 AND (last_stamp >= ?3 OR ?3 IS NULL) AND (first_stamp <= ?4 OR ?4 IS NULL) ORDER BY number LIMIT ?2",
        (after, limit, since_us, until_us),
    )
