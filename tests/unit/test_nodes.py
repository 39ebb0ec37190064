"""The backplane between nodes: members, what they tell, and what a channel that loses things may not break."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from bus.backplane import Presence, channel, nodes
from bus.backplane.channel import MAX_QUEUED_BYTES, Load, Outbox, frames_of, head_of
from bus.backplane.frames import BLOCK, HINT, NOTE, decode, encode, pack
from bus.backplane.local import LocalBackplane, Slot
from bus.backplane.nodes import DEAF_SECONDS, GONE_SECONDS, NodesBackplane
from bus.message import Kind, Message


class Air:
    """A channel that carries at once, and loses what it is told to. `lost(load)`: whether a load gets lost."""

    def __init__(self) -> None:
        self.ends: list[End] = []
        self.lost: Callable[[Load], bool] = lambda _: False
        self.carried: list[Load] = []

    def carry(self) -> None:
        """Carry until nobody has anything to say."""
        while sum([end.say() for end in self.ends]):
            pass


class End:
    """One member's end of the air."""

    name = "air"
    connects = 1
    problem = ""

    def __init__(self, air: Air, *, carries_rows: bool = True) -> None:
        self.air = air
        self.carries_rows = carries_rows
        self.is_cut = False
        self.resets = 0

    def start(self, member: bytes, take: Callable[[], list[Load]], heard: Callable[[bytes], None]) -> None:
        self.member, self.take, self.heard = member, take, heard
        self.air.ends.append(self)

    def kick(self) -> None:
        """It is taken by `carry`."""

    def reset(self) -> None:
        self.resets += 1

    def stop(self) -> None:
        self.air.carry()
        self.air.ends.remove(self)

    def say(self) -> bool:
        loads = self.take()
        for load in loads:
            if self.is_cut or self.air.lost(load):
                continue
            self.air.carried.append(load)
            for end in self.air.ends:
                if not end.is_cut and load.to in (None, end.member):
                    end.heard(load.data)
        return bool(loads)


class Process:
    """What is behind a backplane: it notes what it hears."""

    def __init__(self, presences: Iterable[Presence] = ()) -> None:
        self.presences = list(presences)
        self.topics: list[tuple[int, tuple[str, ...]]] = []
        self.heard: list[tuple[Any, ...]] = []
        self.misses = 0

    def block(self, first: int, last: int, messages: list[Message]) -> None:
        self.heard.append(("block", first, last, [message.rendered for message in messages]))

    def hint(self, head: int) -> None:
        self.heard.append(("hint", head))

    def ephemeral(self, message: Message) -> None:
        self.heard.append(("ephemeral", message.rendered))

    def snapshot(self) -> list[Presence]:
        return self.presences

    def notes(self) -> list[list[Any]]:
        return [["takers", "queue:q", 1]]

    def noted(self, slot: int, note: list[Any]) -> None:
        self.heard.append(("note", slot, *note))

    def left(self, slot: int) -> None:
        self.heard.append(("left", slot))

    def missed(self) -> None:
        self.misses += 1

    def subscriptions(self) -> list[tuple[int, tuple[str, ...]]]:
        return self.topics


