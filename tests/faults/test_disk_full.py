"""A full disk: sends are refused, and nothing else; when there is room again the bus goes on by itself."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bus.testing import Answer, BusServer, ServerFailed, eventually
from tests.faults.small_disk import fill, on_own_disk, seen_by
from tests.follower import Follower
from tests.rawws import RawWebSocket

SIZE = "size=16m"

pytestmark = pytest.mark.full


class FullServer(NamedTuple):
    """A server whose disk is full. `acknowledged` are the payloads it took before, from `giver` to `taker`."""

    server: BusServer
    filler: Path
    acknowledged: list[Any]


def send(server: BusServer, payload: object, **more: object) -> Answer:
    return server.call("POST", "/api/send", {"from": "giver", "to": "taker", "payload": payload, **more})


def send_until_refused(server: BusServer) -> tuple[list[Any], Answer]:
    """Send until the server refuses: the payloads it took, and the refusal."""
    taken: list[Any] = []
    while (answer := send(server, {"n": len(taken), "pad": "x" * 5000})).status == 200:
        taken.append({"n": len(taken), "pad": "x" * 5000})
    return taken, answer


def whole_log(server: BusServer) -> list[Any]:
    """The payload of every message in the log."""
    payloads: list[Any] = []
    cursor, more = "earliest", True
    while more:
        page = server.call("GET", f"/api/log?limit=1000&since={cursor}").body
        payloads += [message["payload"] for message in page["messages"]]
        cursor, more = page["cursor"], page["more"]
    return payloads


@pytest.fixture(params=[1, 2], ids=["one worker", "two workers"])
def full(request: pytest.FixtureRequest, tmp_path: Path, fresh_server: Callable[..., BusServer]) -> FullServer:
    """A server that was restarted, so that it remembers nobody, and whose disk is full then."""
    folder = tmp_path / "data"
    folder.mkdir()
    server = fresh_server(command=on_own_disk(folder, SIZE), data_dir=folder, workers=request.param)
    with Follower(server.port, "taker") as taker:
        assert send(server, "first").status == 200
        taker.wait_for(1)
    filler = fill(seen_by(server, folder))
    taken, _ = send_until_refused(server)
    return FullServer(server, filler, ["first", *taken])


def test_a_full_disk_refuses_sends_and_nothing_else(full: FullServer) -> None:
    server, filler, acknowledged = full
    # Sends are refused, in every form, with what to do.
    refusal = send(server, "more")
    assert (refusal.status, refusal.body["code"]) == (507, "disk_full")
    assert "Make room" in refusal.body["error"]
    batch = {"messages": [{"from": "giver", "to": "taker", "payload": n} for n in range(3)]}
    answer = server.call("POST", "/api/send/batch", batch)
    assert [result["code"] for result in answer.body["results"]] == ["disk_full"] * 3
    assert server.call("POST", "/api/send/batch", batch | {"atomic": True}).status == 507
    keyed = send(server, "keyed", idempotency_key="once")
    assert keyed.status == 507

    # Reads go on.
    assert server.call("GET", "/health").status == 200
    assert server.call("GET", "/api/status").body["metrics"]["total_messages"] == len(acknowledged)
    assert whole_log(server) == acknowledged
    inbox = server.call("GET", "/api/messages?to=taker&since=earliest&limit=1000").body
    assert [message["payload"] for message in inbox["messages"]] == acknowledged
    assert server.call("GET", "/api/messages?to=taker&since=latest&wait=0.1").status == 200
    assert server.call("GET", "/api/clients/taker").status == 200

    # When there is room again, the same process goes on: it took nothing that it refused, and lost nothing.
    filler.unlink()
    pids = server.worker_pids()
    eventually(lambda: send(server, "after").status == 200, what="a send that is taken")
    again = send(server, "keyed", idempotency_key="once")
    assert again.status == 200
    assert "duplicate" not in again.body
    assert server.worker_pids() == pids
    assert whole_log(server) == [*acknowledged, "after", "keyed"]


def test_a_worker_that_dies_on_a_full_disk_takes_nobody_along(full: FullServer) -> None:
    server, filler, acknowledged = full
    before, begun = server.worker_pids(), len(server.log)
    server.kill_worker(before[0])
    ends = ("The bus serves", "A worker can't start for now", "Shutting down")
    eventually(lambda: any(end in server.log[begun:] for end in ends), within_seconds=20, what="an attempt")
    assert "Shutting down" not in server.log[begun:]
    filler.unlink()
    eventually(lambda: len(server.worker_pids()) == len(before), within_seconds=20, what="all workers")

    def is_taken() -> bool:
        with contextlib.suppress(OSError):
            return send(server, "after").status == 200
        return False

    eventually(is_taken, within_seconds=20, what="a send that is taken")
    assert whole_log(server) == [*acknowledged, "after"]


def test_a_server_on_a_full_disk_ends_in_order(full: FullServer) -> None:
    assert full.server.terminate() == 0
    assert full.server.log.count("The bus has stopped") == full.server.workers
    assert "could not be stopped in order" not in full.server.log


def test_over_websocket_a_refused_send_is_an_error_frame_and_known_clients_still_read(full: FullServer) -> None:
    server, filler, acknowledged = full
    # On each worker, and none of them has met all of these names.
    for _ in range(4):
        with RawWebSocket(server.port, "/ws/giver") as giver:
            assert giver.is_open, giver.body
            giver.send_json({"type": "send", "to": "taker", "payload": "more", "ref": "r"})
            refusal = giver.read_until("error")
            assert (refusal["code"], refusal["ref"]) == ("disk_full", "r")
            giver.send_json({"type": "ping"})
            giver.read_until("pong")
        with Follower(server.port, "taker", "since=earliest") as taker:
            taker.wait_for(len(acknowledged))
            assert taker.payloads() == acknowledged
    with RawWebSocket(server.port, "/ws/newcomer") as newcomer:
        assert newcomer.status == 507

    filler.unlink()
    with RawWebSocket(server.port, "/ws/giver") as giver, Follower(server.port, "taker") as taker:
        giver.send_json({"type": "send", "to": "taker", "payload": "after", "ref": "s"})
        assert giver.read_until("sent")["ref"] == "s"
        eventually(lambda: taker.payloads()[-1:] == ["after"], what="the message after")
    with RawWebSocket(server.port, "/ws/newcomer") as newcomer:
        assert newcomer.is_open
    assert whole_log(server) == [*acknowledged, "after"]


def test_a_disk_that_fills_and_empties_under_load_loses_nothing_acknowledged(full: FullServer) -> None:
    server, filler, acknowledged = full
    folder = filler.parent
    enough = threading.Event()
    taken: dict[str, list[str]] = {"one": [], "two": []}
    refused = {"one": 0, "two": 0}

    def produce(name: str) -> None:
        number = 0
        while not enough.is_set():
            number += 1
            payload = f"{name}-{number}-" + "x" * 2000
            answer = server.call("POST", "/api/send", {"from": name, "to": "taker", "payload": payload})
            if answer.status == 200:
                taken[name].append(payload)
            else:
                assert answer.status == 507, answer
                refused[name] += 1

    threads = [threading.Thread(target=produce, args=(name,)) for name in taken]
    for thread in threads:
        thread.start()
    for _ in range(3):
        for outcome in (taken, refused):
            if outcome is taken:
                filler.unlink()
            else:
                fill(folder)
            before = _sizes(outcome)
            eventually(
                lambda outcome=outcome, before=before: _sizes(outcome) >= before + 20, what="twenty more answers"
            )
    enough.set()
    for thread in threads:
        thread.join()
    log = whole_log(server)
    assert log[: len(acknowledged)] == acknowledged
    for payloads in taken.values():
        assert [payload for payload in log if payload in set(payloads)] == payloads
    assert len(log) == len(acknowledged) + sum(map(len, taken.values()))


def _sizes(outcome: dict[str, Any]) -> int:
    return sum(value if isinstance(value, int) else len(value) for value in outcome.values())


@pytest.mark.parametrize("size", ["4k", "24k", "40k", "80k", "128k"])
def test_a_start_on_a_full_disk_is_refused_with_one_sentence(
    tmp_path: Path, fresh_server: Callable[..., BusServer], size: str
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    with pytest.raises(ServerFailed) as failure:
        fresh_server(command=on_own_disk(folder, f"size={size}"), data_dir=folder)
    assert "The server does not start: The " in str(failure.value)
    assert "make room" in str(failure.value)
    assert "Traceback" not in str(failure.value)
