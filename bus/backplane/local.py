"""The backplane of one machine: worker processes in a mesh of Unix stream sockets.

Each worker owns a slot (a file lock, freed by the kernel when it dies) and listens at `<slot>.sock` in a private
folder under the system's temporary directory: socket paths end at 107 bytes, and data folders can be deep. It dials
every neighbour and only writes on those links; what others say comes in on the links that they dialled. Frames are a
4-byte length and a msgpack array. Nothing blocks: a neighbour that does not keep up loses rows, and gets "the log
reaches n" when there is room again.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import secrets
import shutil
import socket
import struct
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
import msgspec
from gevent.monkey import get_original

from bus.backplane import Neighbours, Presence
from bus.backplane.frames import (
    BLOCK,
    EPHEMERAL,
    HELLO,
    HINT,
    NOTE,
    PRESENCE,
    TOPICS,
    block,
    decode,
    encode,
    pack,
    unpack,
)
from bus.counters import MAX_SLOTS
from bus.errors import StartRefused
from bus.message import Message
from bus.nodes.leases import try_exclusive
from bus.topics import TopicIndex

log = logging.getLogger("bus.backplane")

MAX_UNSENT_BYTES = 8 * 1024 * 1024
"""What may wait for one neighbour; past it, rows are left out and it reads the store."""

LOOK_OUT_SECONDS = 1.0
"""How often the folder is searched for neighbours that are not linked yet."""

_Socket = get_original("socket", "socket")  # gevent's would wait for a greenlet; these never block
_READ, _WRITE = 1, 2
_LENGTH = struct.Struct("!I")


class Slot:
    """A worker's number, held by a file lock until the process ends.

    `alone`: no other slot was held; then `when_alone()` ran while nobody else could take one. `sockets` is the folder of
    the mesh's sockets, made by the first and noted for the others.
    """

    def __init__(self, folder: Path, when_alone: Callable[[], None]) -> None:
        """Take the lowest free slot. Raises StartRefused when there is none, or the neighbours can't be reached."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self.number = -1
        self.alone = True
        self._descriptor = -1
        with self._gate():
            for number in range(MAX_SLOTS):
                path = folder / f"slot-{number}.lock"
                if self.number >= 0 and not path.exists():
                    continue
                descriptor = try_exclusive(path)
                if descriptor is None:
                    self.alone = False
                elif self.number < 0:
                    self.number, self._descriptor = number, descriptor
                else:
                    os.close(descriptor)
            if self.number < 0:
                raise StartRefused(f"{MAX_SLOTS} worker processes already share this log; stop one of them first.")
            if self.alone:
                try:
                    when_alone()
                except BaseException:
                    os.close(self._descriptor)  # or the next in line would not be alone, and take all for done
                    raise
            self.sockets = _socket_folder(folder, self.alone)

    def release(self) -> None:
        """Give it back. The last one out removes the sockets' folder."""
        os.close(self._descriptor)
        with self._gate():
            for path in self._folder.glob("slot-*.lock"):
                descriptor = try_exclusive(path)
                if descriptor is None:
                    return
                os.close(descriptor)
            shutil.rmtree(self.sockets, ignore_errors=True)

    @contextmanager
    def _gate(self) -> Iterator[None]:
        """One process at a time: slots are looked at as a whole."""
        with open(self._folder / "slots.lock", "w") as gate:
            fcntl.flock(gate, fcntl.LOCK_EX)
            yield


