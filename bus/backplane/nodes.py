"""The backplane of a bus on several nodes: the mesh of Unix sockets on each of them, and a channel between them.

Each process is a member of the channel, under an id that is drawn at its start. It says every second that it is there;
members of its own node pass over what it says, for they have heard it by the mesh. The channel may lose anything: loads are
numbered, so whoever misses one asks for the whole anew, looks into the store for what it was not told, and reads the log by
the poll of bus.tail. A member hears itself, too: as long as it does, the channel is up.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import Any

import gevent
import msgspec

from bus.backplane import Neighbours, Presence
from bus.backplane.channel import Channel, Head, Outbox, frames_of, head_of
from bus.backplane.frames import (
    BLOCK,
    EPHEMERAL,
    HELLO,
    HINT,
    NOTE,
    PRESENCE,
    TOPICS,
    block,
    encode,
    pack,
    unpack,
)
from bus.backplane.local import LocalBackplane
from bus.backplane.members import Member
from bus.message import Message

log = logging.getLogger("bus.backplane")

ASK, STATE, BYE = range(7, 10)
"""Of the channel only: tell me all anew; all that I have, in parts; I am gone."""

TICK_SECONDS, BEAT_SECONDS = 0.5, 1.0
GONE_SECONDS = 6.0
"""A member that said nothing for so long is gone."""

DEAF_SECONDS = 3.0
"""Who has not heard itself for so long is cut off."""

FIRST_SLOT = 1000
PART_ITEMS = 2000
"""So many presences, notes and subscriptions a part of a state."""


class NodesBackplane:
    """See `bus.backplane.Backplane`. `up`: this process hears what is sent on the channel; `deaf`: it has not for
    DEAF_SECONDS; neither: it joins.

    `sent`, `heard`: loads; `lost`: gaps in what others sent; `left_out`: commits that became hints, and ephemeral
    messages that had no room.
    """

    def __init__(self, local: LocalBackplane, channel: Channel, node: bytes, number: int) -> None:
        """`node`: 8 bytes that name this one; `number`: this process's among all on the log."""
        self.local = local
        self.channel = channel
        self.slot = local.slot
        self.alone = local.alone
        self.number = number
        self.up = self.deaf = False
        self.sent = self.heard = self.lost = self.left_out = 0
        self._node = node
        self._key = secrets.token_bytes(8)
        self._outbox = Outbox(node, self._key)
        self._members: dict[bytes, Member] = {}
        self._live: Counter[str] = Counter()
        self._neighbours: Neighbours | None = None
        self._hearers: dict[str, Callable[[int, list[Any]], None]] = {}
        self._strangers: set[int] = set()  # versions that were heard and said in the log
        self._head = 0
        self._ticked = self._beaten = self._heard_self = 0.0
        self._timer = gevent.get_hub().loop.timer(TICK_SECONDS, TICK_SECONDS)

    @property
    def size(self) -> int:
        return self.local.size + len(self._members)

    @property
    def members(self) -> int:
        """How many processes of other nodes are known."""
        return len(self._members)

    @property
    def nodes(self) -> int:
        """How many nodes there are, this one included."""
        return 1 + len({member.node for member in self._members.values()})

    def start(self, neighbours: Neighbours) -> None:
        """Enter the mesh, and connect to the channel; that may take as long as it wants."""
        self._neighbours = neighbours
        self.local.start(neighbours)
        self._ticked = self._heard_self = time.monotonic()
        self._outbox.beat()
        self.channel.start(self._key, self._take, self._hear)
        self._timer.start(self._tick)

    def stop(self) -> None:
        self._timer.stop()
        self._timer.close()
        self._outbox.put(encode([BYE]))
        self.channel.stop()
        self.local.stop()

    # ---- telling

    def share(self, first: int, last: int, messages: list[Message]) -> None:
        self._head = last
        if not self._members:
            self.local.share(first, last, messages)
            self._outbox.skip()
            return
        if self.channel.carries_rows and self.up:
            body = block(first, last, messages)
            self.local.share_encoded(body, last)
            self.left_out += not self._outbox.put_rows(body, last)
        else:
            self.local.share(first, last, messages)
            self._outbox.hint(last)
        self.channel.kick()

    def share_ephemeral(self, message: Message) -> None:
        self.local.share_ephemeral(message)
        if self._members and self.up:
            self.left_out += not self._outbox.put_if_room(encode([EPHEMERAL, pack(message)]))
            self.channel.kick()

    def announce(self, presence: Presence) -> None:
        self.local.announce(presence)
        self._say([PRESENCE, presence])

    def note(self, note: list[Any]) -> None:
        self.local.note(note)
        self._say([NOTE, note])

    def hear(self, kind: str, handler: Callable[[int, list[Any]], None]) -> None:
        self._hearers[kind] = handler
        self.local.hear(kind, handler)

    def neighbours(self) -> list[int]:
        return [*self.local.neighbours(), *sorted(member.slot for member in self._members.values())]

    def here(self) -> list[int]:
        return self.local.here()

    def announce_topics(self, number: int, patterns: Collection[str], *, added: bool) -> None:
        self.local.announce_topics(number, patterns, added=added)
        self._say([TOPICS, number, tuple(patterns), added])

    def _say(self, frame: list[Any]) -> None:
        """Tell the other nodes, or leave a gap that they notice: then they ask."""
        if self._members and self.up:
            self._outbox.put(encode(frame))
            self.channel.kick()
        else:
            self._outbox.skip()

    # ---- knowing

    def live(self, name: str) -> bool:
        return name in self._live or self.local.live(name)

    def elsewhere(self) -> Iterable[Presence]:
        yield from self.local.elsewhere()
        for member in self._members.values():
            yield from member.present.values()

    def subscribers(self, topic: str) -> int:
        there = sum(len(member.topics.match(topic)) for member in self._members.values())
        return self.local.subscribers(topic) + there

    # ---- this process on the channel

    def _take(self) -> list[Any]:
        loads = self._outbox.take()
        if loads:
            self.sent += len(loads)
            self._beaten = time.monotonic()
        return loads

    def _tell_state(self, to: bytes | None) -> None:
        """Queue all that others have to know of this process."""
        neighbours = self._neighbours
        assert neighbours is not None
        items: list[tuple[int, Any]] = [(PRESENCE, presence) for presence in neighbours.snapshot()]
        items += [(NOTE, note) for note in neighbours.notes()]
        items += [(TOPICS, (number, tuple(patterns))) for number, patterns in neighbours.subscriptions()]
        for at in range(0, max(len(items), 1), PART_ITEMS):
            part = items[at : at + PART_ITEMS]
            last = at + PART_ITEMS >= len(items)
            self._outbox.put(encode([STATE, at == 0, last, part]), to)
        self.channel.kick()

    def _tick(self) -> None:
        now = time.monotonic()
        asleep = now - self._ticked - TICK_SECONDS
        self._ticked = now
        if asleep > TICK_SECONDS:  # what others said meanwhile still waits in the sockets
            self._heard_self += asleep
            for member in self._members.values():
                member.heard_at += asleep
        for member in list(self._members.values()):
            if now - member.heard_at > GONE_SECONDS:
                self._gone(member)
            elif not member.synced and now - member.asked_at > BEAT_SECONDS:
                self._ask(member, now)
        if now - self._heard_self > DEAF_SECONDS:
            self._cut_off(now)
        if self._outbox.is_overfull:
            self._outbox.clear()
            self._outbox.hint(self._head)
            self._tell_state(None)
        if now - self._beaten >= BEAT_SECONDS:
            self._outbox.beat()
            self.channel.kick()

    def _cut_off(self, now: float) -> None:
        """Nothing comes back: connect anew, and live by the store meanwhile."""
        if not self.deaf:
            self.up, self.deaf = False, True
            log.warning(
                "The other nodes can't be reached over %s (%s); messages are found by polling the log until they can",
                self.channel.name,
                self.channel.problem or "nothing comes back",
                extra={"action": "backplane_down"},
            )
            self._outbox.clear()
        if now - self._heard_self > 2 * DEAF_SECONDS:
            self._heard_self = now - DEAF_SECONDS
            self.channel.reset()
        assert self._neighbours is not None
        self._neighbours.missed()

    def _hear_self(self) -> None:
        self._heard_self = time.monotonic()
        if self.up:
            return
        self.up, self.deaf = True, False
        log.info("The other nodes are heard over %s", self.channel.name, extra={"action": "backplane_up"})
        assert self._neighbours is not None
        self._outbox.put(encode([HELLO, self.number, not self._members]))
        self._tell_state(None)
        self._outbox.hint(self._head)
        self._neighbours.missed()

    # ---- members

    def _hear(self, data: bytes) -> None:
        head = head_of(data)
        if head is None:
            self._pass_over(data)
            return
        if head.node == self._node:
            if head.member == self._key:
                self._hear_self()
            return
        member = self._members.get(head.member) or self._met(head)
        member.heard_at = time.monotonic()
        if not head.to_one:
            if head.number <= member.number:
                return
            if member.synced and head.number > member.number + 1:
                self.lost += 1
                member.synced = False
                assert self._neighbours is not None
                self._neighbours.missed()
            member.number = head.number
        try:
            self.heard += 1
            for frame in frames_of(data):
                self._take_in(member, head, frame)
        except (msgspec.MsgspecError, ValueError, TypeError, IndexError):
            log.exception("A node said something that can't be read", extra={"action": "backplane_frame"})
        if not member.synced and member.key in self._members and member.heard_at - member.asked_at > BEAT_SECONDS:
            self._ask(member, member.heard_at)

    def _pass_over(self, data: bytes) -> None:
        version = data[0] if data else -1
        if version not in self._strangers and len(self._strangers) < 10:
            self._strangers.add(version)
            log.warning(
                "A node speaks version %d of the channel, which this release can't read; its commits are found by polling",
                version,
                extra={"action": "backplane_version"},
            )

    def _met(self, head: Head) -> Member:
        taken = {member.slot for member in self._members.values()}
        slot = next(slot for slot in range(FIRST_SLOT, FIRST_SLOT + len(taken) + 1) if slot not in taken)
        now = time.monotonic()
        member = self._members[head.member] = Member(head.member, head.node, slot, now, self._live)
        member.asked_at = now  # a moment for it to tell all by itself
        return member

    def _ask(self, member: Member, now: float) -> None:
        member.asked_at = now
        self._outbox.put(encode([ASK]), member.key)
        self.channel.kick()

    def _gone(self, member: Member) -> None:
        if self._members.pop(member.key, None) is not None:
            member.forget()
            assert self._neighbours is not None
            self._neighbours.left(member.slot)

    def _take_in(self, member: Member, head: Head, frame: list[Any]) -> None:
        neighbours = self._neighbours
        assert neighbours is not None
        kind = frame[0]
        if kind == BLOCK:
            neighbours.block(frame[1], frame[2], [unpack(packed) for packed in frame[3]])
        elif kind == HINT:
            neighbours.hint(frame[1])
        elif kind == EPHEMERAL:
            neighbours.ephemeral(unpack(frame[1]))
        elif kind == PRESENCE:
            member.has(frame[1])
        elif kind == NOTE:
            self._noted(member, frame[1])
        elif kind == TOPICS:
            member.hears(frame[1], frame[2], added=frame[3])
        elif kind == HELLO:
            if frame[2]:
                self._tell_state(member.key)
        elif kind == ASK:
            self._tell_state(member.key)
        elif kind == STATE:
            self._take_state(member, head, frame)
        elif kind == BYE:
            self._gone(member)

    def _noted(self, member: Member, note: list[Any]) -> None:
        assert self._neighbours is not None
        self._hearers.get(note[0], self._neighbours.noted)(member.slot, note)

    def _take_state(self, member: Member, head: Head, frame: list[Any]) -> None:
        """A part of all that a member has. What it said since, if that came first, is asked for again."""
        _, first, last, items, *_ = frame
        if first:
            member.forget()
            assert self._neighbours is not None
            self._neighbours.left(member.slot)
        for kind, item in items:
            if kind == PRESENCE:
                member.has(item)
            elif kind == NOTE:
                self._noted(member, item)
            elif kind == TOPICS:
                member.hears(item[0], item[1], added=True)
        if last and head.number >= member.number:
            member.number = head.number
            member.synced = True
