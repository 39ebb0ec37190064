"""The same bus on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bus.testing import BusServer
from tests.databases import PostgresServer


@pytest.fixture(scope="module")
def on_postgresql(postgresql: PostgresServer) -> Iterator[BusServer]:
    with BusServer(database_url=postgresql.make()) as server:
        yield server


def test_a_message_is_stored_and_read(on_postgresql: BusServer) -> None:
    sent = on_postgresql.call("POST", "/api/send", {"from": "ann", "to": "bob", "payload": {"n": 1}})
    read = on_postgresql.call("GET", "/api/messages?to=bob")

    assert sent.status == 200, sent.body
    assert [message["payload"] for message in read.body["messages"]] == [{"n": 1}]
