"""What a reading verb shows: a table for people, aligned to the terminal, or JSON, one object a line, for programs."""

from __future__ import annotations

import shutil
import sys
import unicodedata
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import click
import msgspec

from bus.cli.show import printable

ROWS_AT_ONCE = 1000
"""Rows that are aligned together, and held until then."""

GAP = 2
NARROWEST = 8
"""A column gives up no more than down to this, where a table is wider than the terminal."""

_COLOURS = {
    **dict.fromkeys(
        ("active", "closed", "delivered", "done", "enabled", "healthy", "ok", "online", "pass", "running"), "green"
    ),
    **dict.fromkeys(
        ("behind", "degraded", "half_open", "leased", "paused", "resting", "rotated", "waiting", "warning"), "yellow"
    ),
    **dict.fromkeys(("dead", "disabled", "expired", "failed", "max_attempts", "open", "refused", "revoked"), "red"),
    **dict.fromkeys(("rejected", "unhealthy", "wrong"), "red"),
}
"""Words that say how something is."""


def width(text: str) -> int:
    """The columns of a terminal that a text takes."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "FW" else 1 for c in text)


def coloured(word: str, text: str | None = None) -> str:
    """A word that says how something is, in its colour; or another text in that."""
    colour = _COLOURS.get(word)
    return click.style(text or word, fg=colour) if colour else text or word


class Listing:
    """Rows under headings, or JSON lines. A heading that begins with `>` stands over numbers, to the right.

    Used with `with`: what is left is printed at the end. Only on a terminal are cells cut.
    """

    def __init__(self, *headings: str, as_json: bool) -> None:
        self._headings = [heading.removeprefix(">") for heading in headings]
        self._to_right = [heading.startswith(">") for heading in headings]
        self._as_json = as_json
        self._rows: list[list[str]] = []
        self._widths = [width(heading) for heading in self._headings]
        self._has_head = False

    def add(self, value: Any, *cells: object) -> None:
        """A row: for programs the whole value (bytes are JSON already), for people its cells; None is a dash."""
        if self._as_json:
            click.echo(value if isinstance(value, bytes) else msgspec.json.encode(value))
            return
        self._rows.append(["-" if cell is None or cell == "" else printable(str(cell)) for cell in cells])
        if len(self._rows) == ROWS_AT_ONCE:
            self._flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if not self._as_json and (kind is None or self._rows):
            self._flush()

    def _flush(self) -> None:
        for row in self._rows:
            self._widths = [max(wide, width(cell)) for wide, cell in zip(self._widths, row, strict=True)]
        widths = _fitting(self._widths) if sys.stdout.isatty() else self._widths
        if not self._has_head:
            click.secho(self._line(self._headings, widths, plain=True), bold=True)
            self._has_head = True
        for row in self._rows:
            click.echo(self._line(row, widths))
        self._rows.clear()

    def _line(self, cells: Sequence[str], widths: Sequence[int], *, plain: bool = False) -> str:
        parts = []
        for at, cell in enumerate(cells):
            text = _cut(cell, widths[at])
            gap = " " * (widths[at] - width(text))
            shown = text if plain else coloured(cell, text)
            parts.append(gap + shown if self._to_right[at] else shown + gap)
        return (" " * GAP).join(parts).rstrip()


def _fitting(widths: Sequence[int]) -> list[int]:
    """The widths, with the widest made narrower until the table fits the terminal."""
    fitting = list(widths)
    most = shutil.get_terminal_size().columns
    while sum(fitting) + GAP * (len(fitting) - 1) > most and max(fitting) > NARROWEST:
        fitting[fitting.index(max(fitting))] -= 1
    return fitting


def _cut(text: str, most: int) -> str:
    if width(text) <= most:
        return text
    while text and width(text) > most - 1:
        text = text[:-1]
    return f"{text}…"


def show_json(value: Any, *, as_json: bool) -> None:
    """One thing whole: indented for people, on one line for programs."""
    text = value if isinstance(value, bytes) else msgspec.json.encode(value)
    click.echo(text if as_json else msgspec.json.format(text))