class LocalBackplane:
    """See `bus.backplane.Backplane`. `_links` are outgoing, by slot.

    `_present` is what each neighbour has connected, and `_topics` what those connections, by number, subscribed to.
    """

    def __init__(self, slot: Slot) -> None:
        self.slot = self.number = slot.number
        self.alone = slot.alone
        self._folder = slot.sockets
        # A name for this process's life, so that a successor in the slot is never taken for it.
        self._token = secrets.token_hex(4)
        self._links: dict[int, _Link] = {}
        self._incoming: set[_Incoming] = set()
        self._present: dict[int, dict[str, Presence]] = {}
        self._topics: dict[int, TopicIndex[int]] = {}
        self._neighbours: Neighbours | None = None
        self._hearers: dict[str, Callable[[int, list[Any]], None]] = {}  # by what a note is about
        self._listener: Any = None
        self._watcher: Any = None
        self._look_out = gevent.get_hub().loop.timer(0, LOOK_OUT_SECONDS)

    @property
    def size(self) -> int:
        return 1 + len(self._links)

    def start(self, neighbours: Neighbours) -> None:
        """Listen, and dial everybody who is there, now and from time to time."""
        self._neighbours = neighbours
        listener = _Socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.setblocking(False)
        path = self._folder / f"{self.slot}.{self._token}.sock"
        hidden = path.with_suffix(".new")  # a neighbour that dials before we listen would take us for dead
        try:
            listener.bind(str(hidden))
            listener.listen(MAX_SLOTS)
            hidden.rename(path)
        except OSError as error:
            listener.close()
            raise StartRefused(
                f"The socket of this worker can't be made in {path.parent} ({error}); set TMPDIR to a folder with a shorter"
                " name that this user may write."
            ) from None
        self._listener = listener
        self._watcher = gevent.get_hub().loop.io(listener.fileno(), _READ)
        self._watcher.start(self._accept)
        self._look_out.start(self._dial_all)

    def stop(self) -> None:
        self._look_out.stop()
        if self._watcher is not None:
            self._watcher.stop()
            self._watcher.close()
            self._listener.close()
            (self._folder / f"{self.slot}.{self._token}.sock").unlink(missing_ok=True)
        for link in self._links.values():
            link.close()
        for incoming in self._incoming:
            incoming.close()
        self._links.clear()

    # ---- telling

    def share(self, first: int, last: int, messages: list[Message]) -> None:
        if not self._links:
            return
        self.share_encoded(block(first, last, messages), last)

    def share_encoded(self, body: bytes, last: int) -> None:
        """As `share`, of a frame that is made already."""
        frame = _LENGTH.pack(len(body)) + body
        for link in tuple(self._links.values()):
            link.send_rows(frame, last)

    def share_ephemeral(self, message: Message) -> None:
        if self._links:
            frame = _frame([EPHEMERAL, pack(message)])
            for link in tuple(self._links.values()):
                link.send_if_room(frame)

    def announce(self, presence: Presence) -> None:
        if self._links:
            frame = _frame([PRESENCE, presence])
            for link in tuple(self._links.values()):
                link.send(frame)

    def note(self, note: list[Any]) -> None:
        if self._links:
            frame = _frame([NOTE, note])
            for link in tuple(self._links.values()):
                link.send(frame)

    def hear(self, kind: str, handler: Callable[[int, list[Any]], None]) -> None:
        self._hearers[kind] = handler

    def neighbours(self) -> list[int]:
        return sorted(self._links)

    def here(self) -> list[int]:
        return sorted([self.slot, *self._links])

    def announce_topics(self, number: int, patterns: Collection[str], *, added: bool) -> None:
        if self._links:
            frame = _frame([TOPICS, number, tuple(patterns), added])
            for link in tuple(self._links.values()):
                link.send(frame)

    # ---- knowing

    def live(self, name: str) -> bool:
        return bool(self._present) and any(name in present and present[name].live for present in self._present.values())

    def elsewhere(self) -> Iterable[Presence]:
        for present in self._present.values():
            yield from present.values()

    def subscribers(self, topic: str) -> int:
        return sum(len(index.match(topic)) for index in self._topics.values())

    # ---- links

    def _accept(self) -> None:
        try:
            peer, _ = self._listener.accept()
        except BlockingIOError:
            return
        if _peer_uid(peer) not in (os.getuid(), 0):
            peer.close()
            log.warning("A stranger dialled the worker mesh", extra={"action": "mesh_refused"})
            return
        self._incoming.add(_Incoming(peer.detach(), self._hear, self._hung_up))

    def _dial_all(self) -> None:
        for path in self._folder.glob("*.sock"):
            slot, token, _ = path.name.split(".")
            if token != self._token:
                self._dial(int(slot), token)

    def _dial(self, slot: int, token: str) -> None:
        former = self._links.get(slot)
        if former is not None:
            if former.token == token:
                return
            former.close()
        plain = _Socket(socket.AF_UNIX, socket.SOCK_STREAM)
        plain.setblocking(False)
        path = self._folder / f"{slot}.{token}.sock"
        error = plain.connect_ex(str(path))
        if error:
            plain.close()
            self._links.pop(slot, None)
            if error == errno.ECONNREFUSED:
                path.unlink(missing_ok=True)  # its owner died
            return
        link = _Link(plain.detach(), token, lambda: self._links.pop(slot, None))
        self._links[slot] = link
        link.send(_frame([HELLO, self.slot, self._token]))
        assert self._neighbours is not None
        for presence in self._neighbours.snapshot():
            link.send(_frame([PRESENCE, presence]))
        for note in self._neighbours.notes():
            link.send(_frame([NOTE, note]))
        for number, patterns in self._neighbours.subscriptions():
            link.send(_frame([TOPICS, number, tuple(patterns), True]))

    def _hung_up(self, incoming: _Incoming) -> None:
        """A neighbour's link to us ended: it is gone, and its connections with it."""
        self._incoming.discard(incoming)
        link = self._links.get(incoming.slot)
        if link is None or link.token == incoming.token:
            self._present.pop(incoming.slot, None)
            self._topics.pop(incoming.slot, None)
            assert self._neighbours is not None
            self._neighbours.left(incoming.slot)
        if link is not None and link.token == incoming.token:
            del self._links[incoming.slot]
            link.close()

    def _hear(self, incoming: _Incoming, frame: list[Any]) -> None:
        neighbours = self._neighbours
        assert neighbours is not None
        kind = frame[0]
        if kind == BLOCK:
            neighbours.block(frame[1], frame[2], [unpack(packed) for packed in frame[3]])
        elif kind == EPHEMERAL:
            neighbours.ephemeral(unpack(frame[1]))
        elif kind == HINT:
            neighbours.hint(frame[1])
        elif kind == PRESENCE:
            presence = msgspec.convert(frame[1], Presence)
            present = self._present.setdefault(incoming.slot, {})
            if presence.connections:
                present[presence.name] = presence
            else:
                present.pop(presence.name, None)
        elif kind == NOTE:
            note = frame[1]
            self._hearers.get(note[0], neighbours.noted)(incoming.slot, note)
        elif kind == TOPICS:
            _, number, patterns, added = frame
            index = self._topics.setdefault(incoming.slot, TopicIndex())
            for pattern in patterns:
                (index.add if added else index.discard)(pattern, number)
        elif kind == HELLO:
            _, incoming.slot, incoming.token = frame
            self._present[incoming.slot] = {}
            self._topics[incoming.slot] = TopicIndex()
            neighbours.left(incoming.slot)  # whoever had the slot before, if its end was not heard yet
            self._dial(incoming.slot, incoming.token)


