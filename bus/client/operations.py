"""Looking after a bus, over REST: its queues, threads, dead letters and replays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import msgspec

from bus.client.received import Message, message_of
from bus.client.reports import (
    DeadLetter,
    DeadLettersPage,
    Hit,
    Hits,
    HitsPage,
    QueuesPage,
    QueueState,
    Replay,
    ReplaysPage,
    Swept,
    Thread,
    ThreadPage,
)
from bus.client.rest import Rest, segment

PAGE = 100
SWEEP_AT_ONCE = 1000


class Operations:
    """Calls that need no name, and no connection. Thread-safe.

    All raise Offline, or what the bus refused. With auth on, dead letters, replays and threads want a key that may read
    or administer everything.
    """

    def __init__(self, rest: Rest) -> None:
        self._rest = rest

    def health(self) -> None:
        """Ask the bus for a sign of life. Raises Offline when there is none."""
        self._rest.get("/health", {}, object)

    def ticket(self, client: str | None = None, *, origin: str | None = None) -> str:
        """A ticket that opens one WebSocket within 30 s, for a page: of this client's name, and of this origin, if given."""
        bound = {"client": client, "origin": origin}
        given = {name: value for name, value in bound.items() if value is not None}
        return self._rest.post("/api/tickets", given, _Ticket).ticket

    # ---- queues and threads

    def queues(self) -> list[QueueState]:
        """Every queue that the bus knows, with what waits in it."""
        found: list[QueueState] = []
        cursor, more = None, True
        while more:
            page = self._rest.get("/api/queues", {"cursor": cursor}, QueuesPage)
            found += page.queues
            cursor, more = page.cursor, page.more
        return found

    def thread(self, thread_id: str, *, limit: int = 1000) -> Thread:
        """A conversation, oldest message first, at most `limit` messages of it; `count` says how many there are."""
        messages: list[Message] = []
        cursor: str | None = None
        while True:
            query = {"cursor": cursor, "limit": min(PAGE, limit - len(messages))}
            page = self._rest.get(f"/api/threads/{segment(thread_id)}", query, ThreadPage)
            messages += [message_of(bytes(raw)) for raw in page.messages]
            if not page.more or not page.messages or len(messages) >= limit:
                break
            cursor = page.cursor
        return Thread(
            thread_id=page.thread_id,
            count=page.count,
            participants=page.participants,
            started_at=page.started_at,
            last_activity=page.last_activity,
            messages=tuple(messages),
        )

    def search(
        self,
        q: str | None = None,
        *,
        sender: str | None = None,
        type: str | None = None,
        to: str | None = None,
        since: str | None = None,
        until: str | None = None,
        order: Literal["newest", "rank"] = "newest",
        limit: int = 20,
    ) -> Hits:
        """Kept messages in which all words and phrases of `q` stand, at most `limit`, as far as one may read them.

        A part in double quotes is a phrase; a star ends the beginning of a word. `sender`, `type` and `to` narrow, or are
        enough by themselves; `since` and `until` are cursors or ISO times.
        """
        query: dict[str, object] = {"q": q, "from": sender, "type": type, "to": to, "since": since, "until": until}
        query["order"] = order
        hits: list[Hit] = []
        while True:
            page = self._rest.get("/api/search", {**query, "limit": min(PAGE, limit - len(hits))}, HitsPage)
            hits += [body.read() for body in page.results]
            if not page.more or len(hits) >= limit:
                break
            query["cursor"] = page.cursor
        return Hits(tuple(hits), page.more, page.indexed_to, page.complete)

    # ---- dead letters

    def dead_letters(
        self, *, owner: str | None = None, reason: str | None = None, sender: str | None = None
    ) -> Iterator[DeadLetter]:
        """Dead letters, page by page as they are iterated. `owner` is a client's name or `queue:<name>`."""
        query: dict[str, object] = {"owner": owner, "reason": reason, "from": sender, "limit": PAGE}
        more = True
        while more:
            page = self._rest.get("/api/dead-letters", query, DeadLettersPage)
            yield from (body.read() for body in page.dead_letters)
            query["cursor"], more = page.cursor, page.more

    def dead_letter(self, message_id: str) -> list[DeadLetter]:
        """One message's dead letters: one for each owner that it could not be delivered to."""
        page = self._rest.get(f"/api/dead-letters/{segment(message_id)}", {}, DeadLettersPage)
        return [body.read() for body in page.dead_letters]

    def redrive(
        self,
        message_id: str | None = None,
        *,
        owner: str | None = None,
        reason: str | None = None,
        sender: str | None = None,
        dry_run: bool = False,
        on_progress: Callable[[int], object] | None = None,
    ) -> Swept:
        """Send dead letters on their way again: one by its id, or all that match. They keep their ids.

        `dry_run` counts only. What finds no room stays where it is. A great many take their time: `on_progress(n)` hears
        how many are done.
        """
        if message_id is not None:
            body = {"owner": owner} if owner is not None else {}
            return self._rest.post(f"/api/dead-letters/{segment(message_id)}/redrive", body, Swept)
        given = {"owner": owner, "reason": reason, "from": sender}
        body = {name: value for name, value in given.items() if value is not None}
        if dry_run:
            return self._rest.post("/api/dead-letters/redrive", {**body, "dry_run": True}, Swept)
        portion = {**body, "limit": SWEEP_AT_ONCE}
        return _sweep(lambda: self._rest.post("/api/dead-letters/redrive", portion, Swept), on_progress)

    def purge(
        self,
        message_id: str | None = None,
        *,
        owner: str | None = None,
        reason: str | None = None,
        sender: str | None = None,
        dry_run: bool = False,
        on_progress: Callable[[int], object] | None = None,
    ) -> Swept:
        """Remove dead letters for good: one by its id, or all that match. As `redrive`."""
        if message_id is not None:
            return self._rest.delete(f"/api/dead-letters/{segment(message_id)}", {"owner": owner}, Swept)
        query = {"owner": owner, "reason": reason, "from": sender}
        if dry_run:
            return self._rest.delete("/api/dead-letters", {**query, "dry_run": "true"}, Swept)
        return _sweep(lambda: self._rest.delete("/api/dead-letters", query, Swept), on_progress)

    # ---- replays

    def replay(
        self,
        to: str,
        since: str,
        *,
        until: str | None = None,
        type: str | None = None,
        sender: str | None = None,
        topic: str | None = None,
        rate: float | None = None,
        source: Literal["inbox", "log"] = "inbox",
    ) -> Replay:
        """Put a part of the log into the inbox `to` again, as new messages with `replayed` set.

        `since` and `until` are cursors or ISO times. `source`: what was addressed to that client, or, with `log`, to
        anybody. `rate` is in messages a second (None: the server's default). It goes on after this has returned;
        `fetch_replay` tells how far it is.
        """
        given = {
            "since": since,
            "source": source,
            "until": until,
            "type": type,
            "from": sender,
            "topic": topic,
            "rate": rate,
        }
        body = {"to": to, **{name: value for name, value in given.items() if value is not None}}
        return self._rest.post("/api/replay", body, Replay)

    def replays(self) -> list[Replay]:
        """The replays that the bus knows."""
        return self._rest.get("/api/replays", {}, ReplaysPage).replays

    def fetch_replay(self, replay_id: str) -> Replay:
        """How far a replay is."""
        return self._rest.get(f"/api/replays/{segment(replay_id)}", {}, Replay)

    def cancel_replay(self, replay_id: str) -> None:
        """Stop a replay; what was copied stays."""
        self._rest.delete(f"/api/replays/{segment(replay_id)}", {}, object)


class _Ticket(msgspec.Struct):
    ticket: str


def _sweep(portion: Callable[[], Swept], on_progress: Callable[[int], object] | None) -> Swept:
    """Call for portions until all that matched at first are done, or no more can be."""
    first = last = portion()
    done = _done(first)
    while done < first.matched and _done(last):
        if on_progress is not None:
            on_progress(done)
        last = portion()
        done += _done(last)
    return Swept(
        matched=first.matched,
        redriven=None if first.redriven is None else done,
        purged=None if first.purged is None else done,
    )


def _done(swept: Swept) -> int:
    return swept.redriven or swept.purged or 0
