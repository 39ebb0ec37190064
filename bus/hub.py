"""Who listens on this process, and the fan-out to them.

Messages come in seq order from the tail and wait for the end of the turn of the event loop; then each room's frames
are joined once, and the same bytes are written to every connection of it. A connection is born lagging at its cursor,
is fed from the store, and turns live in the turn in which it equals the tail: one path for joining, resuming and
slow readers. A room is one client's connections; `all` reaches every room. Topics reach connections (bus.audience).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence, Set
from functools import partial
from typing import Any

import gevent
from gevent.event import Event

from bus.audience import Audience, by_seq
from bus.chunks import Chunk, joined
from bus.connection import Connection, Encoding
from bus.cursors import Cursors
from bus.listener import Listener
from bus.message import REQUIRES_ACK, Epochs, Kind, Message, correlation_of, is_for, set_apart, texts_of
from bus.pace import WIDE_CONNECTIONS, Pace
from bus.recent import Recent
from bus.room import Room
from bus.storage import Page, Reader
from bus.tail import Tail
from bus.threads import WorkerPool
from bus.topics import TopicSet
from bus.waiters import Waiters, answer_to
from bus.written import BLANK_LINE, Written

PAGE_MESSAGES, PAGE_BYTES = 500, 512 * 1024

PING_GAP_SECONDS = 0.25
"""A message takes a ping along unless one went so shortly before: a client that reads it and leaves has confirmed it."""

TAIL_WAIT_SECONDS = 0.002
"""How soon to look again whether the tail has come as far as a connection that was ahead of it."""

NOBODY: Set[Connection] = frozenset()


class Hub:
    """Event loop only. Costs grow with deliveries and bytes, never with the messages kept or the clients known."""

    def __init__(
        self, epochs: Epochs, readers: WorkerPool, cursors: Cursors, listener: Listener, audience: Audience
    ) -> None:
        self._audience = audience
        self.epochs = epochs
        self._readers = readers
        self._cursors = cursors
        self._listener = listener
        self._loop = gevent.get_hub().loop
        self.tail = Tail(readers, self._tailed, self._skipped)
        self.rooms: dict[str, Room] = {}
        self.connections: set[Connection] = set()  # all open ones, also those that did not join yet
        self.now = time.monotonic()
        self.written = Written()
        self._sent = self.written.messages
        self._everybody: list[Message] = []  # this turn's messages to `all`
        self._due_rooms: list[Room] = []  # rooms with something due this turn, each once
        self._touched: list[Connection] = []  # connections with replies this turn, each once
        self._kicked = False
        self._is_kept_due = False
        self._pace = Pace(self.flush, listener.is_committing)
        self.last_to_all = 0
        self._recent = Recent()
        self._waiters = Waiters()
        self._interest = 0
        self._timers: set[Any] = set()

    # ---- fan-out

    def _tailed(self, messages: Sequence[Message]) -> None:
        self._recent.keep(messages)
        self._is_kept_due = True
        self.deliver(messages)

    def deliver(self, messages: Sequence[Message]) -> None:
        """Queue messages for the end of this turn. Durable ones come from the tail, in seq order."""
        rooms, due_rooms, waiters = self.rooms, self._due_rooms, bool(self._waiters)
        for message in messages:
            names = message.names
            if not names:  # asked first: what has a name needs no look at its kind, which takes longer
                if message.kind == Kind.ALL:
                    self._everybody.append(message)
                    self._waiters.wake_all()
                    continue
                if message.kind == Kind.TOPIC:
                    self._audience.hear(message)
                    continue
            if message.flags & REQUIRES_ACK:
                self._listener.tracked(message)
                names = message.leased_to or ()
            for name in names:
                room = rooms.get(name)
                if room is not None:
                    if not room.due:
                        due_rooms.append(room)
                    room.due.append(message)
            if waiters:
                for name in message.names:
                    self._waiters.wake(name)
                if (correlation_id := correlation_of(message)) is not None:
                    self._waiters.wake(answer_to(correlation_id))
        self.kick()

    def push(self, name: str, texts: list[bytes]) -> None:
        """Write rendered messages to every live connection of a client, now and in this order."""
        room = self.rooms.get(name)
        for connection in [c for members in room.members.values() for c in members] if room is not None else ():
            self.push_to(connection, texts)

    def push_to(self, connection: Connection, texts: list[bytes]) -> int:
        """As `push`, to one connection. What came by the tail before goes first. Returns how many were written or held."""
        self.flush()
        if not connection.live or connection.closing:
            return 0
        for data, count, start in joined([connection.encoding.leased(text) for text in texts]):
            if connection.descriptor < 0:
                return start
            if not connection.has_room(len(data), count):
                self._fall_behind(connection, [])
                return start
            connection.write(data, count)
            self.written.count(connection.encoding, data, count)
        return len(texts)

    def kick(self) -> None:
        """Have what is due written at the end of this turn of the loop."""
        if not self._kicked:
            self._kicked = True
            self._loop.run_callback(self._end_turn)

    def commit_ended(self) -> None:
        """A commit of this process has ended, and what it brought is due."""
        if self._pace.commit_ended():
            self.kick()

    def touch(self, connection: Connection) -> None:
        """A connection has replies waiting for the end of the turn."""
        self._touched.append(connection)
        self.kick()

    def _end_turn(self) -> None:
        if self._pace.waits(wide=self._is_wide()):
            self._kicked = False
            self._answer()
        else:
            self.flush()

    def _is_wide(self) -> bool:
        """True when what is due is in the log, and for many connections."""
        if not self._is_kept_due:
            return False
        if self._everybody or self._audience.due:
            return len(self.connections) >= WIDE_CONNECTIONS
        return sum(room.size for room in self._due_rooms[:WIDE_CONNECTIONS]) >= WIDE_CONNECTIONS

    def flush(self) -> None:
        """Write everything that is due: one write a connection."""
        self._kicked = False
        wide = self._is_wide()
        self._is_kept_due = False
        self.now = time.monotonic()
        rooms, self._due_rooms = self._due_rooms, []
        everybody, self._everybody = self._everybody, []
        served = self._push_topics(everybody) if self._audience.due else NOBODY
        if everybody:
            self._push_to_all(everybody, served)
        else:
            for room in rooms:
                due, room.due = room.due, []
                self._push(room, due, {}, served)
        self._pace.flushed(wide=wide)
        self._answer()

    def _answer(self) -> None:
        """Write the replies of this turn, and hand over what it gathered."""
        touched, self._touched = self._touched, []
        for connection in touched:
            if connection.replies is not None:
                data = b"".join(connection.replies)
                connection.replies = None
                connection.write(data, 0)
        self._listener.turn_ended()

    def _push_topics(self, everybody: list[Message]) -> set[Connection]:
        """Give those who hear a topic all that they are due. Returns them: they are served."""
        served: set[Connection] = set()
        for encoding, members, due in self._audience.shares(everybody):
            served.update(members)
            self._write(members, self._chunks(encoding, due), due)
            last = _last_seq(due)
            for room in [connection.room for connection in members if last and encoding.keeps_place]:
                if room is not None:
                    room.last_seq = max(last, room.last_seq)
                    self._cursors.mark(room.name, room.last_seq)
        return served

    def _push_to_all(self, everybody: list[Message], served: Set[Connection]) -> None:
        """Rooms that only owe what everybody owes share their bytes; senders and rooms with mail of their own do not."""
        apart = set_apart(everybody)
        self.last_to_all = max(_last_seq(everybody), self.last_to_all)
        shared: dict[Encoding, list[Chunk]] = {}
        for room in tuple(self.rooms.values()):
            due, room.due = room.due, []
            if due or room.name in apart:
                due = due + [message for message in everybody if is_for(message, room.name)]
                due.sort(key=by_seq)
                if due:
                    self._push(room, due, {}, served)
            else:
                self._push(room, everybody, shared, served)

    def _push(
        self, room: Room, due: list[Message], shared: dict[Encoding, list[Chunk]], served: Set[Connection]
    ) -> None:
        room.last_seq = max(_last_seq(due), room.last_seq)
        if room.lagging:
            ephemeral = sum(1 for message in due if not message.seq)
            for connection in room.lagging - served if ephemeral else ():
                connection.dropped += ephemeral
        pushed = False
        for encoding, live in room.members.items():
            members = tuple(live) if not served else tuple(c for c in live if c not in served)
            if not members:
                continue
            pushed = pushed or encoding.keeps_place
            chunks = shared.get(encoding)
            if chunks is None:
                chunks = shared[encoding] = self._chunks(encoding, due)
            self._write(members, chunks, due)
        if pushed and room.last_seq:
            self._cursors.mark(room.name, room.last_seq)

    def _chunks(self, encoding: Encoding, due: list[Message]) -> list[Chunk]:
        return joined(encoding.messages(due, texts_of(due, self.epochs)))

    def _write(self, members: tuple[Connection, ...], chunks: list[Chunk], due: list[Message]) -> None:
        if len(chunks) == 1:
            if chunks[0][0]:
                self._write_one(members, chunks[0], due)
        else:
            self._write_many(members, chunks, due)
        if self.now >= self.written.next_look:
            self.written.look(members[0].encoding, due)

    def _write_one(self, members: tuple[Connection, ...], chunk: Chunk, due: list[Message]) -> None:
        """The hot path: one chunk, and mostly connections that keep up. A ping rides along now and then."""
        data, count, _ = chunk
        now = self.now
        delivered = self.tail.delivered
        encoding = members[0].encoding
        ping = encoding.ping(delivered)
        write = os.write
        reached = len(members)
        for connection in members:
            if connection.held is not None:
                reached -= 1
                self._write_many((connection,), [chunk], due)
                continue
            out = data
            if connection.replies is not None:
                out = b"".join(connection.replies) + out
                connection.replies = None
            if now - connection.last_ping > PING_GAP_SECONDS:
                out += ping
                connection.last_ping = now
                connection.pinged = delivered
            try:
                written = write(connection.descriptor, out)
            except BlockingIOError:
                written = 0
            except OSError:
                reached -= 1
                connection.lose()
                continue
            if written != len(out):
                connection.hold_rest(out, written, count)
        self._sent[encoding.name] += reached * (count if encoding.takes_messages else data.count(BLANK_LINE))

    def _write_many(self, members: tuple[Connection, ...], chunks: list[Chunk], due: list[Message]) -> None:
        for connection in members:
            for data, count, start in chunks:
                if connection.descriptor < 0:
                    break
                if not connection.has_room(len(data), count):
                    self._fall_behind(connection, due[start:])
                    break
                connection.write(data, count)
                self.written.count(connection.encoding, data, count)

    # ---- joining, lagging, leaving

    def join(self, connection: Connection, start: int) -> None:
        """Take in a connection whose reader has everything up to `start`; it is fed from the store, then turns live."""
        room = self.rooms.get(connection.client)
        if room is None:
            room = self.rooms[connection.client] = Room(connection.client)
            self.tail.anybody = True
        connection.room = room
        connection.position = connection.pinged = connection.confirmed = start
        room.size += 1
        room.lagging.add(connection)
        connection.joined = True
        self._audience.enter(connection)
        self._listener.presence_changed(room)
        if start == self.tail.delivered:
            self._turn_live(connection)
        else:
            self.feed(connection)

    def feed(self, connection: Connection) -> None:
        """Read the next page for a lagging connection, one at a time; never past the tail, which brings the rest."""
        if connection.feeding or connection.closing or connection.descriptor < 0:
            return
        client, topics = connection.client, connection.topics
        after, upto = connection.position, self.tail.delivered
        if after > upto:
            # It has seen more elsewhere than this process's tail has: live now, it would see that again.
            self.tail.hint(after)
            self.later(TAIL_WAIT_SECONDS, partial(self.feed, connection))
            return
        connection.feeding = True

        def job(reader: Reader) -> Page:
            return reader.inbox(client, after, upto, PAGE_MESSAGES, PAGE_BYTES, topics=topics)

        self._readers.submit(job, partial(self._fed, connection))

    def _fed(self, connection: Connection, page: Page, error: BaseException | None) -> None:
        connection.feeding = False
        if connection.descriptor < 0 or connection.closing:
            return
        if error is not None:
            connection.close(1011, "The log could not be read.")
            return
        self._write_page(connection, page.messages, page.upto)
        if connection.descriptor < 0 or connection.held is not None:
            return  # it goes on when the queue is empty
        if page.more or not self._catch_up(connection):
            self.feed(connection)

    def _write_page(self, connection: Connection, messages: list[Message], upto: int) -> None:
        for data, count, _ in self._chunks(connection.encoding, messages) if messages else ():
            if data:
                connection.write(data, count)
                self.written.count(connection.encoding, data, count)
        connection.position = upto
        if messages and connection.encoding.keeps_place:
            self._cursors.mark(connection.client, upto)
            if connection.room is not None:  # it owes a ping for these, also when it is live by then
                connection.room.last_seq = max(messages[-1].seq, connection.room.last_seq)

    def _catch_up(self, connection: Connection) -> bool:
        """Turn live if what is missing is nothing, or still at hand. False: the store has to be asked again."""
        self.flush()
        delivered = self.tail.delivered
        if connection.position < delivered:
            missed = self._recent.missed(connection, PAGE_BYTES)
            if missed is None:
                return False
            self._write_page(connection, missed, delivered)
        if connection.descriptor >= 0 and connection.held is None:
            self._turn_live(connection)
        return True

    def _turn_live(self, connection: Connection) -> None:
        self.flush()
        room = connection.room
        if room is None or connection.descriptor < 0:
            return
        if connection.position != self.tail.delivered:
            self.feed(connection)
            return
        connection.live = True
        room.enter(connection)
        if connection.dropped:
            connection.reply(b'{"type":"dropped","n":%d}' % connection.dropped)
            connection.dropped = 0
        self._listener.presence_changed(room)
        self._listener.turned_live(connection)

    def _fall_behind(self, connection: Connection, missed: list[Message]) -> None:
        """Leave it out from `missed` on: the store has them, but for the ephemeral ones."""
        room = connection.room
        assert room is not None
        self.written.fallen_behind += 1
        connection.live = False
        connection.position = next((message.seq - 1 for message in missed if message.seq), self.tail.delivered)
        connection.dropped += sum(1 for message in missed if not message.seq)
        room.withdraw(connection)
        room.lagging.add(connection)
        self._listener.presence_changed(room)

    def leave(self, connection: Connection) -> None:
        """Take a connection out of the fan-out. Idempotent."""
        room, connection.room = connection.room, None
        if room is None:
            return
        if connection.live:
            connection.position = self.tail.delivered
            connection.live = False
            room.withdraw(connection)
        room.lagging.discard(connection)
        self._audience.leave(connection)
        room.size -= 1
        if not room.size:
            self.rooms.pop(room.name, None)
            self._update_interest()
        self._listener.presence_changed(room)

    def lost(self, connection: Connection) -> None:
        """The socket of a connection is gone."""
        self.connections.discard(connection)
        if connection.joined:
            self._listener.connection_lost(connection)

    def confirm(self, connection: Connection, seq: int) -> None:
        """The peer answered the ping that carried `seq`."""
        if connection.confirmed < seq <= connection.pinged:
            connection.confirmed = seq
            self._cursors.confirm(connection.client, seq)

    def confirm_taken(self, connection: Connection) -> bool:
        """A peer that answers no pings has what its kernel took. False when something is still on its way."""
        if connection.held is not None or connection.count_unsent():
            return False
        connection.pinged = self.tail.delivered if connection.live else connection.position
        if connection.encoding.keeps_place:
            self.confirm(connection, connection.pinged)
        return True

    def emptied(self, connection: Connection) -> None:
        """Nothing is held any more for a connection."""
        if connection.live:
            self._listener.emptied(connection)
        else:
            self.feed(connection)

    # ---- waiting

    def waiter(self, key: str, topics: TopicSet | None = None) -> Event:
        """An event that is set when something may have come under `key` (bus.waiters), or to `topics`. Give it back with
        `forget`."""
        event = self._waiters.add(key)
        if topics is not None:
            self._audience.wait(event, topics)
        self.tail.anybody = True
        return event

    def forget(self, key: str, event: Event) -> None:
        self._audience.forget(event)
        self._waiters.discard(key, event)
        self._update_interest()

    def interest(self, change: int) -> None:
        """Something beside rooms and waiters wants the tail's messages, or does no longer."""
        self._interest += change
        self._update_interest()

    def _update_interest(self) -> None:
        self.tail.anybody = bool(self.rooms or self._waiters or self._interest)

    def wake_all(self) -> None:
        """Have every waiting request look again: the bus is draining."""
        self._waiters.wake_all()

    def _skipped(self) -> None:
        """The tail passed over messages that nobody waited for: what is kept of it has a hole, so it goes."""
        self._recent.clear()
        self._waiters.wake_all()

    # ---- below

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """Run `call` on the event loop after `seconds`."""
        timer = self._loop.timer(seconds)
        self._timers.add(timer)

        def run() -> None:
            self._timers.discard(timer)
            timer.stop()
            timer.close()
            call()

        timer.start(run)


def _last_seq(messages: list[Message]) -> int:
    """The seq of the last durable one; ephemeral messages have none."""
    return next((message.seq for message in reversed(messages) if message.seq), 0)
