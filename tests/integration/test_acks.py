"""What a recipient says of a message that needs an ack, what comes of it, and what comes of silence."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from bus.testing import BusServer, eventually
from tests.calls import call, dead_letters, inbox, payloads, pending_acks, send, settle, standing, state
from tests.peer import Peer
from tests.workers import wait_until_known

VERBS = ("ack", "nack", "progress", "release", "reject")
Start = Callable[..., BusServer]


def now() -> str:
    """The time as the bus writes it."""
    return datetime.now(UTC).isoformat()


def status_of(answer: Any) -> tuple[str, int]:
    return answer["status"], answer["attempt"]


# ---- silence and failure


def test_what_is_not_acked_comes_again_as_the_next_attempt(server4: BusServer) -> None:
    with Peer(server4, "forgetful") as forgetful:
        sent = send(server4, "forgetful", 1, require_ack=True, ack_wait=0.3)
        first = forgetful.message()
        assert first["requires_ack"] is True
        assert not {"attempt", "redelivered"} & set(first)
        again = forgetful.message(within_seconds=20)
        assert (again["id"], again["attempt"], again["redelivered"]) == (sent["message_id"], 2, True)
        assert again == {**first, "attempt": 2, "redelivered": True}
        assert status_of(forgetful.settle("ack", again, attempt=2)) == ("acked", 2)
    assert state(server4, sent["message_id"]) == "acked"


def test_five_failures_make_a_dead_letter_and_its_sender_is_told(each_server: BusServer) -> None:
    with Peer(each_server, "hopeful") as sender, Peer(each_server, "doomed") as doomed:
        sent = sender.ask("send", to="doomed", payload={"n": 1}, require_ack=True, ack_wait=1)
        for attempt in range(1, 5):
            message = doomed.message()
            assert message.get("attempt", 1) == attempt
            answer = doomed.settle("nack", message, attempt=attempt, delay=0, reason=f"failure {attempt}")
            assert status_of(answer) == ("nacked", attempt)
        assert doomed.message()["attempt"] == 5  # of the last one nothing is said
        assert sender.expect("failed") == {
            "type": "failed",
            "message_id": sent["message_id"],
            "recipient": "doomed",
            "reason": "max_attempts",
        }
    (letter,) = dead_letters(each_server, owner="doomed")
    assert (letter["id"], letter["reason"]) == (sent["message_id"], "max_attempts")
    assert letter["message"]["payload"] == {"n": 1}
    told = [(each["attempt"], each["consumer"], each["outcome"], each["reason"]) for each in letter["attempts"]]
    assert told == [
        *((attempt, "doomed", "nacked", f"failure {attempt}") for attempt in range(1, 5)),
        (5, "doomed", "lease_expired", None),
    ]
    assert all(each["began_at"] <= each["ended_at"] <= letter["died_at"] for each in letter["attempts"])
    assert state(each_server, sent["message_id"]) == "dead_letter"
    assert inbox(each_server, "doomed", since="earliest")["count"] == 0


def test_a_nack_with_a_delay_has_it_wait_so_long(each_server: BusServer) -> None:
    with Peer(each_server, "later") as later:
        short, long = (send(each_server, "later", n, require_ack=True)["message_id"] for n in range(2))
        later.messages(2)
        assert status_of(later.settle("nack", short, delay=0.3)) == ("nacked", 1)
        assert status_of(later.settle("nack", long, delay=3600)) == ("nacked", 1)
        assert standing(each_server, long) == {"client": "later", "state": "resting", "attempt": 1, "failures": 1}
        again = later.message()
        assert (again["id"], again["attempt"], again["redelivered"]) == (short, 2, True)
        assert state(each_server, long) == "resting"


def test_a_nack_without_a_delay_counts_once_and_rests(server: BusServer) -> None:
    with Peer(server, "rester") as rester:
        message_id = send(server, "rester", 1, require_ack=True)["message_id"]
        rester.message()
        assert [status_of(rester.settle("nack", message_id, attempt=1)) for _ in range(3)] == [("nacked", 1)] * 3
        assert standing(server, message_id) == {"client": "rester", "state": "resting", "attempt": 1, "failures": 1}
        assert status_of(rester.settle("ack", message_id)) == ("acked", 1)


def test_progress_keeps_a_lease(each_server: BusServer) -> None:
    with Peer(each_server, "busy") as busy:
        kept, left = (send(each_server, "busy", n, require_ack=True, ack_wait=1)["message_id"] for n in range(2))
        busy.messages(2)
        assert status_of(busy.settle("progress", kept, ack_wait=60)) == ("extended", 1)
        assert settle(each_server, "progress", kept, "busy", ack_wait=60)["lease_until"] > now()
        eventually(lambda: standing(each_server, left)["failures"] == 1, what="the end of the other lease")
        assert standing(each_server, kept) == {"client": "busy", "state": "leased", "attempt": 1, "failures": 0}


def test_release_gives_back_uncounted_however_often(each_server: BusServer) -> None:
    with Peer(each_server, "shy") as shy:
        message_id = send(each_server, "shy", 1, require_ack=True)["message_id"]
        for attempt in range(1, 8):
            assert shy.message().get("attempt", 1) == attempt
            assert status_of(shy.settle("release", message_id, attempt=attempt)) == ("released", attempt)
        shy.message()
        assert standing(each_server, message_id) == {"client": "shy", "state": "leased", "attempt": 8, "failures": 0}


def test_reject_makes_a_dead_letter_at_once(each_server: BusServer) -> None:
    with Peer(each_server, "wisher") as wisher, Peer(each_server, "refuser") as refuser:
        wait_until_known(each_server, ["wisher"])
        sent = wisher.ask("send", to="refuser", payload="no way", require_ack=True)
        assert status_of(refuser.settle("reject", refuser.message(), reason="can't be done")) == ("rejected", 1)
        failed = wisher.expect("failed")
        assert (failed["message_id"], failed["recipient"], failed["reason"]) == (
            sent["message_id"],
            "refuser",
            "rejected",
        )
        for verb in VERBS:
            assert status_of(refuser.settle(verb, sent["message_id"])) == ("dead", 1)
    (letter,) = dead_letters(each_server, owner="refuser")
    assert (letter["id"], letter["reason"], letter["detail"]) == (sent["message_id"], "rejected", "can't be done")
    assert [each["outcome"] for each in letter["attempts"]] == ["rejected"]


# ---- the ack


def test_an_ack_is_idempotent_over_every_transport(each_server: BusServer) -> None:
    with Peer(each_server, "sure") as sure:
        message_id = send(each_server, "sure", 1, require_ack=True)["message_id"]
        sure.message()
        for _ in range(2):
            assert status_of(sure.settle("ack", message_id)) == ("acked", 1)
            assert status_of(settle(each_server, "ack", message_id, "sure")) == ("acked", 1)
            assert status_of(settle(each_server, "ack", message_id, "sure", attempt=1)) == ("acked", 1)
        for verb in ("nack", "progress", "release", "reject"):
            assert sure.settle(verb, message_id)["status"] == "superseded"
        assert state(each_server, message_id) == "acked"
    assert dead_letters(each_server, owner="sure") == []


def test_a_late_ack_of_an_older_attempt_is_superseded_and_changes_nothing(each_server: BusServer) -> None:
    with Peer(each_server, "tardy") as tardy:
        message_id = send(each_server, "tardy", 1, require_ack=True)["message_id"]
        tardy.settle("nack", tardy.message(), delay=0)
        tardy.message()
        for verb in VERBS:
            assert status_of(tardy.settle(verb, message_id, attempt=1)) == ("superseded", 2)
        assert standing(each_server, message_id) == {"client": "tardy", "state": "leased", "attempt": 2, "failures": 1}
        assert status_of(tardy.settle("ack", message_id, attempt=2)) == ("acked", 2)
        assert tardy.settle("ack", message_id, attempt=1)["status"] == "superseded"


def test_an_attempt_that_has_not_begun_is_refused(server: BusServer) -> None:
    with Peer(server, "seer") as seer:
        message_id = send(server, "seer", 1, require_ack=True)["message_id"]
        seer.message()
        error = seer.settle("ack", message_id, attempt=2)
        assert (error["type"], error["code"], error["field"]) == ("error", "bad_field", "attempt")
        assert state(server, message_id) == "leased"


def test_a_message_may_be_acked_that_was_only_read(each_server: BusServer) -> None:
    message_id = send(each_server, "reader", 1, require_ack=True)["message_id"]
    assert payloads(inbox(each_server, "reader")["messages"]) == [1]
    assert settle(each_server, "ack", message_id, "reader")["status"] == "acked"
    assert inbox(each_server, "reader", since="earliest")["count"] == 0


@pytest.mark.parametrize("verb", VERBS)
def test_only_a_recipient_may_speak(each_server: BusServer, verb: str) -> None:
    with Peer(each_server, "owner") as owner, Peer(each_server, "meddler") as meddler:
        message_id = send(each_server, ["owner", "other"], 1, require_ack=True)["message_id"]
        owner.message()
        answer = each_server.call("POST", f"/api/messages/{message_id}/{verb}", {"client": "meddler"})
        assert (answer.status, answer.body["code"]) == (403, "not_recipient")
        error = meddler.settle(verb, message_id)
        assert (error["type"], error["code"]) == ("error", "not_recipient")
        assert standing(each_server, message_id, "owner")["state"] == "leased"
        assert settle(each_server, "ack", message_id, "owner")["status"] == "acked"


@pytest.mark.parametrize("verb", VERBS)
def test_what_is_said_of_an_unknown_message_is_answered_so(each_server: BusServer, verb: str) -> None:
    epoch = call(each_server, "GET", "/api/status")["epoch"]
    with Peer(each_server, "dreamer") as dreamer:
        for message_id in ("nothing", f"msg-{epoch}-ffffffffffff", "msg-0123456789ab-000000000001"):
            answer = each_server.call("POST", f"/api/messages/{message_id}/{verb}", {"client": "dreamer"})
            assert (answer.status, answer.body["code"]) == (404, "unknown_message")
            error = dreamer.settle(verb, message_id)
            assert (error["type"], error["code"]) == ("error", "unknown_message")


def test_a_plain_message_needs_no_ack(each_server: BusServer) -> None:
    with Peer(each_server, "plain") as plain:
        send(each_server, "plain", 1)
        message = plain.message()
        assert message["requires_ack"] is False
        for verb in VERBS:
            assert status_of(plain.settle(verb, message)) == ("not_needed", 0)
            assert status_of(settle(each_server, verb, message, "plain")) == ("not_needed", 0)
    assert dead_letters(each_server, owner="plain") == []


def test_each_of_a_list_owes_an_ack_of_its_own(each_server: BusServer) -> None:
    before = pending_acks(each_server)
    message_id = send(each_server, ["one", "two", "three"], 1, require_ack=True)["message_id"]
    assert pending_acks(each_server) == before + 3
    settle(each_server, "ack", message_id, "two")
    settle(each_server, "reject", message_id, "three")
    assert [state(each_server, message_id, name) for name in ("one", "two", "three")] == [
        "waiting",
        "acked",
        "dead_letter",
    ]
    assert [inbox(each_server, name)["count"] for name in ("one", "two", "three")] == [1, 0, 0]
    assert pending_acks(each_server) == before + 1
    settle(each_server, "ack", message_id, "one")
    assert pending_acks(each_server) == before


def test_a_verdict_without_a_ref_is_obeyed_in_silence(server: BusServer) -> None:
    with Peer(server, "quiet") as quiet:
        message_id = send(server, "quiet", 1, require_ack=True)["message_id"]
        quiet.message()
        quiet.send_json({"type": "ack", "message_id": message_id})
        eventually(lambda: state(server, message_id) == "acked", what="the ack")
        quiet.send_json({"type": "ack", "message_id": message_id})
        assert quiet.ask("ack", message_id=message_id)["status"] == "acked"  # its answer is the first that comes
        assert quiet.has_no_message()


def test_acks_and_leases_survive_a_kill(fresh_server: Start) -> None:
    server = fresh_server()
    with Peer(server, "phoenix") as phoenix:
        done, open_ = (send(server, "phoenix", n, require_ack=True)["message_id"] for n in range(2))
        phoenix.messages(2)
        phoenix.settle("ack", done)
        server.kill()
    server.start()
    assert state(server, done) == "acked"
    assert standing(server, open_) == {"client": "phoenix", "state": "leased", "attempt": 1, "failures": 0}
    with Peer(server, "phoenix") as phoenix:
        again = phoenix.message()
        assert (again["id"], again["redelivered"], "attempt" in again) == (open_, True, False)
        assert phoenix.settle("ack", done)["status"] == "acked"
        assert phoenix.settle("ack", open_)["status"] == "acked"
    assert pending_acks(server) == 0


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        ({}, "missing_field", "client"),
        ({"client": 5}, "bad_field", "client"),
        ({"client": "all"}, "reserved_name", "client"),
        ({"client": "$stream"}, "bad_name", "client"),
        ({"client": "held", "attempt": 0}, "bad_field", "attempt"),
        ({"client": "held", "attempt": 2}, "bad_field", "attempt"),
        ({"client": "held", "attempt": "1"}, "bad_field", "attempt"),
        ({"client": "held", "delay": -1}, "bad_field", "delay"),
        ({"client": "held", "delay": 1e9}, "bad_field", "delay"),
        ({"client": "held", "reason": "x" * 1001}, "bad_field", "reason"),
        ({"client": "held", "reason": 5}, "bad_field", "reason"),
        ({"client": "held", "ack_wait": 0.01}, "bad_field", "ack_wait"),
        ([], "not_an_object", None),
    ],
)
def test_a_wrong_verdict_is_refused_and_changes_nothing(
    server: BusServer, body: object, code: str, field: str | None
) -> None:
    with Peer(server, "held", "?since=latest") as held:
        message_id = send(server, "held", 1, require_ack=True)["message_id"]
        held.message()
        for verb in VERBS:
            answer = server.call("POST", f"/api/messages/{message_id}/{verb}", body)
            assert (answer.status, answer.body["code"], answer.body.get("field")) == (400, code, field)
        assert standing(server, message_id) == {"client": "held", "state": "leased", "attempt": 1, "failures": 0}
        held.settle("ack", message_id)


def test_a_clear_takes_what_needs_an_ack_too(fresh_server: Start) -> None:
    server = fresh_server()
    with Peer(server, "cleared") as cleared:
        held = send(server, "cleared", 1, require_ack=True)["message_id"]
        cleared.message()
        send(server, "away", 1, require_ack=True)
        send(server, "queue:jobs", 1)
        scheduled = send(server, "cleared", 1, delay=3600)["message_id"]
        asked = call(server, "POST", "/api/request", {"from": "cleared", "to": "away", "wait": 0})["request_id"]
        assert pending_acks(server) == 3
        call(server, "POST", "/api/clear")
        assert pending_acks(server) == 0
        assert call(server, "GET", "/api/queues/jobs")["depth"] == 0
        assert inbox(server, "away", since="earliest")["messages"] == []
        assert server.call("GET", f"/api/messages/{scheduled}").status == 404
        assert server.call("GET", f"/api/requests/{asked}").status == 404
        assert cleared.settle("ack", held)["code"] == "unknown_message"
        fresh = send(server, "cleared", 2, require_ack=True)["message_id"]
        assert cleared.message()["id"] == fresh
        assert cleared.settle("ack", fresh)["status"] == "acked"
    with Peer(server, "cleared") as cleared:
        assert cleared.has_no_message()
