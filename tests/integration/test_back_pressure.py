"""Back-pressure: what is full refuses the new or sets the oldest aside, as it was told, and says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bus.testing import BusServer, eventually
from tests.calls import (
    call,
    claim,
    dead_letters,
    inbox,
    payloads,
    pending_acks,
    send,
    send_all,
    settle,
    state,
)
from tests.peer import Peer

Start = Callable[..., BusServer]
CAP = 5


SERVER_ENV = {"INBOX_LIMIT": str(CAP), "QUEUE_LIMIT": str(CAP)}


@pytest.fixture(scope="module")
def server4() -> Iterator[BusServer]:
    """The same with four workers."""
    with BusServer(workers=4, env={"INBOX_LIMIT": str(CAP), "QUEUE_LIMIT": str(CAP)}) as running:
        yield running


def cap(server: BusServer, path: str, **how: object) -> Any:
    """Cap a queue or an inbox."""
    return call(server, "PUT", f"/api/{path}", how)


def refused(server: BusServer, to: object, **more: object) -> str:
    """The code with which a send is refused for want of room."""
    answer = server.call("POST", "/api/send", {"from": "giver", "to": to, **more})
    assert answer.status == 429, answer
    assert int(answer.headers["retry-after"]) > 0
    return str(answer.body["code"])


# ---- refusing


def test_a_full_queue_refuses_until_an_item_is_taken(each_server: BusServer) -> None:
    for number in range(CAP):
        send(each_server, "queue:full", number)
    for _ in range(2):
        assert refused(each_server, "queue:full") == "queue_full"
    with Peer(each_server, "pusher") as pusher:
        error = pusher.ask("send", to="queue:full")
        assert (error["type"], error["code"], error["field"]) == ("error", "queue_full", "to")
        assert error["retry_after_seconds"] > 0
    assert call(each_server, "GET", "/api/queues/full")["depth"] == CAP
    assert payloads(claim(each_server, "full", "taker")) == [0]
    send(each_server, "queue:full", CAP)
    assert refused(each_server, "queue:full") == "queue_full"
    assert payloads(claim(each_server, "full", "taker", limit=100)) == list(range(1, CAP + 1))


def test_plain_and_tracked_messages_share_the_room_of_an_inbox(each_server: BusServer) -> None:
    ids = [send(each_server, "mixed", number, require_ack=number % 2 == 0)["message_id"] for number in range(CAP)]
    for tracked in (True, False):
        assert refused(each_server, "mixed", require_ack=tracked) == "inbox_full"
    settle(each_server, "ack", ids[0], "mixed")
    send(each_server, "mixed", CAP, require_ack=True)
    assert refused(each_server, "mixed", require_ack=True) == "inbox_full"
    assert sorted(payloads(inbox(each_server, "mixed")["messages"])) == list(range(1, CAP + 1))


def test_reading_makes_no_room_for_what_is_still_owed(each_server: BusServer) -> None:
    for number in range(CAP):
        send(each_server, "reader", number, require_ack=True)
    assert inbox(each_server, "reader")["count"] == CAP
    assert refused(each_server, "reader", require_ack=True) == "inbox_full"


def test_a_batch_is_refused_from_where_it_is_full_on(each_server: BusServer) -> None:
    messages = [{"from": "giver", "to": "queue:batch", "payload": number} for number in range(CAP + 3)]
    results = call(each_server, "POST", "/api/send/batch", {"messages": messages})["results"]
    assert [result.get("code", result.get("status")) for result in results] == ["sent"] * CAP + ["queue_full"] * 3
    atomic = {"messages": [{**message, "to": "queue:atomic"} for message in messages], "atomic": True}
    answer = each_server.call("POST", "/api/send/batch", atomic)
    assert (answer.status, answer.body["code"]) == (429, "queue_full")
    assert call(each_server, "GET", "/api/queues/atomic")["depth"] == 0


def test_of_a_list_only_the_full_are_refused(each_server: BusServer) -> None:
    for number in range(CAP):
        send(each_server, "stuffed", number, require_ack=True)
    receipt = send(each_server, ["stuffed", "roomy"], "both", require_ack=True)
    assert {each["client"]: each["state"] for each in receipt["recipients"]} == {
        "stuffed": "refused",
        "roomy": "unknown",
    }
    (message,) = inbox(each_server, "roomy")["messages"]
    assert settle(each_server, "ack", message, "roomy")["status"] == "acked"
    answer = each_server.call("POST", f"/api/messages/{receipt['message_id']}/ack", {"client": "stuffed"})
    assert answer.status == 403


def test_who_is_there_and_acks_is_never_full(each_server: BusServer) -> None:
    with Peer(each_server, "diligent") as diligent:
        for number in range(3 * CAP):
            send(each_server, "diligent", number, require_ack=True)
            assert diligent.settle("ack", diligent.message())["status"] == "acked"


# ---- a cap of its own


def test_a_queue_and_an_inbox_may_have_a_cap_of_their_own(each_server: BusServer) -> None:
    shown = cap(each_server, "queues/small", limit=2)
    assert (shown["queue"], shown["limit"], shown["on_full"]) == ("small", 2, "refuse")
    assert cap(each_server, "clients/tiny", limit=1) == {"client": "tiny", "limit": 1, "on_full": "refuse"}
    for _ in range(2):
        send(each_server, "queue:small")
    send(each_server, "tiny", require_ack=True)
    assert refused(each_server, "queue:small") == "queue_full"
    assert refused(each_server, "tiny", require_ack=True) == "inbox_full"
    assert refused(each_server, "tiny") == "inbox_full"
    assert cap(each_server, "queues/small")["limit"] == CAP
    send(each_server, "queue:small")


@pytest.mark.parametrize("path", ["queues/q", "clients/c"])
@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": 10_000_001}, "limit"),
        ({"limit": "many"}, "limit"),
        ({"limit": 1.5}, "limit"),
        ({"on_full": "burn"}, "on_full"),
        ([], None),
    ],
)
def test_a_wrong_cap_is_refused_and_changes_nothing(
    server: BusServer, path: str, body: object, field: str | None
) -> None:
    cap(server, path, limit=3, on_full="dead_letter")
    answer = server.call("PUT", f"/api/{path}", body)
    assert (answer.status, answer.body.get("field")) == (400, field)
    if path == "queues/q":
        shown = call(server, "GET", "/api/queues/q")
        assert (shown["limit"], shown["on_full"]) == (3, "dead_letter")


# ---- setting the oldest aside


def test_a_queue_may_set_its_oldest_item_aside(each_server: BusServer) -> None:
    assert cap(each_server, "queues/ring", limit=3, on_full="dead_letter")["on_full"] == "dead_letter"
    with Peer(each_server, "pusher") as pusher:
        ids = [pusher.ask("send", to="queue:ring", payload=number)["message_id"] for number in range(5)]
        failures = [pusher.expect("failed") for _ in range(2)]
    assert [(each["message_id"], each["recipient"], each["reason"]) for each in failures] == [
        (message_id, "queue:ring", "overflow") for message_id in ids[:2]
    ]
    letters = dead_letters(each_server, owner="queue:ring")
    assert [(each["id"], each["reason"], each["attempts"]) for each in letters] == [
        (message_id, "overflow", []) for message_id in ids[:2]
    ]
    assert payloads(claim(each_server, "ring", "taker", limit=10)) == [2, 3, 4]


def test_an_inbox_may_set_its_oldest_aside_plain_or_tracked(each_server: BusServer) -> None:
    cap(each_server, "clients/rolling", limit=4, on_full="dead_letter")
    ids = [
        send(each_server, "rolling", number, require_ack=number % 2 == 1, type="note")["message_id"]
        for number in range(9)
    ]
    letters = dead_letters(each_server, owner="rolling")
    assert [(each["id"], each["reason"]) for each in letters] == [(message_id, "overflow") for message_id in ids[:5]]
    assert payloads([each["message"] for each in letters]) == [0, 1, 2, 3, 4]
    assert {each["message"]["type"] for each in letters} == {"note"}
    assert sorted(payloads(inbox(each_server, "rolling")["messages"])) == [5, 6, 7, 8]
    assert [state(each_server, message_id) for message_id in ids[1:9:2]] == ["dead_letter"] * 2 + ["waiting"] * 2
    assert settle(each_server, "ack", ids[1], "rolling")["status"] == "dead"


def test_what_was_set_aside_can_be_redriven_when_there_is_room(each_server: BusServer) -> None:
    cap(each_server, "clients/patient", limit=2, on_full="dead_letter")
    ids = [send(each_server, "patient", number)["message_id"] for number in range(3)]
    with Peer(each_server, "patient") as patient:
        assert payloads(patient.messages(2)) == [1, 2]
        answer = call(each_server, "POST", f"/api/dead-letters/{ids[0]}/redrive", {})
        assert answer == {"matched": 1, "redriven": 1}
        message = patient.message()
        assert (message["id"], message["payload"], message["redriven"]) == (ids[0], 0, True)
        assert message["requires_ack"] is False


def test_a_delayed_message_that_finds_no_room_is_a_dead_letter(each_server: BusServer) -> None:
    with Peer(each_server, "planner") as planner:
        for number in range(CAP):
            planner.ask("send", to="booked", payload=number)
        late = planner.ask("send", to=["booked", "free"], payload="late", delay=0.2)["message_id"]
        alone = planner.ask("send", to="booked", payload="alone", delay=0.2, require_ack=True)["message_id"]
        failures = [planner.expect("failed") for _ in range(2)]
    assert {(each["message_id"], each["recipient"], each["reason"]) for each in failures} == {
        (late, "booked", "overflow"),
        (alone, "booked", "overflow"),
    }
    assert payloads(inbox(each_server, "free", wait=10)["messages"]) == ["late"]
    assert {each["id"] for each in dead_letters(each_server, owner="booked")} == {late, alone}


# ---- the count


def test_the_count_of_what_waits_is_right_after_everything(fresh_server: Start) -> None:
    server = fresh_server()
    with Peer(server, "counted") as counted:
        send_all(server, [{"to": "queue:counted", "payload": n} for n in range(30)])
        counted.subscribe("counted", max_in_flight=5)
        for number, verb in enumerate(["ack", "nack", "reject", "release", "progress"] * 4):
            counted.settle(verb, counted.message(), delay=0 if number % 2 else 3600)
        counted.leave()
    send(server, "queue:counted", ttl=0.1)
    later = send(server, "queue:counted", delay=0.1)["message_id"]
    eventually(lambda: dead_letters(server, reason="expired"), what="an expiry")
    eventually(lambda: state(server, later) == "waiting", what="the delayed item")
    for _ in range(2):
        shown = eventually(
            lambda: (seen := call(server, "GET", "/api/queues/counted"))["in_flight"] == 0 and seen, what="empty hands"
        )
        states = [each["state"] for each in standings(server)]
        open_ = [each for each in states if each in ("waiting", "resting", "leased")]
        assert shown["depth"] == len(open_) == pending_acks(server)
        server.kill()
        server.start()


def standings(server: BusServer) -> list[dict[str, Any]]:
    """How every message of the log stands."""
    log = call(server, "GET", "/api/log", limit=1000)["messages"]
    return [call(server, "GET", f"/api/messages/{message['id']}")["recipients"][0] for message in log]
