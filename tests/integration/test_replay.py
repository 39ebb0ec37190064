"""Replay: a range of the log is put into an inbox again, marked, at a rate, once, whatever happens meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bus.testing import BusServer, eventually
from tests.calls import call, inbox, payloads, send, send_all, settle, state
from tests.peer import Peer
from tests.rawws import TEXT, RawWebSocket

Start = Callable[..., BusServer]


def replay(server: BusServer, to: str, since: str = "earliest", **how: object) -> Any:
    """Begin a replay; how it stands."""
    return call(server, "POST", "/api/replay", {"to": to, "since": since, **how})


def standing(server: BusServer, begun: dict[str, Any]) -> Any:
    """How a replay stands now."""
    return call(server, "GET", f"/api/replays/{begun['replay_id']}")


def finished(server: BusServer, begun: dict[str, Any], within_seconds: float = 20) -> Any:
    """Wait until a replay is done."""
    return eventually(
        lambda: (now := standing(server, begun))["status"] == "done" and now,
        within_seconds=within_seconds,
        what="the end of the replay",
    )


def numbered(to: object, count: int, **more: object) -> list[dict[str, Any]]:
    """Numbered sends."""
    return [{"to": to, "payload": number, **more} for number in range(count)]


# ---- what comes


def test_what_is_replayed_is_new_and_marked(each_server: BusServer) -> None:
    with Peer(each_server, "scholar") as scholar:
        send(each_server, "scholar", {"n": 1}, type="lesson", thread_id="t", headers={"k": "v"}, priority="low")
        send(each_server, "scholar", 2, require_ack=True)
        first, second = scholar.messages(2)
        scholar.settle("ack", second)
        begun = replay(each_server, "scholar")
        assert (begun["status"], begun["to"], begun["copied"]) == ("running", "scholar", 0)
        for original, copy in zip((first, second), scholar.messages(2), strict=True):
            assert (copy["replayed"], copy["replay_of"]) == (True, original["id"])
            assert copy["id"] != original["id"]
            assert copy["seq"] > second["seq"]
            assert copy["requires_ack"] is False
            same = set(original) - {"id", "seq", "timestamp", "requires_ack", "to"}
            assert {name: copy[name] for name in same} == {name: original[name] for name in same}
    done = finished(each_server, begun)
    assert (done["copied"], done["status"]) == (2, "done")
    assert done["replay_id"] in [each["replay_id"] for each in call(each_server, "GET", "/api/replays")["replays"]]
    assert state(each_server, second["id"]) == "acked"


def test_a_range_is_replayed_narrowed_by_sender_and_type(each_server: BusServer) -> None:
    cursors = []
    for number in range(8):
        sent = send(each_server, "picky", number, sender=f"s{number % 2}", type="even" if number % 4 < 2 else "odd")
        cursors.append(f"{sent['message_id'][4:16]}:{sent['seq']}")
    last = inbox(each_server, "picky")["cursor"]
    for how, expected in (
        ({"since": cursors[5]}, [6, 7]),
        ({"until": cursors[2]}, [0, 1, 2]),
        ({"since": cursors[1], "until": cursors[3]}, [2, 3]),
        ({"from": "s1", "until": cursors[7]}, [1, 3, 5, 7]),
        ({"type": "odd", "from": "s0", "until": cursors[7]}, [2, 6]),
    ):
        before = call(each_server, "GET", "/api/status")["cursor"]
        done = finished(each_server, replay(each_server, "picky", **{"until": last, **how}))
        assert payloads(inbox(each_server, "picky", since=before)["messages"]) == expected
        assert done["copied"] == len(expected)
        assert done["cursor"] == done["until"]


def test_another_may_be_given_the_whole_log(fresh_server: Start) -> None:
    server = fresh_server()
    for number, to in enumerate(["ann", "queue:jobs", "all", ["ann", "bob"]]):
        send(server, to, number)
    finished(server, replay(server, "auditor", source="log"))
    copies = inbox(server, "auditor", since="earliest")["messages"]
    assert payloads([message for message in copies if "replayed" in message]) == [0, 1, 2, 3]
    assert {message["to"] for message in copies if "replayed" in message} == {"auditor"}
    assert inbox(server, "ann", since="earliest")["count"] == 3


def test_a_replay_is_bounded_by_its_beginning(each_server: BusServer) -> None:
    send_all(each_server, numbered("looped", 5))
    begun = replay(each_server, "looped")
    assert finished(each_server, begun)["copied"] == 5
    again = finished(each_server, replay(each_server, "looped"))
    assert again["copied"] == 10
    copies = inbox(each_server, "looped", since=begun["until"], limit=100)["messages"]
    assert payloads(copies) == [*range(5)] * 3
    originals = {message["id"] for message in inbox(each_server, "looped", since="earliest", limit=5)["messages"]}
    assert {message["replay_of"] for message in copies[:10]} == originals


def test_a_copy_of_a_copy_is_marked_once(server: BusServer) -> None:
    send(server, "copied", 1, headers={"replayed": "no"})
    for _ in range(2):
        finished(server, replay(server, "copied"))
    texts: list[bytes] = []
    with RawWebSocket(server.port, "/ws/copied?since=earliest") as socket:
        while len(texts) < 5:
            frame = socket.read_frame()
            texts += [frame.payload] if frame.opcode == TEXT else []
    assert [text.count(b'"replayed":true') for text in texts[1:]] == [0, 1, 1, 1]
    assert [text.count(b'"replay_of"') for text in texts[1:]] == [0, 1, 1, 1]


# ---- rate, cancelling, crashes


def test_a_replay_goes_at_its_rate_and_can_be_cancelled(each_server: BusServer) -> None:
    send_all(each_server, numbered("leisure", 500))
    begun = replay(each_server, "leisure", rate=20)
    eventually(lambda: standing(each_server, begun)["copied"] > 0, what="the first copies")
    now = call(each_server, "DELETE", f"/api/replays/{begun['replay_id']}")
    assert now["status"] == "cancelled"
    assert 0 < now["copied"] < 500
    assert call(each_server, "DELETE", f"/api/replays/{begun['replay_id']}") == now
    finished(each_server, replay(each_server, "elsewhere", rate=10_000))
    assert standing(each_server, begun) == now
    copies = inbox(each_server, "leisure", since=begun["until"], limit=1000)["messages"]
    assert payloads(copies) == list(range(now["copied"]))


@pytest.mark.parametrize("workers", [1, pytest.param(4, marks=pytest.mark.full)])
def test_a_replay_goes_on_after_a_kill_without_loss_or_repeat(fresh_server: Start, workers: int) -> None:
    count = 450
    server = fresh_server(workers=workers)
    send_all(server, numbered("survivor", count))
    begun = replay(server, "survivor", rate=150)
    for kill in range(2):
        before = standing(server, begun)["copied"]
        eventually(
            lambda before=before: (now := standing(server, begun))["copied"] > before or now["status"] == "done",
            within_seconds=30,  # over nodes, the lease of who was killed has to end
            what=f"progress before kill {kill}",
        )
        server.kill()
        server.start()
    assert finished(server, begun)["copied"] == count
    copies = inbox(server, "survivor", since=begun["until"], limit=1000)["messages"]
    assert payloads(copies) == list(range(count))
    assert len({message["replay_of"] for message in copies}) == count


def test_a_full_inbox_makes_its_replay_wait(fresh_server: Start) -> None:
    server = fresh_server(env={"INBOX_LIMIT": "10"})
    for number in range(25):
        send(server, "all", number)  # which counts against no inbox
    begun = replay(server, "narrow", source="log", rate=10_000)
    eventually(lambda: standing(server, begun)["copied"] == 10, what="a full inbox")
    got: list[Any] = []
    cursor = begun["until"]
    while len(got) < 25:
        page = inbox(server, "narrow", since=cursor, wait=20)
        got += payloads(page["messages"])
        cursor = page["cursor"]
    assert got == list(range(25))
    assert finished(server, begun)["copied"] == 25


# ---- refusals


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "to"),
        ({"to": "x"}, "since"),
        ({"to": "all", "since": "earliest"}, "to"),
        ({"to": "queue:jobs", "since": "earliest"}, "to"),
        ({"to": "x", "since": "yesterday"}, "since"),
        ({"to": "x", "since": "earliest", "until": "5"}, "until"),
        ({"to": "x", "since": "earliest", "rate": 0}, "rate"),
        ({"to": "x", "since": "earliest", "rate": 10_001}, "rate"),
        ({"to": "x", "since": "earliest", "rate": "fast"}, "rate"),
        ({"to": "x", "since": "earliest", "source": "dreams"}, "source"),
    ],
)
def test_a_wrong_replay_is_refused_and_begins_nothing(server: BusServer, body: dict[str, Any], field: str) -> None:
    before = call(server, "GET", "/api/replays")
    answer = server.call("POST", "/api/replay", body)
    assert (answer.status, answer.body["field"]) == (400, field)
    assert call(server, "GET", "/api/replays") == before


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_a_replay_that_is_not_there_is_answered_so(server: BusServer, method: str) -> None:
    answer = server.call(method, "/api/replays/none")
    assert (answer.status, answer.body["code"]) == (404, "unknown_replay")


def test_a_replayed_message_can_be_read_and_needs_no_ack(server: BusServer) -> None:
    send(server, "simple", 1)
    begun = replay(server, "simple")
    finished(server, begun)
    (copy,) = inbox(server, "simple", since=begun["until"])["messages"]
    assert settle(server, "ack", copy, "simple")["status"] == "not_needed"
    assert call(server, "GET", f"/api/messages/{copy['id']}")["message"] == copy
