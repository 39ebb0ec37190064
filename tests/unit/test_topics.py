"""Patterns and the index of who subscribed to them, held to a naive matcher."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from bus import topics
from bus.errors import Malformed
from bus.topics import MAX_PATTERNS, TopicIndex, TopicSet, check_count, check_pattern, check_patterns, patterns_of
from tests.refusals import check_sentence


def naive(pattern: str, topic: str) -> bool:
    """What matches, by the words of the contract."""
    wanted, levels = pattern.split("."), topic.split(".")
    if wanted[-1] == ">":
        wanted.pop()
        if len(levels) <= len(wanted):
            return False
        levels = levels[: len(wanted)]
    return len(wanted) == len(levels) and all(one in ("*", other) for one, other in zip(wanted, levels, strict=True))


LEVELS = st.sampled_from(["a", "b", "", "a-b"])
TOPICS = st.lists(LEVELS, min_size=1, max_size=5).map(".".join).filter(bool)
PATTERNS = st.builds(
    lambda levels, last: ".".join([*levels, *last]),
    st.lists(LEVELS | st.just("*"), max_size=4),
    st.lists(LEVELS | st.just("*") | st.just(">"), min_size=1, max_size=1),
).filter(bool)


# ---- patterns


@pytest.mark.parametrize("pattern", ["a", "*", ">", "a.*", "*.a.*", "a.>", "*.>", "a..b", ".", "A-1:@_.x", "p" * 128])
def test_a_good_pattern_is_taken_as_it_is(pattern: str) -> None:
    assert check_pattern(pattern) == pattern


@pytest.mark.parametrize(
    "pattern",
    ["", "a b", "$a", "a.$", "p" * 129, "é", "a\n", "a,b", "#", "+", "a*", "*a.b", "**", "a.b*.c", ">.a", "a.>.b", "a>",
     ">>", "a.>b", "*>", ">*"],
)  # fmt: skip
def test_a_bad_pattern_is_refused_with_the_cure(pattern: str) -> None:
    with pytest.raises(Malformed) as refusal:
        check_pattern(pattern, "topic")
    assert (refusal.value.code, refusal.value.field, refusal.value.status) == ("bad_pattern", "topic", 400)
    check_sentence(refusal.value.sentence)


def test_more_patterns_than_a_connection_may_have_are_refused() -> None:
    enough = [f"a.{number}" for number in range(MAX_PATTERNS)]
    assert check_patterns([*enough, *enough]) == frozenset(enough)
    for check in (check_patterns, lambda patterns: check_count(set(patterns))):
        with pytest.raises(Malformed) as refusal:
            check([*enough, "one.more"])
        assert (refusal.value.code, refusal.value.field) == ("too_many_topics", "topics")
        check_sentence(refusal.value.sentence)


def test_a_querys_patterns_are_parted_by_commas() -> None:
    assert patterns_of("") == frozenset()
    assert patterns_of("a.*,b.>,a.*") == {"a.*", "b.>"}
    for query in (",", "a,", "a, b"):
        with pytest.raises(Malformed):
            patterns_of(query)


# ---- matching


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("builds", ["builds"], ["builds.linux", "build", "Builds"]),
        ("builds.*", ["builds.linux", "builds."], ["builds", "builds.linux.arm", "build.linux"]),
        ("builds.>", ["builds.linux", "builds.linux.arm", "builds."], ["builds", "buildsx.linux"]),
        ("*", ["builds"], ["builds.linux"]),
        (">", ["builds", "builds.linux.arm"], []),
        ("*.linux", ["builds.linux"], ["linux", "builds.linux.arm"]),
        ("*.linux.>", ["builds.linux.arm", "tests.linux.arm.64"], ["builds.linux", "builds.mac.arm"]),
        ("a.*.c.*", ["a.b.c.d"], ["a.b.c", "a.b.d.d", "a.b.b.c.d"]),
    ],
)
def test_a_star_is_one_level_and_an_angle_all_below(pattern: str, matching: list[str], others: list[str]) -> None:
    index: TopicIndex[str] = TopicIndex()
    index.add(pattern, "me")
    assert [topic for topic in matching + others if index.match(topic)] == matching
    assert [topic for topic in matching + others if TopicSet([pattern]).matches(topic)] == matching
    assert [topic for topic in matching + others if naive(pattern, topic)] == matching


@settings(max_examples=300)
@given(patterns=st.lists(PATTERNS, max_size=12), topic=TOPICS)
def test_a_set_matches_what_one_of_its_patterns_matches(patterns: list[str], topic: str) -> None:
    assert TopicSet(patterns).matches(topic) == any(naive(pattern, topic) for pattern in patterns)


class IndexAgainstNaive(RuleBasedStateMachine):
    """An index beside a plain table of subscriptions."""

    def __init__(self) -> None:
        super().__init__()
        self.index: TopicIndex[int] = TopicIndex()
        self.table: dict[int, set[str]] = defaultdict(set)

    @rule(pattern=PATTERNS, subscriber=st.integers(0, 5))
    def add(self, pattern: str, subscriber: int) -> None:
        self.index.add(pattern, subscriber)
        self.table[subscriber].add(pattern)

    @rule(pattern=PATTERNS, subscriber=st.integers(0, 5))
    def discard(self, pattern: str, subscriber: int) -> None:
        self.index.discard(pattern, subscriber)
        self.table[subscriber].discard(pattern)

    @precondition(lambda self: any(self.table.values()))
    @rule(data=st.data())
    def discard_what_is_there(self, data: Any) -> None:
        pairs = sorted((subscriber, pattern) for subscriber, mine in self.table.items() for pattern in mine)
        subscriber, pattern = data.draw(st.sampled_from(pairs))
        self.discard(pattern, subscriber)

    @rule(subscriber=st.integers(0, 5))
    def drop(self, subscriber: int) -> None:
        self.index.drop(subscriber)
        self.table[subscriber].clear()

    @rule(topic=TOPICS)
    def match(self, topic: str) -> None:
        expected = {who for who, mine in self.table.items() if any(naive(pattern, topic) for pattern in mine)}
        found = self.index.match(topic)
        assert len(found) == len(set(found))
        assert set(found) == expected
        assert self.index.match(topic) == found

    @invariant()
    def knows_who_is_there(self) -> None:
        expected = {who: mine for who, mine in self.table.items() if mine}
        assert {who: set(patterns) for who, patterns in self.index.subscribers()} == expected
        assert bool(self.index) == bool(expected)

    def teardown(self) -> None:
        for subscriber in list(self.table):
            self.index.drop(subscriber)
        assert self.index._exact == {}
        assert self.index._trie._root.is_empty()


TestIndexAgainstNaive = IndexAgainstNaive.TestCase
TestIndexAgainstNaive.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_the_order_of_subscribers_stays_while_nobody_comes_or_goes() -> None:
    index: TopicIndex[int] = TopicIndex()
    for number in range(50):
        index.add(("a.b", "a.*", "a.>")[number % 3], number)
        index.add("a.b", number)
    first = index.match("a.b")
    index.match("elsewhere")
    index._matches.clear()
    assert index.match("a.b") == first
    assert sorted(first) == list(range(50))


def test_an_exact_pattern_forgets_only_its_own_topic() -> None:
    index: TopicIndex[str] = TopicIndex()
    index.add("a", "one")
    index.match("a")
    index.match("b")
    index.add("b", "two")
    assert set(index._matches) == {"a"}
    index.add("*", "three")
    assert index._matches == {}
    assert set(index.match("a")) == {"one", "three"}


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topics, "CACHE_WEIGHT", 1000)
    index: TopicIndex[int] = TopicIndex()
    for number in range(10):
        index.add(">", number)
    for number in range(1000):
        assert len(index.match(f"t.{number}")) == 10
        assert sum(topics.TOPIC_WEIGHT + len(found) for found in index._matches.values()) == index._weight <= 1000
