"""Four workers are one bus: whoever a request or a socket reaches, it sees and reaches everybody."""

from __future__ import annotations

import os
import resource
import signal
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from bus.backplane.local import MAX_UNSENT_BYTES
from bus.tail import POLL_SECONDS
from bus.testing import Answer, BusServer, eventually
from tests.conftest import can_not_run
from tests.follower import Follower
from tests.rawws import RawWebSocket
from tests.workers import only, statuses, wait_until_known

IDLE_SOCKETS = 5000
MIB = 1024 * 1024
GROWTH_BYTES = 64 * MIB
"""What a worker may grow by under load whoever keeps up: SQLite's pages, the recent part of the log, the allocator."""

Start = Callable[..., BusServer]


class Sender(NamedTuple):
    """A client that sends over a WebSocket."""

    name: str
    socket: RawWebSocket

    def send(self, to: object, payload: object, **more: object) -> dict[str, Any]:
        """Send a message, and return its receipt."""
        self.socket.send_json({"type": "send", "to": to, "payload": payload, "ref": 0, **more})
        receipt: dict[str, Any] = self.socket.read_until("sent")
        return receipt


class Crowd:
    """Clients on every worker: for each pid some `followers`, and one of the `senders`."""

    def __init__(self, server: BusServer, name: str, each: int = 2) -> None:
        """Connect `each` followers and a sender to every worker; their names begin with `name`."""
        self.followers: dict[int, list[Follower]] = {}
        self.senders: dict[int, Sender] = {}
        self._stack = ExitStack()
        for index, pid in enumerate(server.worker_pids()):
            with only(server, pid):
                names = [f"{name}-{index}-{number}" for number in range(each)]
                self.followers[pid] = [self._stack.enter_context(Follower(server.port, client)) for client in names]
                sender = Sender(f"{name}-sender-{index}", RawWebSocket(server.port, f"/ws/{name}-sender-{index}"))
                sender.socket.read_json()
                self.senders[pid] = sender
        senders = [sender.name for sender in self.senders.values()]
        wait_until_known(server, senders + [follower.client for follower in self.everybody()])

    def everybody(self) -> list[Follower]:
        """All followers."""
        return [follower for mine in self.followers.values() for follower in mine]

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        for sender in self.senders.values():
            sender.socket.close()
        self._stack.close()


def send(server: BusServer, to: object, payload: object) -> Answer:
    answer = server.call("POST", "/api/send", {"from": "giver", "to": to, "payload": payload})
    assert answer.status == 200, answer.body
    return answer


# ---- reach and order


def test_any_worker_reaches_any_client_and_keeps_each_senders_order(server4: BusServer) -> None:
    count = 150
    with Crowd(server4, "reach") as crowd:
        names = [follower.client for follower in crowd.everybody()]
        owed: dict[str, dict[str, list[int]]] = {name: defaultdict(list) for name in names}

        def produce(sender: Sender) -> None:
            for number in range(count):
                one, other = names[number % len(names)], names[(number + 5) % len(names)]
                to, recipients = ((one, [one]), ([one, other], [one, other]), ("all", names))[number % 3]
                for recipient in recipients:
                    owed[recipient][sender.name].append(number)
                sender.socket.send_json({"type": "send", "to": to, "payload": number, "ref": number})
            for _ in range(count):
                receipt = sender.socket.read_until("sent")
                assert {recipient["state"] for recipient in receipt["recipients"]} <= {"delivered", "sent"}

        with ThreadPoolExecutor() as pool:
            list(pool.map(produce, crowd.senders.values()))
        for follower in crowd.everybody():
            mine = owed[follower.client]
            follower.wait_for(sum(map(len, mine.values())))
            assert follower.seqs == sorted(set(follower.seqs))
            assert {sender: follower.payloads(sender) for sender in mine} == mine


