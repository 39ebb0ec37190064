"""What is in hands was seen by who has it: bounds are kept, hand-outs go on where they were cut, nothing is left waiting."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from bus.testing import BusServer, eventually
from tests.calls import call, claim, payloads, send, send_all, settle, state
from tests.peer import Peer

WIDE = {"wide": "x" * 300_000}


@contextmanager
def slow_reader(server: BusServer, client: str) -> Iterator[Peer]:
    """A peer whose socket takes little at a time."""
    with Peer(server, client, receive_buffer_bytes=8192) as peer:
        yield peer


def test_a_consumer_of_many_queues_gets_no_more_than_it_asked_for(each_server: BusServer) -> None:
    queues = [f"one-of-{n}" for n in range(12)]
    send_all(each_server, [{"to": f"queue:{queue}", "payload": queue} for queue in queues])
    with Peer(each_server, "modest") as consumer:
        consumer.subscribe(*queues, max_in_flight=2)
        done = []
        held = consumer.messages(2)
        while held:
            assert consumer.has_no_message()
            message = held.pop(0)
            done.append(message["payload"])
            consumer.settle("ack", message)
            if len(done) + len(held) < len(queues):
                held.append(consumer.message())
    assert sorted(done) == sorted(queues)


def test_large_headers_count_for_what_is_handed_out_and_all_of_it_comes(each_server: BusServer) -> None:
    send_all(each_server, [{"to": "queue:wide", "payload": n, "headers": WIDE, "ack_wait": 60} for n in range(9)])
    with slow_reader(each_server, "narrow") as consumer:
        consumer.subscribe("wide", max_in_flight=20)
        assert payloads(consumer.messages(9)) == list(range(9))


def test_an_inbox_of_large_messages_comes_once_to_a_slow_reader(each_server: BusServer) -> None:
    many = [{"to": "reader", "payload": n, "headers": WIDE, "require_ack": True, "ack_wait": 60} for n in range(9)]
    send_all(each_server, many)
    with slow_reader(each_server, "reader") as reader:
        assert payloads(reader.messages(9)) == list(range(9))
        assert reader.has_no_message()
    with slow_reader(each_server, "reader") as reader:  # again, since nothing was acked, and once
        assert payloads(reader.messages(9)) == list(range(9))
        assert reader.has_no_message()


def test_a_claim_that_does_not_wait_is_answered_though_a_hundred_wait(each_server: BusServer) -> None:
    with ThreadPoolExecutor(110) as pool:
        waiting = [pool.submit(claim, each_server, "crowded", f"waiter-{n}", wait=4) for n in range(105)]
        eventually(
            lambda: call(each_server, "GET", "/api/queues/crowded")["consumers"] == 105, what="a hundred who wait"
        )
        assert claim(each_server, "crowded", "hasty") == []
        send_all(each_server, [{"to": "queue:crowded", "payload": n} for n in range(105)])
        taken = [message["payload"] for future in waiting for message in future.result()]
    assert sorted(taken) == list(range(105))


def test_time_that_was_granted_is_not_taken_back_by_a_second_connection(each_server: BusServer) -> None:
    with Peer(each_server, "granted") as first:
        sent = send(each_server, "granted", require_ack=True, ack_wait=0.3)
        message = first.message()
        assert first.settle("progress", message, ack_wait=60)["status"] == "extended"
        with Peer(each_server, "granted") as second:
            assert second.message()["redelivered"] is True
            send(
                each_server, "granted", "a mark", require_ack=True, ack_wait=0.3
            )  # its lease ends, the first's does not
            eventually(lambda: second.message().get("attempt") == 2, what="the second attempt of the mark")
            assert state(each_server, sent["message_id"]) == "leased"


def test_a_correlation_id_that_is_used_again_leaves_the_first_question_alone(each_server: BusServer) -> None:
    asked = [
        call(each_server, "POST", "/api/request", {"from": "asker", "to": "twice", "correlation_id": "same", "wait": 0})
        for _ in range(2)
    ]
    send(each_server, "asker", "yes", sender="twice", correlation_id="same")
    found = [call(each_server, "GET", f"/api/requests/{request['request_id']}") for request in asked]
    assert [request["status"] for request in found] == ["pending", "answered"]


def test_who_has_half_hung_up_is_handed_nothing(each_server: BusServer) -> None:
    body = b'{"client": "gone", "wait": 20}'
    with socket.create_connection(("127.0.0.1", each_server.port)) as plain:
        plain.sendall(
            b"POST /api/queues/half/claim HTTP/1.1\r\nHost: localhost:%d\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (each_server.port, len(body), body)
        )
        eventually(lambda: call(each_server, "GET", "/api/queues/half")["consumers"] == 1, what="the claim")
        plain.shutdown(socket.SHUT_WR)
        send(each_server, "queue:half", 1)
        answer = b""
        while not answer.endswith(b"}"):
            answer += plain.recv(65536)
        assert answer.endswith(b'{"messages":[]}')
    (item,) = claim(each_server, "half", "present", wait=10)
    assert settle(each_server, "ack", item, "present")["status"] == "acked"
