"""How messages, moments and numbers are shown: to people in lines, to programs as JSON."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import datetime

import msgspec

from bus.client import Message


def printer(as_json: bool) -> Callable[[Message], None]:
    """A function that prints a message: in a pipe, or when JSON is asked for, its JSON; else a line for a person."""
    plain = as_json or not sys.stdout.isatty()
    out = sys.stdout.buffer

    def show(message: Message) -> None:
        out.write(message.json_line() if plain else _readable(message))
        out.flush()

    return show


def _readable(message: Message) -> bytes:
    """One line for a person. What could steer a terminal is shown as its code."""
    clock = datetime.fromisoformat(message.timestamp).astimezone().strftime("%H:%M:%S")
    to = message.to if isinstance(message.to, str) else ", ".join(message.to)
    payload = msgspec.json.encode(message.payload).decode()
    attempt = f"  (attempt {message.attempt})" if message.attempt > 1 else ""
    line = f"{clock}  {message.sender} -> {to}  {message.type}  {payload}{attempt}"
    return (printable(line) + "\n").encode()


def printable(text: str) -> str:
    """A text that can't steer a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def moment(stamp: str | None) -> str:
    """A time of the bus in local time; a dash for none."""
    return datetime.fromisoformat(stamp).astimezone().strftime("%Y-%m-%d %H:%M:%S") if stamp else "-"


def size(size_bytes: int) -> str:
    """`312 B`, `4.2 MiB`."""
    number, unit = float(size_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if number < 1024:
            break
        number, unit = number / 1024, larger
    return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"


def plural(number: int, noun: str) -> str:
    """`1 message`, `2 messages`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
