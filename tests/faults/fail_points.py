"""Named points at which a worker kills itself (SIGKILL), for tests: an extension, loaded by BUS_EXTENSIONS.

    BUS_FAILPOINT=after-claim:3 BUS_FAILPOINT_MARK=/tmp/mark    the third worker's passage of the point ends it

The mark is made by whoever dies; while it is there nobody else does, and removing it arms the point again. Points wrap what
they name, so the product has no line for them: unset, they cost nothing.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flask import Flask

from bus import outbound
from bus.bus import Bus
from bus.storage.sqlite_writer import SqliteWriter
from bus.storage.work import Work
from bus.webhooks import dispatcher
from bus.webhooks.dispatcher import Dispatcher

When = Callable[..., bool]

WORK, WRITER = Work, SqliteWriter
POINTS: dict[str, tuple[Any, str, str, When]] = {
    "after-outbox": (WORK, "_admit", "after", lambda _, item: bool(item.rows)),
    "after-message": (WORK, "insert", "after", lambda work: work.wrote_beside),
    "before-commit": (WORK, "take", "after", lambda work, _: work.wrote_beside),
    "after-commit": (WRITER, "commit", "after", lambda _, batch: any(getattr(item, "rows", ()) for item in batch)),
    "after-claim": (Dispatcher, "_begin", "before", lambda *_: True),
    "before-request": (Dispatcher, "call", "before", lambda *_: True),
    "in-request": (outbound, "converse", "within", lambda *_: True),
    "after-answer": (Dispatcher, "call", "after", lambda *_: True),
    "in-outcome": (dispatcher, "take_step", "after", lambda _, plan, **__: bool(plan.results)),
    "after-outcome": (Dispatcher, "_apply", "before", lambda _, plan, __: bool(plan.results)),
}
"""Where: the holder, the name of what is wrapped, whether it dies before or after it, and which passages count."""


class FailPoint:
    """The armed point of this process."""

    def __init__(self, nth: int, mark: Path) -> None:
        self._left = nth
        self._mark = mark

    def pass_by(self) -> None:
        """Die, if it is time and nobody else has."""
        self._left -= 1
        if self._left <= 0:
            try:
                os.close(os.open(self._mark, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return
            os.kill(os.getpid(), signal.SIGKILL)

    def wrap(self, name: str) -> None:
        """Put the point into place."""
        holder, attribute, moment, when = POINTS[name]
        original = getattr(holder, attribute)

        def wrapped(*arguments: Any, **named: Any) -> Any:
            if moment == "before" and when(*arguments, **named):
                self.pass_by()
            if moment == "within":
                arguments = (*arguments[:2], _Dying(arguments[2], self), *arguments[3:])
            value = original(*arguments, **named)
            if moment == "after" and when(*arguments, **named):
                self.pass_by()
            return value

        setattr(holder, attribute, wrapped)


class _Dying:
    """A wire whose end of sending is the point: the receiver has the request, and no answer was read."""

    def __init__(self, wire: Any, point: FailPoint) -> None:
        self._wire = wire
        self._point = point

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wire, name)

    def send(self, data: bytes) -> None:
        self._wire.send(data)
        self._point.pass_by()


def register(app: Flask, bus: Bus) -> None:
    """Arm the point that BUS_FAILPOINT names."""
    name, _, nth = os.environ["BUS_FAILPOINT"].partition(":")
    point = FailPoint(int(nth), Path(os.environ["BUS_FAILPOINT_MARK"]))
    point.wrap(name)
    app.extensions["fail_points"] = point
