"""Dead letters: what could not be delivered is kept whole, found again, sent again, or thrown away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bus.testing import BusServer
from tests.calls import call, claim, dead_letters, inbox, payloads, pending_acks, send, settle, standing, state
from tests.peer import Peer

Start = Callable[..., BusServer]
LETTERS = "/api/dead-letters"


def rejected(server: BusServer, to: str, payload: object = None, *, reason: str = "no", **more: object) -> str:
    """Send a message that its recipient rejects; its id."""
    message_id = str(send(server, to, payload, require_ack=True, **more)["message_id"])
    settle(server, "reject", message_id, to, reason=reason)
    return message_id


# ---- what is kept


def test_a_dead_letter_keeps_the_whole_message(each_server: BusServer) -> None:
    extras = {"priority": "high", "correlation_id": "c", "thread_id": "t", "headers": {"k": "v"}, "type": "order"}
    with Peer(each_server, "whole") as whole:
        send(each_server, "whole", {"deep": [1, "שלום"]}, require_ack=True, ttl=3600, **extras)
        message = whole.message()
        whole.settle("reject", message, reason="too deep")
    (letter,) = call(each_server, "GET", f"{LETTERS}/{message['id']}")["dead_letters"]
    assert letter["message"] == {**letter["message"], **{k: v for k, v in message.items() if k != "expires_at"}}
    assert (letter["id"], letter["owner"], letter["reason"], letter["detail"]) == (
        message["id"],
        "whole",
        "rejected",
        "too deep",
    )
    (attempt,) = letter["attempts"]
    assert (attempt["attempt"], attempt["consumer"], attempt["outcome"], attempt["reason"]) == (
        1,
        "whole",
        "rejected",
        "too deep",
    )
    assert attempt["began_at"] <= attempt["ended_at"] == letter["died_at"]


def test_each_owner_of_a_message_has_a_dead_letter_of_its_own(each_server: BusServer) -> None:
    message_id = send(each_server, ["left", "middle", "right"], "x", require_ack=True)["message_id"]
    for name in ("left", "right"):
        settle(each_server, "reject", message_id, name)
    letters = call(each_server, "GET", f"{LETTERS}/{message_id}")["dead_letters"]
    assert sorted(letter["owner"] for letter in letters) == ["left", "right"]
    answer = call(each_server, "POST", f"{LETTERS}/{message_id}/redrive", {"owner": "left"})
    assert answer == {"matched": 1, "redriven": 1}
    assert [letter["owner"] for letter in dead_letters(each_server, owner="right")] == ["right"]
    assert dead_letters(each_server, owner="left") == []
    (again,) = inbox(each_server, "left")["messages"]
    assert (again["id"], again["to"], again["redriven"]) == (message_id, "left", True)
    assert call(each_server, "DELETE", f"{LETTERS}/{message_id}", owner="right") == {"matched": 1, "purged": 1}
    assert inbox(each_server, "middle")["count"] == 1


def test_dead_letters_are_listed_in_pages_by_death_and_filtered(fresh_server: Start) -> None:
    server = fresh_server()
    ids = [rejected(server, f"f-{n % 2}", n, sender="ann" if n < 4 else "bob") for n in range(7)]
    listed: list[dict[str, Any]] = []
    cursor, more = "", True
    while more:
        page = call(server, "GET", LETTERS, limit=3, cursor=cursor)
        assert len(page["dead_letters"]) <= 3
        listed += page["dead_letters"]
        cursor, more = page["cursor"], page["more"]
    assert [letter["id"] for letter in listed] == ids
    assert [letter["died_at"] for letter in listed] == sorted(letter["died_at"] for letter in listed)

    def numbers(**query: object) -> list[int]:
        return [letter["message"]["payload"] for letter in dead_letters(server, **query)]

    assert numbers(owner="f-0") == [0, 2, 4, 6]
    assert numbers(**{"from": "bob"}) == [4, 5, 6]
    assert numbers(owner="f-1", **{"from": "ann"}) == [1, 3]
    assert numbers(reason="rejected", limit=2) == [0, 1]
    assert numbers(reason="expired") == numbers(owner="nobody") == []


# ---- redrive


def test_a_redriven_message_keeps_its_id_and_begins_anew(each_server: BusServer) -> None:
    with Peer(each_server, "anew") as anew:
        first = send(each_server, "anew", "again", require_ack=True, priority="high")
        for _ in range(5):
            anew.settle("nack", anew.message(), delay=0)
        answer = call(each_server, "POST", f"{LETTERS}/{first['message_id']}/redrive", {})
        assert answer == {"matched": 1, "redriven": 1}
        message = anew.message()
        assert (message["id"], message["payload"], message["redriven"]) == (first["message_id"], "again", True)
        assert message["seq"] > first["seq"]
        assert message["priority"] == "high"
        assert not {"attempt", "redelivered"} & set(message)
        assert anew.settle("nack", message, attempt=1, delay=0)["status"] == "nacked"
        assert anew.message()["attempt"] == 2
        assert anew.settle("ack", message, attempt=2)["status"] == "acked"
        assert anew.settle("ack", message)["status"] == "acked"
    assert state(each_server, first["message_id"]) == "acked"
    assert dead_letters(each_server, owner="anew") == []


def test_a_redriven_item_goes_to_its_queue(each_server: BusServer) -> None:
    message_id = send(each_server, "queue:again", 1)["message_id"]
    settle(each_server, "reject", claim(each_server, "again", "one")[0], "one")
    assert [letter["id"] for letter in dead_letters(each_server, owner="queue:again")] == [message_id]
    call(each_server, "POST", f"{LETTERS}/{message_id}/redrive", {})
    (item,) = claim(each_server, "again", "two", wait=10)
    assert (item["id"], item["to"], item["redriven"], "attempt" in item) == (message_id, "queue:again", True, False)
    assert settle(each_server, "ack", item, "two") == {"message_id": message_id, "status": "acked", "attempt": 1}


def test_what_dies_twice_is_redriven_twice(each_server: BusServer) -> None:
    message_id = rejected(each_server, "stubborn", 1, reason="first")
    for reason in ("second", "third"):
        call(each_server, "POST", f"{LETTERS}/{message_id}/redrive", {})
        assert standing(each_server, message_id)["state"] == "waiting"
        settle(each_server, "reject", message_id, "stubborn", reason=reason)
        (letter,) = dead_letters(each_server, owner="stubborn")
        assert (letter["id"], letter["detail"], letter["message"]["redriven"]) == (message_id, reason, True)


def test_many_are_redriven_by_choice_and_counted_first(each_server: BusServer) -> None:
    ids = [rejected(each_server, "many", number, sender="ann" if number % 2 else "bob") for number in range(6)]
    choice = {"owner": "many", "from": "ann"}
    assert call(each_server, "POST", f"{LETTERS}/redrive", {**choice, "dry_run": True}) == {"matched": 3, "redriven": 0}
    assert len(dead_letters(each_server, owner="many")) == 6
    assert call(each_server, "POST", f"{LETTERS}/redrive", {**choice, "limit": 2}) == {"matched": 3, "redriven": 2}
    assert call(each_server, "POST", f"{LETTERS}/redrive", choice) == {"matched": 1, "redriven": 1}
    assert call(each_server, "POST", f"{LETTERS}/redrive", choice) == {"matched": 0, "redriven": 0}
    assert payloads(inbox(each_server, "many")["messages"]) == [1, 3, 5]
    for number in (1, 3, 5):
        assert settle(each_server, "ack", ids[number], "many")["status"] == "acked"
    assert [letter["id"] for letter in dead_letters(each_server, owner="many")] == ids[::2]


def test_what_finds_no_room_stays_a_dead_letter(fresh_server: Start) -> None:
    server = fresh_server(env={"INBOX_LIMIT": "3"})
    for number in range(5):
        rejected(server, "tight", number)
    assert call(server, "POST", f"{LETTERS}/redrive", {"owner": "tight"}) == {"matched": 5, "redriven": 3}
    assert [letter["message"]["payload"] for letter in dead_letters(server)] == [3, 4]


# ---- purge


def test_purging_one_or_many_counts_first(each_server: BusServer) -> None:
    ids = [rejected(each_server, "purged", number) for number in range(4)]
    assert call(each_server, "DELETE", f"{LETTERS}/{ids[0]}") == {"matched": 1, "purged": 1}
    assert call(each_server, "DELETE", LETTERS, owner="purged", dry_run="true") == {"matched": 3, "purged": 0}
    assert call(each_server, "DELETE", LETTERS, owner="purged", reason="expired") == {"matched": 0, "purged": 0}
    assert len(dead_letters(each_server, owner="purged")) == 3
    assert call(each_server, "DELETE", LETTERS, owner="purged") == {"matched": 3, "purged": 3}
    assert dead_letters(each_server, owner="purged") == []


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", f"{LETTERS}/none", None),
        ("POST", f"{LETTERS}/none/redrive", {}),
        ("DELETE", f"{LETTERS}/none", None),
    ],
)
def test_a_dead_letter_that_is_not_there_is_answered_so(
    server: BusServer, method: str, path: str, body: object
) -> None:
    answer = server.call(method, path, body)
    assert (answer.status, answer.body["code"]) == (404, "unknown_dead_letter")


def test_a_dead_letter_of_another_owner_is_left_alone(server: BusServer) -> None:
    message_id = rejected(server, "mine")
    for method, path, body in (
        ("POST", f"{LETTERS}/{message_id}/redrive", {"owner": "yours"}),
        ("DELETE", f"{LETTERS}/{message_id}?owner=yours", None),
    ):
        assert server.call(method, path, body).status == 404
    assert len(dead_letters(server, owner="mine")) == 1


@pytest.mark.parametrize(
    ("method", "path", "body", "field"),
    [
        ("GET", f"{LETTERS}?reason=boredom", None, "reason"),
        ("GET", f"{LETTERS}?cursor=5", None, "cursor"),
        ("GET", f"{LETTERS}?cursor=x.y.z", None, "cursor"),
        ("GET", f"{LETTERS}?limit=x", None, "limit"),
        ("DELETE", f"{LETTERS}?reason=boredom", None, "reason"),
        ("DELETE", f"{LETTERS}?dry_run=1", None, "dry_run"),
        ("POST", f"{LETTERS}/redrive", {"reason": "boredom"}, "reason"),
        ("POST", f"{LETTERS}/redrive", {"limit": 0}, "limit"),
        ("POST", f"{LETTERS}/redrive", {"limit": 10_001}, "limit"),
        ("POST", f"{LETTERS}/redrive", {"dry_run": "yes"}, "dry_run"),
        ("POST", f"{LETTERS}/redrive", {"owner": 5}, "owner"),
        ("POST", f"{LETTERS}/redrive", [], None),
    ],
)
def test_a_wrong_choice_is_refused_and_touches_nothing(
    server: BusServer, method: str, path: str, body: object, field: str | None
) -> None:
    rejected(server, "untouched")
    before = dead_letters(server, owner="untouched")
    answer = server.call(method, path, body)
    assert (answer.status, answer.body.get("field")) == (400, field)
    assert dead_letters(server, owner="untouched") == before


# ---- what lasts


def test_dead_letters_survive_a_kill_and_a_clear(fresh_server: Start) -> None:
    server = fresh_server()
    message_id = rejected(server, "lasting", {"kept": True})
    before = dead_letters(server)
    server.kill()
    server.start()
    assert dead_letters(server) == before
    call(server, "POST", "/api/clear")
    assert dead_letters(server) == before
    call(server, "POST", f"{LETTERS}/{message_id}/redrive", {})
    assert payloads(inbox(server, "lasting")["messages"]) == [{"kept": True}]
    assert settle(server, "ack", message_id, "lasting")["status"] == "acked"


def test_a_capped_log_makes_dead_letters_of_what_is_still_owed(fresh_server: Start) -> None:
    server = fresh_server(env={"MAX_LOG_BYTES": str(1024 * 1024), "INBOX_LIMIT": "100000"})
    with Peer(server, "careless") as careless:
        owed = careless.ask("send", to="debtor", payload="owed", require_ack=True)["message_id"]
        filler = [{"from": "x", "to": "filled", "payload": "x" * 1000}] * 100
        for _ in range(15):
            call(server, "POST", "/api/send/batch", {"messages": filler})
        failed = careless.expect("failed", within_seconds=20)
    assert (failed["message_id"], failed["recipient"], failed["reason"]) == (owed, "debtor", "overflow")
    (letter,) = dead_letters(server)
    assert (letter["id"], letter["reason"], letter["message"]["payload"]) == (owed, "overflow", "owed")
    assert pending_acks(server) == 0
