"""How a server stops: everybody is told and answered, nothing acknowledged is lost, and it is over soon."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Any

import psutil
import pytest

from bus.testing import Answer, BusServer, eventually
from tests.calls import call, claim, inbox
from tests.follower import NO_CLOSE_FRAME, Follower, Returner
from tests.rawws import CLOSE, TEXT, Disconnected, RawWebSocket

GRACE_SECONDS = 30.0
"""After which gunicorn kills a worker that does not leave; Kubernetes' default, too."""

SOON_SECONDS = GRACE_SECONDS / 3
SHIPPED = {"DRAIN_NOTICE_SECONDS": "1", "DRAIN_SPREAD_SECONDS": "5"}
"""The defaults of the server; BusServer's are shorter."""

RESTART = 1012
Start = Callable[..., BusServer]


def send(server: BusServer, to: str, payload: object, sender: str = "giver") -> Answer:
    return server.call("POST", "/api/send", {"from": sender, "to": to, "payload": payload})


def seconds_to_stop(server: BusServer) -> float:
    """Stop it with SIGTERM; it must end with 0."""
    began = time.monotonic()
    assert server.terminate() == 0
    return time.monotonic() - began


def status(server: BusServer) -> dict[str, Any]:
    return server.call("GET", "/api/status").body


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.full), 4])
def test_at_sigterm_sockets_are_told_and_closed_and_polls_are_answered(fresh_server: Start, workers: int) -> None:
    server = fresh_server(workers=workers, env=SHIPPED)
    polled: list[Answer] = []

    def poll(name: str) -> None:
        polled.append(server.call("GET", f"/api/messages?to={name}&since=latest&wait=50"))

    with ExitStack() as open_sockets:
        followers = [open_sockets.enter_context(Follower(server.port, f"client-{i}")) for i in range(50)]
        polls = [threading.Thread(target=poll, args=(f"poller-{i}",)) for i in range(10)]
        for thread in polls:
            thread.start()
        eventually(lambda: status(server)["connections"]["active"] == 50, what="fifty sockets")
        eventually(lambda: accepted_connections(server) >= 60, what="ten polls beside fifty sockets")

        assert seconds_to_stop(server) < SOON_SECONDS
        for thread in polls:
            thread.join(10)
        assert [(answer.status, answer.body["messages"]) for answer in polled] == [(200, [])] * 10
        assert [follower.wait_for_end() for follower in followers] == [RESTART] * 50
        for follower in followers:
            goaway = follower.wait_for_frame("goaway")
            assert goaway["reason"] == "restart"
            assert 0 < goaway["reconnect_after_ms"] <= 10_000
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", server.port), 5):
        pass


def accepted_connections(server: BusServer) -> int:
    """How many connections the workers have. The kernel's queue holds some that are established and not yet theirs."""
    ports = {node.port for node in getattr(server, "nodes", [server])}
    connections = [each for pid in server.worker_pids() for each in psutil.Process(pid).net_connections("tcp")]
    return sum(1 for each in connections if each.laddr.port in ports and each.status == "ESTABLISHED")


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.full), 4])
def test_claims_and_questions_that_wait_are_answered(fresh_server: Start, workers: int) -> None:
    server = fresh_server(workers=workers)
    with ThreadPoolExecutor(8) as pool:
        claims = [pool.submit(claim, server, "idle", f"claimer-{i}", wait=50) for i in range(4)]
        body = {"from": "asker", "to": "nobody", "wait": 50}
        questions = [pool.submit(call, server, "POST", "/api/request", body) for _ in range(4)]
        eventually(lambda: call(server, "GET", "/api/queues/idle")["consumers"] == 4, what="the claims")
        eventually(lambda: inbox(server, "nobody")["count"] == 4, what="the questions")
        assert seconds_to_stop(server) < SOON_SECONDS
        assert [each.result() for each in claims] == [[]] * 4
        assert {each.result()["status"] for each in questions} == {"pending"}


