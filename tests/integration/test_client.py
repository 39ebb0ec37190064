"""The client against a real server: what the scripted bus can't show."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from bus.client import Client, Message
from bus.errors import KeyReused, TooLarge, Unauthenticated
from bus.testing import BusServer

PATIENCE_SECONDS = 30.0
KEY = "a-key-for-the-tests"


def test_a_handler_that_waits_for_receipts_gets_through_a_backlog_larger_than_its_queue(server: BusServer) -> None:
    """Receipts lie in the socket behind messages for which there is no room: without REST this would stand still."""
    count = 300
    bodies = [{"from": "asker", "to": "worker", "payload": "x" * 20_000, "thread_id": str(n)} for n in range(count)]
    assert server.call("POST", "/api/send/batch", {"messages": bodies}).status == 200
    done = threading.Event()
    with Client("worker", server.url, max_received=3) as worker, Client("asker", server.url) as asker:

        @worker.on()
        def answer(message: Message) -> None:
            worker.send(message.sender, message.seq, thread_id=message.thread_id, timeout=PATIENCE_SECONDS)
            if message.thread_id == str(count - 1):
                done.set()

        answers = [asker.receive(PATIENCE_SECONDS) for _ in range(count)]
        assert done.wait(PATIENCE_SECONDS)
    assert [message.thread_id for message in answers] == [str(n) for n in range(count)]


def test_a_restart_loses_and_repeats_nothing_in_either_direction(fresh_server: Callable[..., BusServer]) -> None:
    server = fresh_server()
    with Client("left", server.url) as left, Client("right", server.url) as right:
        futures = [left.send_nowait("right", n) for n in range(200)]
        assert right.receive(PATIENCE_SECONDS).payload == 0
        server.kill()
        futures += [left.send_nowait("right", n) for n in range(200, 400)]
        server.start()
        seqs = [future.result(PATIENCE_SECONDS).seq or 0 for future in futures]
        assert [right.receive(PATIENCE_SECONDS).payload for _ in range(399)] == list(range(1, 400))
        assert seqs == sorted(set(seqs))
        assert right.cursor is not None
        assert right.cursor.endswith(f":{seqs[-1]}")


def test_a_clean_stop_of_the_server_is_followed_by_a_reconnect(fresh_server: Callable[..., BusServer]) -> None:
    server = fresh_server()
    with Client("left", server.url) as left, Client("right", server.url) as right:
        left.send("right", "before")
        server.restart()
        left.send("right", "after", timeout=PATIENCE_SECONDS)
        assert [right.receive(PATIENCE_SECONDS).payload for _ in range(2)] == ["before", "after"]


def test_an_own_key_makes_a_send_happen_once_and_not_with_another_body(server: BusServer) -> None:
    with Client("keyed", server.url) as client:
        first = client.send("keyed", 1, idempotency_key="k-1")
        again = client.send("keyed", 1, idempotency_key="k-1")
        assert (again.duplicate, again.message_id) == (True, first.message_id)
        with pytest.raises(KeyReused):
            client.send("keyed", 2, idempotency_key="k-1")
        client.send("keyed", 3)
        assert [client.receive(PATIENCE_SECONDS).payload for _ in range(2)] == [1, 3]


def test_a_message_larger_than_the_server_takes_fails_and_the_client_goes_on(server: BusServer) -> None:
    with Client("large", server.url) as client:
        with pytest.raises(TooLarge):
            client.send("large", "x" * 1_100_000, timeout=PATIENCE_SECONDS)
        client.send("large", "small", timeout=PATIENCE_SECONDS)
        assert client.receive(PATIENCE_SECONDS).payload == "small"


def test_ephemeral_messages_reach_who_is_there(server: BusServer) -> None:
    with Client("typing", server.url) as client:
        receipt = client.send("typing", {"at": 3}, ephemeral=True)
        assert (receipt.seq, receipt.recipients[0].state) == (None, "delivered")
        assert client.receive(PATIENCE_SECONDS).payload == {"at": 3}


def test_a_wrong_key_is_refused_for_good(fresh_server: Callable[..., BusServer]) -> None:
    server = fresh_server(env={"API_KEY": KEY})
    with Client("keyed", server.url, api_key=KEY) as client:
        assert client.is_connected
    with pytest.raises(Unauthenticated), Client("keyed", server.url, api_key="a-wrong-key-for-tests"):
        pass
