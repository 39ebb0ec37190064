"""Topics and their patterns: who subscribed to what a topic matches.

A topic is a name whose levels are parted by dots. In a pattern `*` stands for exactly one whole level, and `>`, as the
last level, for one or more: `builds.*` matches `builds.linux`, and `builds.>` also `builds.linux.arm`, but not `builds`.

Patterns without either are found in a dict, the others in a trie of their levels; what a topic matched is remembered.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Iterable, Iterator
from typing import Any, Generic, TypeVar, cast

from bus.errors import Malformed

MAX_PATTERN_LENGTH = 128
MAX_PATTERNS = 1000
"""Patterns of one connection or request."""

CACHE_WEIGHT = 1_000_000
"""What the remembered matches of an index may weigh, in subscribers and, per topic, TOPIC_WEIGHT: about 10 MB."""

TOPIC_WEIGHT = 20

_ALPHABET = re.compile(r"[A-Za-z0-9._:@*>-]{1,128}\Z")

S = TypeVar("S", bound=Hashable)

Bag = Any
"""None, one member, or a dict with several as its keys: most topics have one subscriber, and a dict takes 200 bytes."""


def check_pattern(text: str, field: str = "topics") -> str:
    """Return `text` if it is a good pattern. Raises Malformed."""
    if not _ALPHABET.match(text):
        raise Malformed(
            f"A pattern must be 1 to {MAX_PATTERN_LENGTH} characters out of A-Z a-z 0-9 . _ : @ - and the wildcards * >.",
            code="bad_pattern",
            field=field,
        )
    if not is_wildcard(text):
        return text
    *above, last = text.split(".")
    if any(">" in level for level in above) or (">" in last and last != ">"):
        raise Malformed(
            f"`>` stands for all levels below, so it must be the last level by itself, as in builds.>, unlike in {text}.",
            code="bad_pattern",
            field=field,
        )
    if any("*" in level and level != "*" for level in (*above, last)):
        raise Malformed(
            f"`*` stands for one whole level, as in builds.*.done, unlike in {text}; a part of a level can't be matched.",
            code="bad_pattern",
            field=field,
        )
    return text


def check_patterns(texts: Iterable[str], field: str = "topics") -> frozenset[str]:
    """Several patterns, each once. Raises Malformed."""
    patterns = frozenset(texts)
    check_count(patterns, field)  # first: a frame may hold very many
    for pattern in patterns:
        check_pattern(pattern, field)
    return patterns


def patterns_of(query: str) -> frozenset[str]:
    """The patterns of a query string's `topics`, parted by commas. Raises Malformed."""
    return check_patterns(query.split(",")) if query else frozenset()


def check_count(patterns: Collection[str], field: str = "topics") -> None:
    """Refuse more than a connection may have. Raises Malformed."""
    if len(patterns) > MAX_PATTERNS:
        raise Malformed(
            f"These would be {len(patterns)} patterns; a connection may have {MAX_PATTERNS}. A wildcard may say the same.",
            code="too_many_topics",
            field=field,
        )


def is_wildcard(pattern: str) -> bool:
    """True when a pattern may match more than the topic of its own name."""
    return "*" in pattern or ">" in pattern


class TopicSet:
    """A fixed set of patterns. Immutable, and safe to share between threads: the trie is built when it is first asked."""

    __slots__ = ("_trie", "patterns")

    def __init__(self, patterns: Iterable[str]) -> None:
        """All of them checked."""
        self.patterns = frozenset(patterns)
        self._trie: _Trie | None = None

    def matches(self, topic: str) -> bool:
        """True when one of the patterns matches."""
        if topic in self.patterns:
            return True
        trie = self._trie
        if trie is None:
            trie = _Trie()
            for pattern in filter(is_wildcard, self.patterns):
                trie.add(pattern, True)
            self._trie = trie
        return next(trie.bags(topic), None) is not None


