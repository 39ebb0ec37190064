"""How a thread gets its connection to PostgreSQL back."""

from __future__ import annotations

import contextlib
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from bus.storage.postgres_connection import ConnectionLost
from bus.storage.postgres_link import LONGEST_PAUSE_SECONDS, Link
from bus.testing import eventually


class Door:
    """What a link connects by: the first attempt fails, the next ones wait for `open`."""

    def __init__(self) -> None:
        self.attempts = 0
        self.open = threading.Event()
        self.made: list[SimpleNamespace] = []

    def __call__(self) -> Any:
        self.attempts += 1
        if self.attempts == 1:
            raise ConnectionLost("nobody is there")
        self.open.wait()
        self.made.append(SimpleNamespace(is_open=True))
        self.made[-1].close = lambda made=self.made[-1]: setattr(made, "is_open", False)
        return self.made[-1]


def attempted(link: Link, door: Door) -> bool:
    """Ask for a connection, in vain; whether the link makes its second attempt."""
    with pytest.raises(ConnectionLost, match="nobody is there"):
        link.get()
    return door.attempts == 2


def test_after_a_failure_nobody_waits_for_an_attempt_that_hangs() -> None:
    link = Link(door := Door())
    eventually(lambda: attempted(link, door), what="another attempt")
    for _ in range(20):
        assert attempted(link, door)
    door.open.set()

    def got() -> Any:
        with contextlib.suppress(ConnectionLost):
            return link.get()

    found = eventually(got, within_seconds=5 * LONGEST_PAUSE_SECONDS, what="the connection")
    assert (found, door.attempts) == (door.made[0], 2)


def test_what_an_attempt_brings_after_the_end_is_closed() -> None:
    link = Link(door := Door())
    eventually(lambda: attempted(link, door), what="another attempt")
    link.close()
    door.open.set()
    eventually(lambda: door.made and not door.made[0].is_open, what="its end")
