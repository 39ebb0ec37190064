"""How far something is that takes its time: a bar on a terminal, nothing in a pipe or a log. It goes to stderr.

with Progress("Copying messages", total) as progress:
    progress.to(copied)
"""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, Self

import click


class Progress:
    """A bar from 0 to `total`, which may be told late, by `to`. Used with `with`."""

    def __init__(self, label: str, total: int | None = None) -> None:
        """`total` None: it is not known yet, and no bar is shown until it is."""
        self._label = label
        self._total = total
        self._done = 0
        self._bar: Any = None

    def __enter__(self) -> Self:
        self._show()
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.render_finish()

    def to(self, done: int, total: int | None = None) -> None:
        """So much is done, of `total`. What went back, or beyond, is shown as what fits."""
        if total is not None and self._total is None:
            self._total = total
            self._show()
        if self._bar is not None:
            done = max(self._done, min(done, self._total or 0))
            self._bar.update(done - self._done)
            self._done = done

    def add(self, more: int) -> None:
        """So much more is done."""
        self.to(self._done + more)

    def _show(self) -> None:
        if self._total and sys.stderr.isatty():
            self._bar = click.progressbar(length=self._total, label=self._label, file=sys.stderr, show_pos=True)
            self._bar.render_progress()
