"""What extensions have written beside an event, in the event's own transaction: an outbox, say, or a count.

A companion's `rows(event)` runs where the event is made: on the event loop for a send that was accepted, and on the
writer's thread for what happens in a transaction (a delayed message becomes due, a client has received one). So it is a
function of its argument and of immutable values alone, and may neither log, block, nor touch what gevent has patched. If
it fails, nothing of it is written, and the event takes place all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from bus.dispatch import Guarded
from bus.events import Event, MessageSent

if TYPE_CHECKING:
    from bus.storage import Row

Rows = Callable[[Any], "Sequence[Row]"]


class Companion(Guarded):
    """One registration. While `active` is False, its events cost nothing; set it on the event loop at any time.

    `on_commit(hear)` has `hear()` called on the event loop when rows of companions have become durable, by this process.
    """

    def __init__(
        self, rows: Rows, changed: Callable[[], None], on_commit: Callable[[Callable[[], None]], None]
    ) -> None:
        super().__init__(rows)
        self.on_commit = on_commit
        self._changed = changed
        self._active = True

    @property
    def active(self) -> bool:
        return self._active

    @active.setter
    def active(self, active: bool) -> None:
        self._active = active
        self._changed()


class Companions:
    """All of them, by the type of event. Registered before the start; asked by the event loop and by the writer's thread.

    `sent` are the active ones of `MessageSent`, in a field of its own, since the hot path looks at it. `commits` counts the
    transactions of this process in which rows of companions became durable; only the writer's thread raises it.
    """

    def __init__(self) -> None:
        self.sent: tuple[Companion, ...] = ()
        self.commits = 0
        self._told = 0
        self._hearers: list[Callable[[], None]] = []
        self._all: dict[type[Event], list[Companion]] = {}
        self._active: dict[type[Event], tuple[Companion, ...]] = {}

    def add(self, kind: type[Event], rows: Rows) -> Companion:
        """Have `rows(event)` asked for each event of exactly this type."""
        companion = Companion(rows, self._look, self._hearers.append)
        self._all.setdefault(kind, []).append(companion)
        self._look()
        return companion

    def tell(self) -> None:
        """A commit was settled: tell whoever hears of it, if it held rows of companions. Event loop."""
        if self.commits != self._told:
            self._told = self.commits
            for hear in self._hearers:
                hear()

    def report_by(self, report: Callable[..., None]) -> None:
        """Have failures told by `report(tell, …)`, which has to call `tell(…)` on the event loop. Any thread may call it."""
        for companions in self._all.values():
            for companion in companions:
                companion.report_by(report)

    def wants(self, kind: type[Event]) -> bool:
        """True when anybody has rows for this type of event."""
        return kind in self._active

    def rows_of(self, event: Event) -> list[Row]:
        """What has to be written beside the event."""
        return [row for companion in self._active.get(type(event), ()) for row in companion(event) or ()]

    def _look(self) -> None:
        """Build what the writer's thread reads anew, and put it in place in one step."""
        active = {kind: tuple(each for each in companions if each.active) for kind, companions in self._all.items()}
        self._active = {kind: companions for kind, companions in active.items() if companions}
        self.sent = self._active.get(MessageSent, ())


class Announcer:
    """Where a transaction's events go, so that their companions' rows are written in it. `wrote`: some were."""

    def __init__(self, companions: Companions, execute: Callable[..., Any]) -> None:
        """`execute(statement, bindings)` is the transaction's."""
        self.wants = companions.wants
        self._rows_of = companions.rows_of
        self._execute = execute
        self.wrote = False

    def announce(self, event: Event) -> None:
        for statement, bindings in self._rows_of(event):
            self._execute(statement, bindings)
            self.wrote = True
