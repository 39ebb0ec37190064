"""What answers a search: the messages that match, are kept and alive, and that the caller may read."""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile

import msgspec

from bus.identity.caller import Caller
from bus.message import Message
from bus.search.index import Index
from bus.search.indexer import progress
from bus.search.query import Wanted
from bus.search.snippets import Snippet, snippet
from bus.search.words import ALL, mark
from bus.storage import Reader

MAX_LOOKED_AT = 5000
"""Messages that one page looks at: where a caller may read few of those that match, a page is short."""

MAX_BYTES = 4 * 1024 * 1024


class Place(msgspec.Struct, frozen=True):
    """Where a page begins: at the seq `upto`, after passing over `skip` messages. By rank `upto` stays; else `skip` is 0."""

    upto: int = 2**62
    skip: int = 0


class Found(msgspec.Struct):
    """A page, and the place of the next. `head` is the end of the log, and `indexed_to` that of the index."""

    results: list[tuple[Message, Snippet]]
    place: Place
    more: bool
    head: int
    indexed_to: int


def marks_within(caller: Caller) -> tuple[str, ...] | None:
    """Marks of which each message that the caller may read has one; None: it may read about all."""
    if caller.admin or "read-all" in caller.scopes:
        return None
    if "read" not in caller.scopes:
        return ()
    if caller.clients.is_all:
        return None  # but for some topics and queues, perhaps: the policy has the last word
    grant = caller.grant
    names = [_mark(sort, name) for sort in "rf" for name in grant.clients]
    return (ALL, *names, *(_mark("q", queue) for queue in grant.queues), *map(_topic_mark, grant.topics))


def _mark(sort: str, pattern: str) -> str:
    name = mark(sort, pattern.removesuffix("*"))
    return name + "*" if pattern.endswith("*") and name != sort else name


def _topic_mark(pattern: str) -> str:
    """The beginning that all matching topics have."""
    levels = takewhile(lambda level: level not in ("*", ">"), pattern.split("."))
    beginning = "".join(f"{level}." for level in levels)
    return _mark("p", pattern if beginning == f"{pattern}." else f"{beginning}*")


class Finder(msgspec.Struct, frozen=True):
    """One search. `may_see` has the last word on each message; `limit` is of messages in a page."""

    index: Index
    wanted: Wanted
    limit: int
    by_rank: bool
    may_see: Callable[[Message], bool]

    def page(self, reader: Reader, place: Place) -> Found:
        """The messages from a place on, the newest first, or the best. On a reader's thread."""
        found = Found([], self._pinned(reader, place), more=True, head=reader.head().seq, indexed_to=progress(reader))
        looked_at = size = 0
        while looked_at < MAX_LOOKED_AT:
            seqs = self._seqs(reader, found.place)
            for seq in seqs:
                if len(found.results) == self.limit or size > MAX_BYTES:
                    return found
                message = reader.message(seq)
                if message is not None and self.may_see(message):
                    found.results.append((message, snippet(message.payload, self.wanted.phrases)))
                    size += len(message.payload)
                found.place = self._behind(found.place, seq)
            if len(seqs) <= self.limit:
                found.more = False
                return found
            looked_at += len(seqs)
        return found

    def _pinned(self, reader: Reader, place: Place) -> Place:
        """By rank, what comes while somebody turns pages must not push what they have seen onto the next one."""
        return Place(progress(reader)) if self.by_rank and not place.skip else place

    def _behind(self, place: Place, seq: int) -> Place:
        return Place(place.upto, place.skip + 1) if self.by_rank else Place(seq - 1)

    def _seqs(self, reader: Reader, place: Place) -> list[int]:
        index, wanted = self.index, self.wanted
        upto = min(place.upto, wanted.upto)
        times = (reader.now_us(), wanted.since_us, wanted.until_us)
        bindings = (index.match(wanted), wanted.after, upto, *times, self.limit + 1)
        if self.by_rank:
            rows = reader.execute(index.ranked, (*bindings, place.skip))
        else:
            rows = reader.execute(index.newest, bindings)
        return [seq for (seq,) in rows]
