"""Fixtures of the client's tests: a scripted bus, and clients of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from bus.client import Client, Offline
from tests.unit.scripted_bus import ScriptedBus, Start


@pytest.fixture
def bus() -> Iterator[ScriptedBus]:
    with ScriptedBus() as scripted:
        yield scripted


@pytest.fixture
def start(bus: ScriptedBus) -> Iterator[Start]:
    """A function that makes a client named reader and sets it off; all are closed at the end."""
    clients: list[Client] = []

    def begin(**how: Any) -> Client:
        client = Client("reader", bus.url, **how)
        clients.append(client)
        with pytest.raises(Offline):
            client.connect(0)
        return client

    yield begin
    for client in clients:
        client.close(0)
