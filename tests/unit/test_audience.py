"""The audience of topics, without sockets: who is due the same, and what is forgotten."""

from __future__ import annotations

from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

import pytest

from bus.audience import Audience
from bus.errors import Malformed
from bus.hub import Hub
from bus.message import Kind, Message
from bus.room import Room
from bus.topics import MAX_PATTERNS, TopicSet


class Neighbourhood:
    """A backplane that notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, list[str], bool]] = []

    def announce_topics(self, number: int, patterns: Collection[str], *, added: bool) -> None:
        self.told.append((number, sorted(patterns), added))

    def subscribers(self, topic: str) -> int:
        return 2


class Member:
    """What the audience looks at of a connection."""

    def __init__(self, number: int, room: Room, *patterns: str) -> None:
        self.descriptor = number
        self.room = room
        self.live = True
        self.dropped = 0
        self.encoding: Any = "text"
        self.topics = TopicSet(patterns) if patterns else None


def message(seq: int, kind: Kind, address: str, sender: str = "sender") -> Message:
    return Message(kind, address, (address,) if kind is Kind.CLIENT else (), sender, "t", b"1", 0, seq=seq)


@pytest.fixture
def neighbourhood() -> Neighbourhood:
    return Neighbourhood()


@pytest.fixture
def audience(neighbourhood: Neighbourhood) -> Audience:
    return Audience(neighbourhood)  # type: ignore[arg-type]


def enter(audience: Audience, *members: Any) -> None:
    for member in members:
        audience.enter(member)


def test_connections_that_are_due_the_same_share_it_and_others_do_not(audience: Audience) -> None:
    crier, busy, quiet = Room("crier"), Room("busy"), Room("quiet")
    busy.due = [message(4, Kind.CLIENT, "busy")]
    members = [
        Member(1, quiet, "a.*"),
        Member(2, quiet, "a.x", "a.*"),
        Member(3, Room("other"), "a.>"),
        Member(4, quiet, ">"),
        Member(5, crier, "a.x"),
        Member(6, busy, "*.x"),
    ]
    lagging = Member(7, quiet, "a.*")
    lagging.live = False
    enter(audience, *members, lagging)
    for due in (message(1, Kind.TOPIC, "a.x"), message(0, Kind.TOPIC, "a.x"), message(5, Kind.TOPIC, "b")):
        audience.hear(due)
    shares = audience.shares([message(2, Kind.ALL, "", "crier"), message(7, Kind.ALL, "")])
    assert {tuple(sorted(m.descriptor for m in share.members)): [m.seq for m in share.due] for share in shares} == {
        (1, 2, 3): [0, 1, 2, 7],
        (4,): [0, 1, 2, 5, 7],
        (5,): [0, 1, 7],
        (6,): [0, 1, 2, 4, 7],
    }
    assert (lagging.dropped, audience.due) == (1, [])


def test_neighbours_hear_of_changes_and_of_nothing_else(audience: Audience, neighbourhood: Neighbourhood) -> None:
    member: Any = Member(9, Room("one"), "a")
    audience.enter(member)
    audience.subscribe(member, ["a", "b", "c"])
    audience.subscribe(member, ["b"])
    audience.unsubscribe(member, ["c", "d"])
    audience.unsubscribe(member, ["d"])
    assert [(number, sorted(patterns)) for number, patterns in audience.subscriptions()] == [(9, ["a", "b"])]
    assert audience.online("a") == 3
    audience.leave(member)
    expected = [(["a"], True), (["b", "c"], True), (["c"], False), (["a", "b"], False)]
    assert neighbourhood.told == [(9, patterns, added) for patterns, added in expected]
    assert (list(audience.subscriptions()), audience.online("a")) == ([], 2)


def test_what_would_be_too_much_changes_nothing(audience: Audience, neighbourhood: Neighbourhood) -> None:
    member: Any = Member(9, Room("one"), "a")
    audience.enter(member)
    with pytest.raises(Malformed):
        audience.subscribe(member, [f"t.{number}" for number in range(MAX_PATTERNS)])
    assert (member.topics.patterns, len(neighbourhood.told), audience.online("t.1")) == ({"a"}, 1, 2)


def test_who_waits_is_woken_by_what_matches_and_then_forgotten(audience: Audience) -> None:
    nothing: Any = SimpleNamespace(is_committing=bool)
    hub = Hub(nothing, nothing, nothing, nothing, audience)
    event = hub.waiter("reader", TopicSet(["a.*", "b"]))
    audience.hear(message(1, Kind.TOPIC, "c"))
    assert not event.is_set()
    audience.hear(message(2, Kind.TOPIC, "a.x"))
    assert event.is_set()
    assert audience.due == []  # no connection is to get it
    hub.forget("reader", event)
    event.clear()
    audience.hear(message(3, Kind.TOPIC, "b"))
    assert not event.is_set()
