"""The worker mesh on one machine: how a process comes to be seen."""

from __future__ import annotations

import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bus.backplane import local
from bus.backplane.local import LocalBackplane, Slot


def test_a_socket_is_seen_only_once_somebody_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A neighbour takes a socket that nobody listens on for a dead one's, and removes it."""
    slot = Slot(tmp_path / "locks", lambda: None)
    seen_before: list[list[str]] = []

    class Listener(local._Socket):  # type: ignore[misc, name-defined]
        def listen(self, backlog: int = 0) -> None:
            seen_before.append([path.name for path in slot.sockets.glob("*.sock")])
            super().listen(backlog)

    monkeypatch.setattr(local, "_Socket", Listener)
    backplane = LocalBackplane(slot)
    neighbours: Any = SimpleNamespace(snapshot=list, notes=list, subscriptions=list)
    backplane.start(neighbours)
    try:
        assert seen_before == [[]]
        (path,) = slot.sockets.glob("*.sock")
        with socket.socket(socket.AF_UNIX) as dialler:
            dialler.connect(str(path))
        assert not list(slot.sockets.glob("*.new"))
    finally:
        backplane.stop()
        slot.release()