class Clock:
    """The monotonic clock, as a test drives it."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


class World:
    """Members on an air. `pass_time` has all of them tick, as their timers would."""

    def __init__(self, folder: Path, clock: Clock, stack: ExitStack) -> None:
        self.air = Air()
        self.clock = clock
        self.members: list[NodesBackplane] = []
        self._folder = folder
        self._stack = stack

    def join(self, process: Process, node: int, **how: Any) -> NodesBackplane:
        """A process on a node enters."""
        slot = Slot(self._folder / f"{node}-{len(self.members)}", lambda: None)
        member = NodesBackplane(LocalBackplane(slot), End(self.air, **how), b"node%04d" % node, node * 64)
        self._stack.callback(slot.release)
        member.start(process)
        member._timer.stop()
        self._stack.callback(lambda: member in self.members and member.stop())
        self.members.append(member)
        self.air.carry()
        return member

    def pass_time(self, seconds: float, but: Iterable[NodesBackplane] = ()) -> None:
        """Let time go by; those in `but` are frozen."""
        for _ in range(round(seconds / nodes.TICK_SECONDS)):
            self.clock.now += nodes.TICK_SECONDS
            for member in self.members:
                if member not in but:
                    member._tick()
            self.air.carry()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    clock = Clock()
    monkeypatch.setattr(nodes, "time", clock)
    with ExitStack() as stack:
        yield World(tmp_path, clock, stack)


def message(seq: int, text: bytes = b"{}") -> Message:
    """One that is rendered."""
    return Message(Kind.CLIENT, "bob", ("bob",), "alice", "note", b"{}", 5, seq=seq, rendered=text)


def has(name: str, live: int = 1) -> Presence:
    """A client with one connection."""
    return Presence(name, 1, live, 5, {"websocket": 1})


def gone(name: str) -> Presence:
    """A client without."""
    return Presence(name, 0, 0, 0, {})


def test_who_joins_learns_of_everybody_and_everybody_of_it(world: World) -> None:
    first = world.join(Process([has("anna")]), 0)
    process = Process([has("bert")])
    process.topics = [(7, ("orders.*",))]
    second = world.join(process, 1)
    third = world.join(Process(), 2)
    assert [member.size for member in world.members] == [3, 3, 3]
    assert first.live("bert")
    assert {presence.name for presence in third.elsewhere()} == {"anna", "bert"}
    assert (first.subscribers("orders.new"), second.subscribers("orders.new")) == (1, 0)
    assert third.nodes == 3


def test_members_of_one_node_pass_over_what_the_mesh_has_brought(world: World) -> None:
    one, other = Process([has("anna")]), Process()
    first = world.join(one, 0)
    second = world.join(other, 0)
    world.join(Process(), 1)
    first.share(1, 1, [message(1)])
    world.air.carry()
    assert second.members == 1
    assert not any(entry[0] == "block" for entry in other.heard)


def test_rows_ephemerals_and_notes_reach_the_others_in_order(world: World) -> None:
    here, there = Process(), Process()
    member = world.join(here, 0)
    world.join(there, 1)
    there.heard.clear()
    member.share(1, 1, [message(1, b"one")])
    member.share_ephemeral(message(0, b"fleeting"))
    member.note(["tell", "bob", b"x"])
    world.air.carry()
    assert there.heard == [
        ("block", 1, 1, [b"one"]),
        ("ephemeral", b"fleeting"),
        ("note", 1000, "tell", "bob", b"x"),
    ]
    assert here.heard[-1][0] != "block"


def test_a_channel_that_carries_no_rows_carries_one_hint_for_many_commits(world: World) -> None:
    there = Process()
    member = world.join(Process(), 0, carries_rows=False)
    world.join(there, 1, carries_rows=False)
    there.heard.clear()
    for seq in range(1, 100):
        member.share(seq, seq, [message(seq)])
    world.air.carry()
    assert there.heard == [("hint", 99)]


def test_presence_follows_who_comes_and_goes(world: World) -> None:
    member = world.join(Process(), 0)
    other = world.join(Process(), 1)
    member.announce(has("anna", live=0))
    world.air.carry()
    assert not other.live("anna")
    member.announce(has("anna"))
    world.air.carry()
    assert other.live("anna")
    member.announce_topics(3, ["a.b"], added=True)
    member.announce_topics(3, ["a.c"], added=True)
    member.announce_topics(3, ["a.b"], added=False)
    world.air.carry()
    assert (other.subscribers("a.b"), other.subscribers("a.c")) == (0, 1)
    member.announce(gone("anna"))
    world.air.carry()
    assert not other.live("anna")
    assert not list(other.elsewhere())


def test_whoever_misses_a_load_looks_into_the_store_and_asks_for_the_whole(world: World) -> None:
    here, there = Process(), Process()
    member = world.join(here, 0)
    other = world.join(there, 1)
    before = there.misses
    world.air.lost = lambda _: True
    here.presences = [has("anna")]
    member.announce(has("anna"))
    world.air.carry()
    world.air.lost = lambda _: False
    assert not other.live("anna")
    world.pass_time(2.0)
    assert other.lost == 1
    assert there.misses == before + 1
    assert other.live("anna")


def test_a_member_that_says_nothing_is_gone_and_one_that_says_goodbye_at_once(world: World) -> None:
    there = Process()
    other = world.join(there, 0)
    silent = world.join(Process([has("anna")]), 1)
    polite = world.join(Process([has("bert")]), 2)
    assert other.live("anna")
    world.members.remove(polite)
    polite.stop()
    assert not other.live("bert")
    assert other.live("anna")
    there.heard.clear()
    world.pass_time(GONE_SECONDS - 1, but=[silent])
    assert other.live("anna")
    world.pass_time(2, but=[silent])
    assert not other.live("anna")
    assert [entry for entry in there.heard if entry[0] == "left"] == [("left", 1000)]


def test_a_member_that_was_frozen_comes_back_and_gives_the_others_time(world: World) -> None:
    first = world.join(Process([has("anna")]), 0)
    frozen = world.join(Process([has("bert")]), 1)
    world.pass_time(GONE_SECONDS + 2, but=[frozen])
    assert not first.live("bert")
    world.pass_time(nodes.TICK_SECONDS)
    assert frozen.live("anna")  # what it was told meanwhile waited in its socket
    world.pass_time(2)
    assert first.live("bert")
    assert frozen.up


def test_who_has_just_come_joins_until_it_hears_itself_or_has_not_for_too_long(world: World) -> None:
    world.air.carry = lambda: None  # the channel is away, though nobody knows
    unheard = world.join(Process(), 0)
    assert (unheard.up, unheard.deaf) == (False, False)
    world.pass_time(DEAF_SECONDS + 1)
    assert (unheard.up, unheard.deaf) == (False, True)
    del world.air.carry
    heard = world.join(Process(), 1)
    world.pass_time(1)
    assert (heard.up, heard.deaf) == (True, False)


def test_who_does_not_hear_itself_is_cut_off_and_tells_all_anew(world: World) -> None:
    here, there = Process(), Process()
    member = world.join(here, 0)
    other = world.join(there, 1)
    end: Any = member.channel
    end.is_cut = True
    world.pass_time(DEAF_SECONDS + 1)
    assert (member.up, member.deaf) == (False, True)
    assert here.misses > 1  # it lives by the store
    world.pass_time(GONE_SECONDS)
    assert end.resets
    assert (member.size, other.size) == (1, 1)
    here.presences = [has("anna")]
    member.announce(has("anna"))
    member.share(1, 1, [message(1)])
    there.heard.clear()
    misses = here.misses
    end.is_cut = False
    world.pass_time(2)
    assert (member.up, member.deaf) == (True, False)
    assert other.live("anna")
    assert ("hint", 1) in there.heard
    assert here.misses > misses


def test_a_client_that_left_while_a_node_was_cut_off_is_not_there_afterwards(world: World) -> None:
    here = Process([has("anna")])
    member = world.join(here, 0)
    other = world.join(Process(), 1)
    end: Any = other.channel
    end.is_cut = True
    world.pass_time(2)
    here.presences = []
    member.announce(gone("anna"))
    world.air.carry()
    end.is_cut = False
    assert other.live("anna")
    world.pass_time(2)
    assert not other.live("anna")


def test_kinds_and_items_that_are_not_known_are_passed_over(world: World) -> None:
    """Of the release to come."""
    there = Process()
    member = world.join(Process(), 0)
    world.join(there, 1)
    there.heard.clear()
    for frame in ([99, "what"], [HINT, 5, "more"], [BLOCK, 6, 6, [[*_packed(6), "more"]], "more"]):
        member._outbox.put(encode(frame))
    world.air.carry()
    assert there.heard == [("hint", 5), ("block", 6, 6, [b"{}"])]


def test_another_version_of_the_channel_is_passed_over_and_said_once(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    there = Process()
    other = world.join(there, 0)
    monkeypatch.setattr(channel, "VERSION", 2)
    newer = Outbox(b"node0009", b"member09")
    newer.put(encode([HINT, 7]))
    newer.put(encode([HINT, 8]), to=b"someone!")
    loads = newer.take()
    monkeypatch.undo()
    monkeypatch.setattr(nodes, "time", world.clock)
    with caplog.at_level("WARNING", "bus.backplane"):
        for load in loads:
            other._hear(load.data)
    assert ("hint", 7) not in there.heard
    assert sum("version 2" in record.message for record in caplog.records) == 1
    assert other.size == 1


def test_what_can_not_be_read_does_no_harm(world: World) -> None:
    there = Process()
    member = world.join(Process(), 0)
    other = world.join(there, 1)
    for frame in ([BLOCK, 1], [NOTE], [BLOCK, 1, 1, [[1]]]):
        member._outbox.put(encode(frame))
        world.air.carry()
    other._hear(b"")
    other._hear(world.air.carried[-1].data[:20])
    member.share(2, 2, [message(2)])
    world.air.carry()
    assert there.heard[-1] == ("block", 2, 2, [b"{}"])


def test_an_outbox_is_bounded_rows_become_a_hint_and_the_rest_is_told_anew(world: World) -> None:
    here, there = Process([has("anna")]), Process()
    member = world.join(here, 0)
    other = world.join(there, 1)
    large = message(1, bytes(1024 * 1000))
    for seq in range(1, 30):
        member.share(seq, seq, [large])
        member.share_ephemeral(large)
    member.announce(gone("anna"))
    here.presences = []
    waiting = sum(len(frame) for _, frame in member._outbox._waiting)
    assert MAX_QUEUED_BYTES < waiting < MAX_QUEUED_BYTES + 2 * 1024 * 1024
    assert member.left_out > 20
    world.pass_time(3)
    assert ("hint", 29) in there.heard
    assert not other.live("anna")


def test_two_processes_that_are_told_apart_by_nothing_but_their_ids(world: World) -> None:
    """A member that is started again is another one; the first is gone when it says nothing more."""
    other = world.join(Process(), 0)
    former = world.join(Process([has("anna")]), 1)
    world.members.remove(former)
    former._timer.stop()
    world.air.ends.remove(former.channel)  # type: ignore[arg-type]
    former.local.stop()
    world.join(Process([has("bert")]), 1)
    assert {presence.name for presence in other.elsewhere()} == {"anna", "bert"}
    world.pass_time(GONE_SECONDS + 1)
    assert {presence.name for presence in other.elsewhere()} == {"bert"}


def test_loads_are_numbered_and_say_who_sent_them() -> None:
    outbox = Outbox(b"node0000", b"member00")
    outbox.put(b"\x91\x01")
    outbox.put(b"\x91\x02", to=b"member01")
    outbox.put(b"\x91\x03")
    outbox.skip()
    outbox.beat()
    loads = outbox.take()
    outbox.beat()
    (beat,) = outbox.take()
    heads = [head_of(load.data) for load in [*loads, beat]]
    assert [head and (head.number, head.to_one) for head in heads] == [(2, False), (2, True), (3, False), (4, False)]
    assert [frames_of(load.data) for load in loads] == [[[1]], [[2]], [[3]]]
    assert frames_of(beat.data) == []
    assert head_of(b"") is None
    assert decode(encode([1])) == [1]


def _packed(seq: int) -> list[Any]:
    return list(pack(message(seq)))
