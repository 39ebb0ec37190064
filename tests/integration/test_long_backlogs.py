"""Ten thousand that wait are drained in exact order, each once."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest

from bus.testing import BusServer
from tests.calls import call, claim, pending_acks, send_all, settle
from tests.peer import Peer

pytestmark = pytest.mark.full
COUNT = 10_000
CLASSES = ["critical", "high", "normal", "low", "bulk"]
Start = Callable[..., BusServer]


def fill(server: BusServer, to: str) -> list[int]:
    """Send numbered messages of mixed priorities; their numbers by priority, then in the order in which they were sent.

    They are sent within the 30 s that would make the oldest one class better.
    """
    chance = random.Random(34)
    priorities = [chance.choice(CLASSES) for _ in range(COUNT)]
    messages = [
        {"to": to, "payload": number, "priority": priority, "require_ack": True}
        for number, priority in enumerate(priorities)
    ]
    send_all(server, messages)
    return sorted(range(COUNT), key=lambda number: (CLASSES.index(priorities[number]), number))


@pytest.mark.parametrize("workers", [1, 4])
def test_an_inbox_of_ten_thousand_is_drained_by_priority_and_then_by_seq(fresh_server: Start, workers: int) -> None:
    server = fresh_server(workers=workers, env={"DURABILITY": "relaxed"})
    expected = fill(server, "drained")
    got: list[Any] = []
    with Peer(server, "drained") as drained:
        while len(got) < COUNT:
            message = drained.message()
            got.append(message["payload"])
            assert not {"attempt", "redelivered"} & set(message)
            drained.send_json({"type": "ack", "message_id": message["id"]})
        drained.ask("ack", message_id=message["id"])
        assert drained.has_no_message()
    assert got == expected
    assert pending_acks(server) == 0


@pytest.mark.parametrize("workers", [1, 4])
def test_a_queue_of_ten_thousand_is_drained_by_priority_and_then_by_seq(fresh_server: Start, workers: int) -> None:
    server = fresh_server(workers=workers, env={"DURABILITY": "relaxed"})
    expected = fill(server, "queue:drained")
    half = COUNT // 2
    claimed: list[Any] = []
    while len(claimed) < half:
        for item in claim(server, "drained", "claimer", limit=100):
            claimed.append(item["payload"])
            settle(server, "ack", item, "claimer")
    assert claimed == expected[:half]
    pushed: list[Any] = []
    with Peer(server, "pushed") as consumer:
        consumer.subscribe("drained", max_in_flight=50)
        for message in itertools.islice(iter(consumer.message, None), half):
            pushed.append(message["payload"])
            consumer.send_json({"type": "ack", "message_id": message["id"]})
        consumer.ask("ack", message_id=message["id"])
    assert pushed == expected[half:]
    assert pending_acks(server) == 0
    assert call(server, "GET", "/api/queues/drained")["depth"] == 0