class _End:
    """One end of a link: a descriptor and the loop's watcher of it."""

    descriptor: int
    _watcher: Any

    def close(self) -> None:
        """Idempotent."""
        if self.descriptor >= 0:
            self._watcher.stop()
            self._watcher.close()
            os.close(self.descriptor)
            self.descriptor = -1


class _Link(_End):
    """Our way to one neighbour. Writes only."""

    def __init__(self, descriptor: int, token: str, closed: Callable[[], object]) -> None:
        self.descriptor = descriptor
        self.token = token
        self._closed = closed
        self._unsent = bytearray()
        self._owed_head = 0
        self._watcher = gevent.get_hub().loop.io(descriptor, _WRITE)

    def send(self, frame: bytes) -> None:
        """Queue a frame whatever waits already: presence has to arrive."""
        if self.descriptor < 0:
            return
        if self._unsent:
            self._unsent += frame
            return
        written = self._write(frame)
        if 0 <= written < len(frame):
            self._unsent += memoryview(frame)[written:]
            self._watcher.start(self._writable)

    def send_rows(self, frame: bytes, last: int) -> None:
        """Send rows, or remember that the neighbour has to read the store up to `last`."""
        if len(self._unsent) > MAX_UNSENT_BYTES:
            self._owed_head = last
        else:
            self.send(frame)

    def send_if_room(self, frame: bytes) -> None:
        if len(self._unsent) <= MAX_UNSENT_BYTES:
            self.send(frame)

    def _write(self, data: bytes | bytearray) -> int:
        try:
            return os.write(self.descriptor, data)
        except BlockingIOError:
            return 0
        except OSError:
            self.close()
            self._closed()
            return -1

    def _writable(self) -> None:
        written = self._write(self._unsent)
        if written < 0:
            return
        del self._unsent[:written]
        if not self._unsent:
            self._watcher.stop()
            if self._owed_head:
                head, self._owed_head = self._owed_head, 0
                self.send(_frame([HINT, head]))


