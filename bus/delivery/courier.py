"""Carries what needs an ack: to clients by name, and from queues to their takers; and takes back what they say of it.

Who holds what is decided in the store, by the writer's transaction; the courier asks for it in jobs and pushes what it
got. It is told when there may be something to carry: a message came by the tail, a connection turned live or emptied its
queue, an ack made room, a rest or a lease ended. A job that fails (the disk is full, say) is tried again a second later.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import msgspec

from bus.backplane import Backplane
from bus.connection import Connection
from bus.delivery.queues import Queues
from bus.delivery.takers import Consumer
from bus.errors import BusError, Unavailable
from bus.events import Event, MessageFailed
from bus.hub import Hub
from bus.message import Kind, Message, text_of
from bus.protocol import Settle, encode
from bus.room import Room
from bus.storage import Job, Reader, Transaction
from bus.storage.deliveries import CLIENT_WINDOW, Failure, Lease, Settled, Swept
from bus.storage.log_writer import LogWriter
from bus.threads import WorkerPool

Heard = Callable[["Settled | BusError"], None]

RETRY_SECONDS = 1.0
OWNERS_A_LOOK = 1000
SETTLES_A_JOB = 500


class Greeting(msgspec.Struct):
    """What a connection still has to get of what its client was pushed before: messages behind the seq `above`, up to
    `upto` (0: not known yet), behind the rank `after`. `next_above`: another greeting has to follow this one."""

    above: int
    upto: int = 0
    after: tuple[int, int] = (-1, -1)
    next_above: int | None = None


class Courier:
    """Event loop only. `consumers`: of this process, by holder."""

    def __init__(
        self,
        hub: Hub,
        writer: LogWriter,
        readers: WorkerPool,
        backplane: Backplane,
        clock: Callable[[], int],
        emit: Callable[[Event], None],
    ) -> None:
        self._hub = hub
        self._writer = writer
        self._readers = readers
        self._backplane = backplane
        self._emit = emit
        self._said: list[tuple[Settle, Heard]] = []
        self._pushing: set[str] = set()  # clients with a lease job under way
        self._pushed_again: set[str] = set()  # of those, the ones stirred meanwhile
        self._greetings: dict[Connection, Greeting] = {}
        self.queues = Queues(self, hub, writer, readers, backplane, clock)
        self._name = secrets.token_hex(4)
        self._count = 0
        self.redelivered = 0
        self._is_looking = False

    # ---- what the hub tells

    def arrived(self, message: Message) -> None:
        """A message that needs an ack came by the tail."""
        if message.kind == Kind.QUEUE:
            self.queues.stir(f"queue:{message.address}")
            return
        rooms = self._hub.rooms
        for name in message.names:
            room = rooms.get(name)
            if room is None or (message.leased_to is not None and name in message.leased_to):
                continue
            if message.leased_to is None:  # read late: it may be leased, and nobody has pushed it here
                for connection in room.connections():
                    self._begin_greeting(connection, message.seq - 1)
            else:
                self._stir_client(name)

    def turned_live(self, connection: Connection) -> None:
        """A connection keeps up from now on: what its client has not settled comes again, at once."""
        self._greetings.pop(connection, None)
        self._begin_greeting(connection, 0)
        if connection.consumer is not None:
            self.queues.freed(connection.consumer)

    def emptied(self, connection: Connection) -> None:
        """A slow reader has caught up with what was held for it."""
        if connection in self._greetings:
            self._greet(connection)
        else:
            self._stir_client(connection.client)
        if connection.consumer is not None:
            self.queues.freed(connection.consumer)

    def left(self, connection: Connection) -> None:
        """A connection ended. If its client said goodbye, what it held of queues goes back at once, uncounted."""
        self._greetings.pop(connection, None)
        if connection.consumer is not None:
            self._writer.submit(self.turn_ended())  # what it said before it left goes first
            self.queues.leave(connection.consumer, cleanly=connection.ending)
            connection.consumer = None

    def turn_ended(self) -> list[Job]:
        """What was said this turn, as one job for the writer."""
        if not self._said:
            return []
        said, self._said = self._said, []
        return [self._settle_job(said[at : at + SETTLES_A_JOB]) for at in range(0, len(said), SETTLES_A_JOB)]

    # ---- clients

    def stir(self, owners: Iterable[str], *, everywhere: bool = True) -> None:
        """Something may wait for these owners, wherever their connections are."""
        owners = list(owners)
        for owner in owners:
            if owner.startswith("queue:"):
                self.queues.stir(owner)
            else:
                self._stir_client(owner)
        if everywhere and owners and self._backplane.size > 1:
            self._backplane.note(["stir", owners])

    def catch_up(self) -> None:
        """Stir whoever is here and has something waiting: a neighbour's word may have been lost. One look at a time."""
        if self._is_looking:
            return
        self._is_looking = True
        names = [*self._hub.rooms, *self.queues.open()]

        def look(reader: Reader) -> list[str]:
            parts = [json.dumps(names[at : at + OWNERS_A_LOOK]) for at in range(0, len(names), OWNERS_A_LOOK)]
            return [owner for part in parts for (owner,) in reader.execute(_WAITED_FOR, (part,))]

        def looked(owners: list[str], error: BaseException | None) -> None:
            self._is_looking = False
            if error is None:
                self.stir(owners, everywhere=False)

        self._readers.submit(look, looked)

    def _stir_client(self, name: str) -> None:
        room = self._hub.rooms.get(name)
        if room is None or not _takes_more(room):
            return
        if name in self._pushing:
            self._pushed_again.add(name)
            return
        self._pushing.add(name)

        def look(reader: Reader) -> bool:
            row = reader.execute("SELECT waiting, leased FROM backlogs WHERE owner = ?", (name,))
            return bool(row) and row[0][0] > 0 and row[0][1] < CLIENT_WINDOW

        self._readers.submit(look, partial(self._looked, name))

    def _looked(self, name: str, waits: bool, error: BaseException | None) -> None:
        if error is not None or not waits:
            self._pushing.discard(name)
            self._stir_once_more(name)
            return

        def run(transaction: Transaction) -> tuple[list[Lease], bool]:
            leases = transaction.ledger.lease_to_client(name)
            backlog = transaction.ledger.backlog(name)
            return leases, bool(leases and backlog.waiting and backlog.leased < CLIENT_WINDOW)

        self._writer.submit([Job(run, partial(self._leased, name))])

    def _leased(self, name: str, job: Job) -> None:
        self._pushing.discard(name)
        if job.error is not None:
            self._hub.later(RETRY_SECONDS, partial(self._stir_client, name))
        elif job.value[0]:
            leases, more = job.value
            self._push(name, leases)
            if more:  # the page was cut by its bytes
                self._pushed_again.add(name)
        self._stir_once_more(name)

    def _stir_once_more(self, name: str) -> None:
        if name in self._pushed_again:
            self._pushed_again.discard(name)
            self._stir_client(name)

    def _push(self, name: str, leases: list[Lease]) -> None:
        texts = [self.hand_out(lease) for lease in leases]
        self._hub.push(name, texts)
        if self._backplane.live(name):
            self._backplane.note(["push", name, texts])

    def _begin_greeting(self, connection: Connection, above: int) -> None:
        """Give a connection what its client has open: what was pushed before, again; then what waits."""
        if not connection.encoding.takes_messages:
            return
        greeting = self._greetings.get(connection)
        if greeting is not None and greeting.upto > above:
            return  # it is among what is read
        if greeting is not None:  # it has its bounds already
            greeting.next_above = above if greeting.next_above is None else min(above, greeting.next_above)
            return
        self._greetings[connection] = Greeting(above)
        self._greet(connection)

    def _end_greeting(self, connection: Connection, greeting: Greeting) -> None:
        del self._greetings[connection]
        if greeting.next_above is not None:
            self._begin_greeting(connection, greeting.next_above)

    def _greet(self, connection: Connection) -> None:
        """The next page of a greeting; when the socket is full it goes on as soon as that has emptied."""
        greeting = self._greetings.get(connection)
        if greeting is None or not connection.live or connection.held is not None:
            return
        name = connection.client
        greeting.upto = greeting.upto or self._hub.tail.delivered

        def look(reader: Reader) -> bool:
            row = reader.execute("SELECT waiting + leased FROM backlogs WHERE owner = ?", (name,))
            return bool(row) and row[0][0] > 0

        def run(transaction: Transaction) -> list[Lease]:
            return transaction.ledger.lease_again(name, greeting.above, greeting.upto, greeting.after)

        def looked(waits: bool, error: BaseException | None) -> None:
            if self._greetings.get(connection) is not greeting:
                return
            if error is None and not waits:
                self._end_greeting(connection, greeting)
            else:
                self._writer.submit([Job(run, partial(self._greeted, connection, greeting))])

        self._readers.submit(look, looked)

    def _greeted(self, connection: Connection, greeting: Greeting, job: Job) -> None:
        if connection.descriptor < 0 or self._greetings.get(connection) is not greeting:
            return
        if job.error is not None:
            self._hub.later(RETRY_SECONDS, partial(self._greet, connection))
            return
        leases: list[Lease] = job.value
        if not leases:
            self._end_greeting(connection, greeting)
            self._stir_client(connection.client)
            return
        if connection.held is not None or not connection.live:
            return  # something else filled it meanwhile: this page again when it has emptied
        greeting.after = (leases[-1].due_key, leases[-1].message.seq)
        self._hub.push_to(connection, [self.hand_out(lease) for lease in leases])
        self._greet(connection)

    # ---- what recipients say

    def settle(self, said: Settle, heard: Heard) -> None:
        """Take what a recipient says; `heard` gets what came of it, after the commit."""
        self._said.append((said, heard))
        self._hub.kick()

    def _settle_job(self, said: list[tuple[Settle, Heard]]) -> Job:
        def run(transaction: Transaction) -> tuple[list[Settled | BusError], set[str]]:
            transaction.ledger.look_ahead([settle for settle, _ in said])
            answers = [_settle(transaction, settle) for settle, _ in said]
            owners = {answer.owner for answer in answers if isinstance(answer, Settled)}
            return answers, {owner for owner in owners if owner and transaction.ledger.backlog(owner).waiting}

        def settled(job: Job) -> None:
            error = job.error
            if error is not None:
                unsure = Unavailable("It could not be written; nothing was changed. Say it again.")
                for _, heard in said:
                    heard(error if isinstance(error, BusError) else unsure)
                return
            answers, stirred = job.value
            for (_, heard), answer in zip(said, answers, strict=True):
                if isinstance(answer, Settled):
                    self._after(answer)
                heard(answer)
            self.stir(stirred)

        return Job(run, settled, len(said))

    def _after(self, settled: Settled) -> None:
        if settled.failure is not None:
            self.tell_failures([settled.failure])
        if settled.holder is not None and "/" in settled.holder:
            end = settled.until_us if settled.status == "extended" else None
            self.queues.settled([(settled.owner, settled.holder, settled.seq)], end)

    # ---- consumers

    def consumer_of(self, connection: Connection) -> Consumer:
        """The connection's consumer, made at its first queue."""
        if connection.consumer is None:
            self._count += 1
            connection.consumer = Consumer(connection, f"{connection.client}/{self._name}-{self._count}")
        return connection.consumer

    # ---- telling

    def tell_swept(self, swept: Swept) -> None:
        """Tell everybody what time, or an eviction, did to deliveries."""
        self.tell_failures(swept.failures)
        self.queues.settled([held for held in swept.freed if "/" in held[1]], None)
        self.stir(swept.stirred)

    def tell_failures(self, failures: Iterable[Failure]) -> None:
        """Tell senders what became a dead letter: an event here, and a frame wherever they are connected."""
        for failure in failures:
            self._emit(MessageFailed(failure.message, failure.message_id, failure.owner, failure.reason))
            frame = encode(
                {
                    "type": "failed",
                    "message_id": failure.message_id,
                    "recipient": failure.owner,
                    "reason": failure.reason,
                }
            )
            sender = failure.message.sender
            self._tell(sender, frame)
            if self._backplane.live(sender):
                self._backplane.note(["tell", sender, frame])

    def _tell(self, name: str, frame: bytes) -> None:
        room = self._hub.rooms.get(name)
        for connection in room.connections() if room is not None else ():
            connection.reply(frame)

    def notes(self) -> list[list[Any]]:
        """What a neighbour that just joined has to know."""
        return [["takers", owner, takers] for owner, takers in self.queues.snapshot()]

    def noted(self, slot: int, note: list[Any]) -> None:
        """The courier of a neighbour, in its slot, says something."""
        kind, *rest = note
        if kind == "stir":
            self.stir(rest[0], everywhere=False)
        elif kind == "push":
            self._hub.push(rest[0], rest[1])
        elif kind == "tell":
            self._tell(rest[0], rest[1])
        elif kind == "settled":
            self.queues.settled([tuple(held) for held in rest[0]], rest[1], everywhere=False)
        elif kind == "takers":
            self.queues.neighbour_has(slot, rest[0], rest[1])

    # ---- rendering

    def hand_out(self, lease: Lease) -> bytes:
        """As `text_of`, of a message that goes out now."""
        self.redelivered += lease.again or lease.attempt > 1
        return self.text_of(lease)

    def text_of(self, lease: Lease) -> bytes:
        """A leased message as its holder gets it, with what tells one attempt from another."""
        text = text_of(lease.message, self._hub.epochs)
        more = b',"attempt":%d' % lease.attempt if lease.attempt > 1 else b""
        if lease.again or lease.attempt > 1:
            more += b',"redelivered":true'
        return text[:-1] + more + b"}" if more else text


def _takes_more(room: Room) -> bool:
    """True when a live connection of the room that takes every message has nothing held for it."""
    return any(
        connection.held is None
        for encoding, members in room.members.items()
        if encoding.takes_messages
        for connection in members
    )


_WAITED_FOR = "SELECT owner FROM backlogs WHERE waiting > 0 AND owner IN (SELECT value FROM json_each(?))"


def _settle(transaction: Transaction, said: Settle) -> Settled | BusError:
    try:
        return transaction.ledger.settle(said)
    except BusError as refusal:
        return refusal