def test_two_connections_of_a_client_on_different_workers_both_get_everything(server4: BusServer) -> None:
    with ExitStack() as twins:
        followers = []
        for pid in server4.worker_pids()[:2]:
            with only(server4, pid):
                followers.append(twins.enter_context(Follower(server4.port, "twin")))
        one, other = followers
        seqs = [send(server4, to, number).body["seq"] for number in range(30) for to in ("twin", "all")]
        one.wait_for(60)
        other.wait_for(60)
        assert one.seqs == other.seqs == seqs
        one.close()
        wait_until_known(server4, ["twin"])
        assert send(server4, "twin", "last").body["recipients"] == [{"client": "twin", "state": "delivered"}]
        other.wait_for(61)


def test_the_fate_of_a_send_counts_connections_of_every_worker(server4: BusServer) -> None:
    with Crowd(server4, "fate") as crowd:
        for sender in crowd.senders.values():
            for follower in crowd.everybody():
                (fate,) = sender.send(follower.client, 1)["recipients"]
                assert fate == {"client": follower.client, "state": "delivered"}
            (fate,) = sender.send("all", 1)["recipients"]
            assert fate["online"] == len(crowd.everybody()) + len(crowd.senders) - 1
        gone = crowd.everybody()[0]
        gone.close()

        def fates() -> set[str]:
            return {sender.send(gone.client, 1)["recipients"][0]["state"] for sender in crowd.senders.values()}

        eventually(lambda: fates() == {"queued"}, what="the fate of a send to a client that left")
        assert {s.send("fate-nobody", 1)["recipients"][0]["state"] for s in crowd.senders.values()} == {"unknown"}


def test_a_message_crosses_workers_without_waiting_for_the_next_look_at_the_log(server4: BusServer) -> None:
    with Crowd(server4, "quick", each=1) as crowd:
        (here, sender), (there, _) = list(crowd.senders.items())[:2]
        (follower,) = crowd.followers[there]
        took = []
        for number in range(30):
            began = time.monotonic()
            sender.send(follower.client, number)
            eventually(lambda number=number: len(follower.messages) > number, what="the message")
            took.append(time.monotonic() - began)
    assert here != there
    assert statistics.median(took) < POLL_SECONDS / 2


def test_ephemeral_messages_cross_workers(server4: BusServer) -> None:
    before = server4.call("GET", "/api/status").body["metrics"]["total_messages"]
    with Crowd(server4, "blink") as crowd:
        for index, sender in enumerate(crowd.senders.values()):
            for follower in crowd.everybody():
                receipt = sender.send(follower.client, index, ephemeral=True)
                assert receipt["seq"] is None
                assert receipt["recipients"] == [{"client": follower.client, "state": "delivered"}]
            sender.send("all", "to all", ephemeral=True)
        for follower in crowd.everybody():
            follower.wait_for(8)
            assert sorted(map(str, follower.payloads())) == ["0", "1", "2", "3", *["to all"] * 4]
    assert server4.call("GET", "/api/status").body["metrics"]["total_messages"] == before


def test_a_long_poll_on_any_worker_wakes(server4: BusServer) -> None:
    names = [f"poller-{number}" for number in range(12)]

    def poll(name: str) -> tuple[float, list[dict[str, Any]]]:
        answer = server4.call("GET", f"/api/messages?to={name}&since=latest&wait=40", timeout_seconds=60)
        return time.monotonic(), answer.body["messages"]

    with ThreadPoolExecutor(len(names)) as pool:
        polls = []
        for index, pid in enumerate(server4.worker_pids()):
            worker = psutil.Process(pid)
            wanted = established(worker) + 3
            with only(server4, pid):
                polls += [pool.submit(poll, name) for name in names[3 * index : 3 * index + 3]]
                eventually(lambda worker=worker, wanted=wanted: established(worker) == wanted, what="three polls")
        began = time.monotonic()

        def all_are_answered() -> bool:
            send(server4, names, "wake up")  # once more, for those that began to wait after the last one
            return all(each.done() for each in polls)

        eventually(all_are_answered, what="all answers")
        for each in polls:
            ended, messages = each.result()
            assert ended - began < 10
            assert messages[0]["payload"] == "wake up"