def test_idle_keep_alive_connections_do_not_hold_the_stop_up(fresh_server: Start) -> None:
    server = fresh_server()
    idle = [http.client.HTTPConnection("127.0.0.1", server.port, timeout=10) for _ in range(5)]
    for connection in idle:
        connection.request("GET", "/health")
        assert connection.getresponse().read()
    assert seconds_to_stop(server) < 5
    for connection in idle:
        connection.close()


@pytest.mark.full
def test_sockets_that_answer_nothing_do_not_hold_the_stop_up(fresh_server: Start) -> None:
    server = fresh_server(env=SHIPPED | {"INBOX_LIMIT": "100000"})
    with (
        RawWebSocket(server.port, "/ws/mute") as mute,
        RawWebSocket(server.port, "/ws/stuck", receive_buffer_bytes=4096) as stuck,
        Follower(server.port, "lively") as lively,
    ):
        to_two = {"from": "giver", "to": ["stuck", "lively"], "payload": "x" * 10_000}
        assert server.call("POST", "/api/send/batch", {"messages": [to_two] * 800}).status == 200
        lively.wait_for(800)
        assert seconds_to_stop(server) < SOON_SECONDS
        assert lively.wait_for_end() == RESTART
        assert mute.read_close().close_code == RESTART
        with pytest.raises(Disconnected):
            stuck.read_close()
        server.start()
        with Follower(server.port, "stuck") as back:
            back.wait_for(800)
            assert len(back.seqs) == len(set(back.seqs)) == 800


def test_a_client_that_answers_our_close_is_not_told_again_what_it_has(fresh_server: Start) -> None:
    server = fresh_server()
    with (
        Follower(server.port, "parting", answers_pings=False) as parting,
        Follower(server.port, "vanishing", answers_pings=False, answers_close=False) as vanishing,
    ):
        for number in range(20):
            assert send(server, "all", number).status == 200
        parting.wait_for(20)
        vanishing.wait_for(20)
        server.restart()
        assert parting.wait_for_end() == RESTART
    assert send(server, "all", "next").status == 200
    with Follower(server.port, "parting") as parting, Follower(server.port, "vanishing") as vanishing:
        parting.wait_for(1)
        vanishing.wait_for(21)
        assert parting.payloads() == ["next"]
        assert vanishing.payloads() == [*range(20), "next"]


@pytest.mark.full
def test_what_is_queued_goes_out_before_the_close(fresh_server: Start) -> None:
    server = fresh_server()
    with RawWebSocket(server.port, "/ws/late", receive_buffer_bytes=4096) as late:
        late.read_json()
        batch = {"messages": [{"from": "giver", "to": "late", "payload": "x" * 5000} for _ in range(100)]}
        seqs = [result["seq"] for result in server.call("POST", "/api/send/batch", batch).body["results"]]
        stopping = threading.Thread(target=server.terminate)
        stopping.start()
        frames = []
        while (frame := late.read_frame()).opcode != CLOSE:
            frames.append(frame)
        late.send_frame(CLOSE, frame.payload[:2])
        stopping.join()
        values = [json.loads(frame.payload) for frame in frames if frame.opcode == TEXT]
        assert [value["message"]["seq"] for value in values if value["type"] == "message"] == seqs
        assert frame.close_code == RESTART


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.full), 4])
def test_sends_under_way_at_sigterm_are_in_the_log_if_they_were_acknowledged(fresh_server: Start, workers: int) -> None:
    server = fresh_server(workers=workers, env={"INBOX_LIMIT": "1000000"})
    acknowledged: dict[str, list[int]] = {}

    def produce_over_websocket(name: str) -> None:
        mine = acknowledged.setdefault(name, [])
        with RawWebSocket(server.port, f"/ws/{name}") as producer:
            number = under_way = 0
            while True:
                while under_way < 50:
                    number, under_way = number + 1, under_way + 1
                    producer.send_json({"type": "send", "to": "taker", "payload": number, "ref": number})
                frame = producer.read_json()  # raises when the close frame comes
                if frame["type"] == "sent":
                    under_way -= 1
                    mine.append(frame["ref"])

    def produce_over_rest(name: str) -> None:
        mine = acknowledged.setdefault(name, [])
        number = 0
        while send(server, "taker", number, name).status == 200:
            mine.append(number)
            number += 1

    def until_it_ends(produce: Callable[[str], None], name: str) -> None:
        try:
            produce(name)
        except (Disconnected, OSError, AssertionError, http.client.HTTPException):
            return

    producers = [
        threading.Thread(target=until_it_ends, args=(produce, f"{produce.__name__}-{i}"))
        for produce in (produce_over_websocket, produce_over_rest)
        for i in range(2)
    ]
    for thread in producers:
        thread.start()
    eventually(
        lambda: len(acknowledged) == 4 and all(len(mine) > 50 for mine in acknowledged.values()),
        what="acknowledgements",
    )
    assert server.terminate() == 0
    for thread in producers:
        thread.join(20)
    server.workers = 1
    server.start()
    stored: dict[str, list[int]] = {name: [] for name in acknowledged}
    cursor, more = "earliest", True
    while more:
        page = server.call("GET", f"/api/log?limit=1000&since={cursor}").body
        for message in page["messages"]:
            stored[message["from"]].append(message["payload"])
        cursor, more = page["cursor"], page["more"]
    for name, numbers in acknowledged.items():
        assert stored[name] == sorted(set(stored[name]))
        assert set(numbers) <= set(stored[name])