class _Incoming(_End):
    """A neighbour's way to us. Reads only. `slot` and `token` are known from its hello on."""

    def __init__(
        self, descriptor: int, hear: Callable[[_Incoming, list[Any]], None], hung_up: Callable[[_Incoming], None]
    ) -> None:
        os.set_blocking(descriptor, False)
        self.descriptor = descriptor
        self.slot = -1
        self.token = ""  # nosec B105
        self._hear = hear
        self._hung_up = hung_up
        self._buffer = bytearray()
        self._watcher = gevent.get_hub().loop.io(descriptor, _READ)
        self._watcher.start(self._readable)

    def _readable(self) -> None:
        try:
            data = os.read(self.descriptor, 1024 * 1024)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            self._hung_up(self)
            return
        buffer = self._buffer
        buffer += data
        offset = 0
        while len(buffer) - offset >= 4:
            (length,) = _LENGTH.unpack_from(buffer, offset)
            if len(buffer) - offset - 4 < length:
                break
            frame = bytes(memoryview(buffer)[offset + 4 : offset + 4 + length])
            offset += 4 + length
            self._hear(self, decode(frame))
        del buffer[:offset]


def _frame(content: object) -> bytes:
    body = encode(content)
    return _LENGTH.pack(len(body)) + body


def _peer_uid(peer: Any) -> int:
    """Who is at the other end, from the kernel."""
    if not hasattr(socket, "SO_PEERCRED"):
        return os.getuid()  # the folder's mode is what protects it there
    _, uid, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(uid)


def _socket_folder(folder: Path, alone: bool) -> Path:
    """The private folder of the sockets. The first worker makes it and notes its path; the others read the note."""
    note = folder / "sockets"
    if alone:
        if note.exists():
            old = Path(note.read_text().strip())
            if old.name.startswith("agent-bus-") and old.is_dir() and old.stat().st_uid == os.getuid():
                shutil.rmtree(old, ignore_errors=True)
        made = Path(tempfile.mkdtemp(prefix="agent-bus-"))
        draft = folder / "sockets.new"
        draft.write_text(str(made))
        draft.replace(note)
        return made
    sockets = Path(note.read_text().strip())
    if not sockets.is_dir():
        raise StartRefused(
            f"Another server has this log open, and its workers' sockets ({sockets}) can't be reached from here; run"
            " both with the same temporary directory, or stop the other."
        )
    return sockets