def established(worker: psutil.Process) -> int:
    """How many clients have a connection to a worker."""
    return sum(each.status == "ESTABLISHED" for each in worker.net_connections("tcp"))


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.full), 4])
def test_a_client_that_comes_back_while_messages_flow_gets_each_once(fresh_server: Start, workers: int) -> None:
    server = fresh_server(workers=workers, env={"INBOX_LIMIT": "1000000"})
    with flow(server, "busy"):
        cursor, seqs = "latest", []
        for _ in range(40):
            with Follower(server.port, "busy", f"since={cursor}") as busy:
                busy.wait_for(200)
            begin = int(busy.hello["cursor"].split(":")[1])
            assert busy.seqs == list(range(begin + 1, begin + 1 + len(busy.seqs)))
            seqs += busy.seqs
            cursor = f"{busy.hello['epoch']}:{seqs[-1]}"
    assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))


@contextmanager
def flow(server: BusServer, to: str) -> Iterator[None]:
    """Have three clients send to `to` all the time, 32 messages under way each."""
    enough = threading.Event()

    def produce(name: str) -> None:
        with RawWebSocket(server.port, f"/ws/{name}") as socket:
            message = {"type": "send", "to": to, "payload": "x" * 100, "ref": 0}
            for _ in range(32):
                socket.send_json(message)
            while not enough.is_set():
                socket.read_until("sent")
                socket.send_json(message)

    threads = [threading.Thread(target=produce, args=(f"flow-{i}",)) for i in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        enough.set()
        for thread in threads:
            thread.join()


# ---- the whole


def test_presence_and_status_count_the_whole(server4: BusServer) -> None:
    with Crowd(server4, "whole") as crowd, ExitStack() as more:
        names = {follower.client for follower in crowd.everybody()}
        for _ in range(8):
            more.enter_context(Follower(server4.port, "whole-many"))

        def is_whole(status: dict[str, Any]) -> bool:
            mine = {name: n for name, n in status["connections"]["by_client"].items() if name.startswith("whole-")}
            expected = (
                dict.fromkeys(names, 1) | {sender.name: 1 for sender in crowd.senders.values()} | {"whole-many": 8}
            )
            return mine == expected and status["workers"] == 4

        eventually(lambda: all(map(is_whole, statuses(server4))), what="the whole on every worker")
        for pid in server4.worker_pids():
            with only(server4, pid):
                status = server4.call("GET", "/api/status").body
                many = server4.call("GET", "/api/clients/whole-many").body
                listed = server4.call("GET", "/api/clients?limit=1000").body["clients"]
            assert status["metrics"]["active_connections"] == status["connections"]["active"]
            assert status["connections"]["active"] == sum(status["connections"]["by_client"].values())
            assert (many["online"], many["connections"], many["over"]) == (True, 8, "websocket")
            assert names <= {client["client"] for client in listed if client["online"]}
    eventually(
        lambda: (
            not any(
                name.startswith("whole-") for status in statuses(server4) for name in status["connections"]["by_client"]
            )
        ),
        what="everybody's absence",
    )
    assert server4.call("GET", "/api/clients/whole-many").body["online"] is False


@pytest.mark.one_node("signals to one master")
def test_a_dead_workers_presence_vanishes(fresh_server: Start) -> None:
    server = fresh_server(workers=4)
    with Crowd(server, "mortal") as crowd:
        victim = next(iter(crowd.followers))
        lost = crowd.followers[victim]
        left = [follower for follower in crowd.everybody() if follower not in lost]
        os.kill(server.pid, signal.SIGSTOP)  # the master starts no successor, whose arrival would settle it, too
        server.kill_worker(victim)
        expected = {follower.client for follower in left}
        expected |= {sender.name for pid, sender in crowd.senders.items() if pid != victim}
        eventually(
            lambda: all(set(status["connections"]["by_client"]) == expected for status in statuses(server)),
            what="the absence of a dead worker's clients",
        )
        assert all(status["workers"] == 3 for status in statuses(server))
        os.kill(server.pid, signal.SIGCONT)
        eventually(lambda: all(status["workers"] == 4 for status in statuses(server)), what="a successor")
        wait_until_known(server, [follower.client for follower in left])
        for follower in lost:
            assert follower.wait_for_end() == 1006
            assert send(server, follower.client, 1).body["recipients"][0]["state"] == "queued"
            with Follower(server.port, follower.client) as back:
                back.wait_for(1)
        for follower in left:
            assert send(server, follower.client, 2).body["recipients"][0]["state"] == "delivered"
            follower.wait_for(1)


@pytest.mark.one_node("workers of one machine")
def test_a_worker_that_was_frozen_catches_up_and_holds_nobody_back(fresh_server: Start) -> None:
    batches, each, size = 120, 9, 100_000  # far more than may wait for a neighbour in memory
    server = fresh_server(workers=2, env={"INBOX_LIMIT": "100000", "DURABILITY": "relaxed"})
    with Crowd(server, "ice", each=1) as crowd:
        frozen, running = crowd.followers
        (asleep,), (awake,) = crowd.followers[frozen], crowd.followers[running]
        body = {"messages": [{"from": "giver", "to": [asleep.client, awake.client], "payload": "x" * size}] * each}
        seqs: list[int] = []
        with only(server, running):
            before = psutil.Process(running).memory_info().rss
            for _ in range(batches):
                answer = server.call("POST", "/api/send/batch", body)
                seqs += [result["seq"] for result in answer.body["results"]]
            awake.wait_for(batches * each)
            assert asleep.messages == []
            grown = psutil.Process(running).memory_info().rss - before
            assert grown < MAX_UNSENT_BYTES + GROWTH_BYTES, f"{grown / MIB:.0f} MiB more"
        asleep.wait_for(batches * each)
        assert asleep.seqs == awake.seqs == seqs


# ---- many sockets


@pytest.fixture
def file_limit() -> Iterator[None]:
    """Room for the sockets of this process; the server, which inherits the hard limit, raises its own."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = IDLE_SOCKETS + 500
    if hard != resource.RLIM_INFINITY and hard < needed:
        can_not_run(f"A process may have {hard} files open here; this needs {needed} (ulimit -Hn).")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.full
@pytest.mark.usefixtures("file_limit")
def test_health_and_sends_answer_as_before_while_five_thousand_sockets_are_open(fresh_server: Start) -> None:
    server = fresh_server()

    def seconds(call: Callable[[], Answer]) -> float:
        began = time.monotonic()
        assert call().status == 200
        return time.monotonic() - began

    def medians() -> tuple[float, float]:
        health = [seconds(lambda: server.call("GET", "/health")) for _ in range(100)]
        sends = [seconds(lambda: send(server, "nobody", 1)) for _ in range(100)]
        return statistics.median(health), statistics.median(sends)

    before = medians()
    with ExitStack() as sockets:

        def connect(number: int) -> RawWebSocket:
            socket = sockets.enter_context(RawWebSocket(server.port, f"/ws/idle-{number}"))
            assert socket.is_open
            return socket

        with ThreadPoolExecutor(16) as pool:
            opened = list(pool.map(connect, range(IDLE_SOCKETS)))

        def are_known() -> bool:
            return bool(server.call("GET", "/api/status").body["connections"]["active"] == IDLE_SOCKETS)

        eventually(are_known, what="all connections")
        during = medians()
        send(server, "idle-4999", "found")
        assert opened[4999].read_until("message")["message"]["payload"] == "found"
    for was, became in zip(before, during, strict=True):
        assert became < 3 * was + 0.005, f"{was * 1000:.1f} ms became {became * 1000:.1f} ms"


def test_a_worker_shows_that_it_lives_without_a_disk(server4: BusServer) -> None:
    """gunicorn's heartbeat touches a file on the event loop; on a disk that is busy syncing, that would wait."""
    if not os.access("/dev/shm", os.W_OK):
        can_not_run("There is no folder in memory here.")
    for pid in server4.worker_pids():
        files = [os.path.realpath(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
        assert [name for name in files if name.startswith("/dev/shm/wgunicorn-")], files
