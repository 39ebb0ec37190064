"""REST of the search: `GET /api/search`, and `/api/v1/search`. See docs/search.md."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
from flask import Blueprint, Flask, Response, request

from bus.errors import Malformed, Unavailable
from bus.identity import policy
from bus.identity.caller import Right
from bus.message import Epochs, text_of
from bus.protocol import encode
from bus.resume import place_of
from bus.search.finder import Finder, Found, Place, marks_within
from bus.search.index import Index
from bus.search.query import Wanted, parse
from bus.search.snippets import Snippet
from bus.search.words import mark, marks_of
from bus.storage import Reader
from bus.threads import WorkerPool
from bus.transports import parameters
from bus.transports.answers import MessageBody
from bus.transports.edge import caller, json_answer, need_still
from bus.transports.openapi import Operation, Parameter, serve

if TYPE_CHECKING:
    from bus.bus import Bus

MAX_WAITING = 32
"""Searches of one process that may wait for its search thread; beyond, 503."""

ORDERS = ("newest", "rank")
_CURSOR = re.compile(r"([0-9]{1,19})\.([0-9]{1,9})\Z")


class Searchers:
    """The thread that searches, with a connection of its own: no other read waits for a search. Started with the bus."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._pool: WorkerPool | None = None
        self._waiting = 0  # bounded by MAX_WAITING

    def start(self, _: object) -> None:
        """Begin. The connection is opened by the first search."""
        self._pool = WorkerPool(self._bus.mailbox, self._bus.store.reader, size=1)
        self._pool.start()

    def stop(self) -> None:
        """Finish what was asked for, and end."""
        if self._pool is not None:
            self._pool.stop()
            self._pool = None

    def call(self, job: Callable[[Reader], Found]) -> Found:
        """Run a search, and wait for what it finds. Raises Unavailable when too many wait."""
        if self._pool is None or self._waiting >= MAX_WAITING:
            raise Unavailable("Too many searches wait already; try again.", retry_after_seconds=1)
        self._waiting += 1
        try:
            found: Found = self._pool.call(job)
            return found
        finally:
            self._waiting -= 1


class Result(msgspec.Struct):
    """A message, and the part of its text where the words stand. Offsets count characters (code points)."""

    message: MessageBody
    snippet: Snippet


class Results(msgspec.Struct):
    """A page. `cursor` is for the next one, if there is `more`.

    `indexed_to`: messages up to this cursor were looked through; `complete`: that is the whole log.
    """

    results: list[Result]
    cursor: str
    more: bool
    order: str
    indexed_to: str
    complete: bool


class SearchViews:
    """Each request waits in its greenlet."""

    def __init__(self, bus: Bus, index: Index, searchers: Searchers) -> None:
        self._bus = bus
        self._index = index
        self._searchers = searchers

    def search(self) -> Response:
        me, limit = caller(), parameters.limit(20)
        order, place = _order(), _place()
        phrases = parse(text) if (text := request.args.get("q", "").strip()) else ()
        marks = _marks(self._bus)
        within = marks_within(me)
        since, until, epochs = request.args.get("since"), request.args.get("until"), self._bus.epochs
        wanted = Wanted(phrases, (*marks, within) if within is not None else marks)

        def job(reader: Reader) -> Found:
            narrowed = _between(epochs, reader, wanted, since, until)
            if not phrases and not marks:
                raise Malformed("Say what to look for: `q`, `from`, `type` or `to`.", code="missing_field", field="q")
            if within == ():
                head = reader.head().seq
                return Found([], place, more=False, head=head, indexed_to=head)
            finder = Finder(self._index, narrowed, limit, order == "rank", lambda message: policy.may_see(me, message))
            return finder.page(reader, place)

        found = self._searchers.call(job)
        need_still(self._bus)
        return json_answer(self._page(found, order))

    def _page(self, found: Found, order: str) -> bytes:
        epochs = self._bus.epochs
        results = b",".join(
            b'{"message":%b,"snippet":%b}' % (text_of(message, epochs), encode(snippet))
            for message, snippet in found.results
        )
        return b'{"results":[%b],"cursor":"%d.%d","more":%b,"order":"%b","indexed_to":"%b","complete":%b}' % (
            results,
            found.place.upto,
            found.place.skip,
            _truth(found.more),
            order.encode(),
            epochs.cursor(found.indexed_to).encode(),
            _truth(found.indexed_to >= found.head),
        )


def _truth(value: bool) -> bytes:
    return b"true" if value else b"false"


def _order() -> str:
    order = request.args.get("order", ORDERS[0])
    if order not in ORDERS:
        raise Malformed(f"`order` must be {' or '.join(ORDERS)}.", code="bad_field", field="order")
    return order


def _place() -> Place:
    given = request.args.get("cursor")
    if not given:
        return Place()
    match = _CURSOR.match(given)
    if match is None or int(match[1]) > Place().upto:
        raise Malformed("`cursor` is none that a search gave you.", code="bad_cursor", field="cursor")
    return Place(int(match[1]), int(match[2]))


def _marks(bus: Bus) -> tuple[tuple[str, ...], ...]:
    """What `from`, `type` and `to` ask for."""
    args = request.args
    marks: list[tuple[str, ...]] = []
    if sender := args.get("from"):
        marks.append((mark("f", bus.names.check(sender, "from")),))
    if type_ := args.get("type"):
        marks.append((mark("t", bus.names.check(type_, "type")),))
    if to := args.get("to"):
        marks.append(tuple(marks_of(*bus.names.address(to))[:1]))
    return tuple(marks)


def _between(epochs: Epochs, reader: Reader, wanted: Wanted, since: str | None, until: str | None) -> Wanted:
    """What is wanted, between two cursors or times. On a reader's thread. Raises Malformed."""
    if since is not None:
        begin = place_of(reader, epochs, since, 0, at_gap_go_to_latest=False)
        wanted = msgspec.structs.replace(wanted, after=begin.seq, since_us=begin.since_us)
    if until is not None:
        end = place_of(reader, epochs, until, 0, at_gap_go_to_latest=True, field="until")
        upto = end.seq if end.since_us is None else wanted.upto
        wanted = msgspec.structs.replace(wanted, upto=upto, until_us=end.since_us)
    return wanted


def serve_search(app: Flask, bus: Bus, index: Index, searchers: Searchers) -> None:
    """Serve the search under /api and /api/v1."""
    views = SearchViews(bus, index, searchers)
    parameters_ = (
        Parameter("q", "words; phrases in quotes; a star ends the beginning of a word: all have to be found"),
        Parameter("from", "only from this sender"),
        Parameter("type", "only this type"),
        Parameter("to", "only what is addressed to this client, or all, topic:NAME or queue:NAME"),
        Parameter("since", "a cursor or an ISO time"),
        Parameter("until", "a cursor or an ISO time"),
        Parameter("order", "newest (first; default) or rank: the best of the newest 10,000 that match"),
        Parameter("limit", f"0 to {parameters.MAX_LIMIT}; 20 if not given", "integer"),
        Parameter("cursor", "the cursor of the page before"),
    )
    operation = Operation(
        "GET",
        "/api/search",
        views.search,
        "Find messages that are kept by the words in them, as far as the caller may read them.",
        Results,
        None,
        parameters_,
        (400,),
        right=Right.ANY,
    )
    serve(app, Blueprint("search", __name__), [operation])
