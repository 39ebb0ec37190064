"""Threads: what carries one thread id, in order, with everybody who took part."""

from __future__ import annotations

from typing import Any

import pytest

from bus.testing import BusServer
from tests.calls import call, payloads, send
from tests.peer import Peer


def thread(server: BusServer, thread_id: str, **query: object) -> Any:
    """A page of a thread."""
    return call(server, "GET", f"/api/threads/{thread_id}", **query)


def test_a_thread_has_its_messages_in_order_and_all_who_took_part(each_server: BusServer) -> None:
    with Peer(each_server, "dora") as dora:
        for number, (sender, to) in enumerate(
            [("ann", "bob"), ("bob", ["ann", "cy"]), ("cy", "all"), ("ann", "queue:jobs")]
        ):
            send(each_server, to, number, sender=sender, thread_id="talk")
            send(each_server, to, "beside", sender=sender, thread_id="other")
        dora.ask("send", to="bob", payload=4, thread_id="talk", require_ack=True)
    found = thread(each_server, "talk")
    assert payloads(found["messages"]) == [0, 1, 2, 3, 4]
    assert (found["thread_id"], found["count"], found["more"]) == ("talk", 5, False)
    assert found["participants"] == ["ann", "bob", "cy", "dora"]
    assert {message["thread_id"] for message in found["messages"]} == {"talk"}
    stamps = [message["timestamp"] for message in found["messages"]]
    assert (found["started_at"], found["last_activity"]) == (min(stamps), max(stamps))


def test_a_thread_is_read_in_pages(each_server: BusServer) -> None:
    for number in range(7):
        send(each_server, "reader", number, thread_id="long")
    read, cursor, more = [], "", True
    while more:
        page = thread(each_server, "long", limit=3, **({"cursor": cursor} if cursor else {}))
        assert page["count"] == 7
        read += payloads(page["messages"])
        cursor, more = page["cursor"], page["more"]
    assert read == list(range(7))
    send(each_server, "reader", 7, thread_id="long")
    assert payloads(thread(each_server, "long", cursor=cursor)["messages"]) == [7]


def test_a_delayed_message_joins_its_thread_when_it_is_due(each_server: BusServer) -> None:
    with Peer(each_server, "waiter") as waiter:
        send(each_server, "waiter", "late", thread_id="slow", delay=0.3)
        send(each_server, "waiter", "soon", thread_id="slow")
        assert payloads(thread(each_server, "slow")["messages"]) == ["soon"]
        waiter.messages(2)
    assert payloads(thread(each_server, "slow")["messages"]) == ["soon", "late"]


def test_a_thread_id_of_any_characters_is_found(server: BusServer) -> None:
    send(server, "x", 1, thread_id="שיחה")
    assert payloads(thread(server, "%D7%A9%D7%99%D7%97%D7%94")["messages"]) == [1]


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/api/threads/none", 404, "unknown_thread"),
        ("/api/threads/none?cursor=5", 400, "bad_cursor"),
        ("/api/threads/none?limit=x", 400, "bad_field"),
    ],
)
def test_a_wrong_look_is_refused(server: BusServer, path: str, status: int, code: str) -> None:
    answer = server.call("GET", path)
    assert (answer.status, answer.body["code"]) == (status, code)


def test_a_clear_empties_threads(fresh_server: Any) -> None:
    server = fresh_server()
    send(server, "x", 1, thread_id="short")
    call(server, "POST", "/api/clear")
    assert server.call("GET", "/api/threads/short").status == 404