class TopicIndex(Generic[S]):
    """Who subscribed to what, and for a topic, who is to hear it. Not thread-safe.

    `_exact` and `_trie` lead from patterns to subscribers, `_patterns` from subscribers to patterns. `_matches` remembers
    answers; it is emptied when it weighs more than CACHE_WEIGHT (`_weight`), or a wildcard comes or goes.
    """

    def __init__(self) -> None:
        self._exact: dict[str, Bag] = {}
        self._trie = _Trie()
        self._patterns: dict[S, Bag] = {}
        self._matches: dict[str, tuple[S, ...]] = {}
        self._weight = 0

    def __bool__(self) -> bool:
        """True when anybody subscribed to anything."""
        return bool(self._patterns)

    def subscribers(self) -> Iterator[tuple[S, tuple[str, ...]]]:
        """Everybody, with their patterns."""
        for subscriber, bag in self._patterns.items():
            yield subscriber, tuple(_members(bag))

    def add(self, pattern: str, subscriber: S) -> None:
        """Subscribe to a checked pattern. A repeat changes nothing."""
        self._patterns[subscriber] = _with(self._patterns.get(subscriber), pattern)
        if is_wildcard(pattern):
            self._trie.add(pattern, subscriber)
        else:
            self._exact[pattern] = _with(self._exact.get(pattern), subscriber)
        self._forget(pattern)

    def discard(self, pattern: str, subscriber: S) -> None:
        """Unsubscribe. What was not subscribed to changes nothing."""
        left = _without(self._patterns.get(subscriber), pattern)
        if left is not None:
            self._patterns[subscriber] = left
        else:
            self._patterns.pop(subscriber, None)
        self._remove(pattern, subscriber)

    def drop(self, subscriber: S) -> None:
        """Unsubscribe from everything."""
        for pattern in _members(self._patterns.pop(subscriber, None)):
            self._remove(pattern, subscriber)

    def match(self, topic: str) -> tuple[S, ...]:
        """Everybody with a pattern that matches, each once, in an order that stays while nobody comes or goes."""
        found = self._matches.get(topic)
        return self._find(topic) if found is None else found

    def _find(self, topic: str) -> tuple[S, ...]:
        bags = [*self._trie.bags(topic)]
        exact = self._exact.get(topic)
        if exact is not None:
            bags.append(exact)
        if not bags:
            found: tuple[S, ...] = ()
        elif len(bags) == 1:
            found = tuple(_members(bags[0]))
        else:
            found = tuple({member: None for bag in bags for member in _members(bag)})
        weight = TOPIC_WEIGHT + len(found)
        if self._weight + weight > CACHE_WEIGHT:
            self._matches.clear()
            self._weight = 0
        self._weight += weight
        self._matches[topic] = found
        return found

    def _remove(self, pattern: str, subscriber: S) -> None:
        if is_wildcard(pattern):
            self._trie.discard(pattern, subscriber)
        else:
            left = _without(self._exact.get(pattern), subscriber)
            if left is not None:
                self._exact[pattern] = left
            else:
                self._exact.pop(pattern, None)
        self._forget(pattern)

    def _forget(self, pattern: str) -> None:
        """A pattern's subscribers changed: so may have what was remembered."""
        if is_wildcard(pattern):
            self._matches.clear()
            self._weight = 0
        else:
            found = self._matches.pop(pattern, None)
            if found is not None:
                self._weight -= TOPIC_WEIGHT + len(found)


class _Node:
    """A level. `children` by text, `any` below a `*`; subscribers to what ends `here`, and to all that is `below`."""

    __slots__ = ("any", "below", "children", "here")

    def __init__(self) -> None:
        self.children: dict[str, _Node] | None = None
        self.any: _Node | None = None
        self.here: Bag = None
        self.below: Bag = None

    def is_empty(self) -> bool:
        return not self.children and self.any is None and self.here is None and self.below is None


class _Trie:
    """Patterns with wildcards, by their levels. A match visits each node at most once."""

    def __init__(self) -> None:
        self._root = _Node()

    def add(self, pattern: str, subscriber: object) -> None:
        node = self._root
        *above, last = pattern.split(".")
        for level in above if last == ">" else (*above, last):
            if level == "*":
                if node.any is None:
                    node.any = _Node()
                node = node.any
            else:
                if node.children is None:
                    node.children = {}
                child = node.children.get(level)
                if child is None:
                    child = node.children[level] = _Node()
                node = child
        if last == ">":
            node.below = _with(node.below, subscriber)
        else:
            node.here = _with(node.here, subscriber)

    def discard(self, pattern: str, subscriber: object) -> None:
        """Take a subscriber out, and the nodes that only led to it."""
        *above, last = pattern.split(".")
        levels = above if last == ">" else [*above, last]
        path = [self._root]
        for level in levels:
            node = path[-1].any if level == "*" else (path[-1].children or {}).get(level)
            if node is None:
                return
            path.append(node)
        if last == ">":
            path[-1].below = _without(path[-1].below, subscriber)
        else:
            path[-1].here = _without(path[-1].here, subscriber)
        while levels and path.pop().is_empty():
            level = levels.pop()
            if level == "*":
                path[-1].any = None
            else:
                children = path[-1].children
                assert children is not None
                del children[level]

    def bags(self, topic: str) -> Iterator[Bag]:
        """The subscribers of each pattern that matches."""
        nodes = [self._root]
        for level in topic.split("."):
            below = []
            for node in nodes:
                if node.below is not None:
                    yield node.below
                if node.children is not None and level in node.children:
                    below.append(node.children[level])
                if node.any is not None:
                    below.append(node.any)
            if not below:
                return
            nodes = below
        for node in nodes:
            if node.here is not None:
                yield node.here


def _with(bag: Bag, member: Hashable) -> Bag:
    if bag is None:
        return member
    if type(bag) is dict:
        bag[member] = None
        return bag
    return bag if bag == member else {bag: None, member: None}


def _without(bag: Bag, member: Hashable) -> Bag:
    """None when nobody is left."""
    if type(bag) is not dict:
        return None if bag == member else bag
    bag.pop(member, None)
    return bag or None


def _members(bag: Bag) -> Iterable[Any]:
    if bag is None:
        return ()
    return cast("dict[Any, None]", bag) if type(bag) is dict else (bag,)