@pytest.fixture
def patient_server(fresh_server: Start) -> BusServer:
    """A server that gives long notice before it closes."""
    return fresh_server(env={"DRAIN_NOTICE_SECONDS": "20"})


@pytest.mark.one_node("signals to one master")
def test_sigint_is_the_hurry_up(patient_server: BusServer) -> None:
    with Follower(patient_server.port, "anna") as anna:
        began = time.monotonic()
        os.kill(patient_server.pid, signal.SIGTERM)
        anna.wait_for_frame("goaway")
        os.kill(patient_server.pid, signal.SIGINT)
        assert patient_server.wait(SOON_SECONDS) == 0
        assert time.monotonic() - began < SOON_SECONDS
        assert anna.wait_for_end() in (RESTART, NO_CLOSE_FRAME)


@pytest.mark.full
@pytest.mark.one_node("signals to one master")
def test_sigint_alone_stops_the_server_without_notice(patient_server: BusServer) -> None:
    with Follower(patient_server.port, "anna") as anna:
        assert send(patient_server, "anna", 1).status == 200
        anna.wait_for(1)
        os.kill(patient_server.pid, signal.SIGINT)
        assert patient_server.wait(SOON_SECONDS) == 0
        assert anna.wait_for_end() == RESTART
    patient_server.start()
    assert len(patient_server.call("GET", "/api/log").body["messages"]) == 1


def test_a_killed_workers_clients_resume_elsewhere_in_order(fresh_server: Start) -> None:
    server = fresh_server(workers=4)
    enough = threading.Event()
    sent: list[int] = []

    def produce() -> None:
        number = 0
        while not enough.is_set():
            number += 1
            with suppress(OSError, http.client.HTTPException):  # it went to a worker that was killed: stored, or not
                if send(server, "all", number).status == 200:
                    sent.append(number)

    with ExitStack() as clients:
        returners = [clients.enter_context(Returner(server.port, f"client-{i}")) for i in range(12)]
        for returner in returners:
            returner.wait_for_life()
        producer = threading.Thread(target=produce)
        producer.start()
        for pid in server.worker_pids()[:2]:
            wanted = len(sent) + 100
            eventually(lambda wanted=wanted: len(sent) >= wanted, what="a hundred more messages")
            server.kill_worker(pid)
        wanted = len(sent) + 100
        eventually(lambda: len(sent) >= wanted, what="a hundred more messages")
        enough.set()
        producer.join()
        for returner in returners:
            eventually(
                lambda returner=returner: returner.lives[-1].payloads()[-1:] >= sent[-1:],
                what=f"{returner.client} to catch up",
            )
        assert any(len(returner.lives) > 1 for returner in returners)
        for returner in returners:
            numbers = [message["payload"] for message in returner.first_deliveries()]
            assert numbers == sorted(set(numbers))
            assert set(sent) <= set(numbers)
