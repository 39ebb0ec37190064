"""What needs an ack: leases, attempts, verdicts, and what comes again."""

from __future__ import annotations

import time

import pytest

from tests.conformance.remote import QUIET_SECONDS, Remote, eventually


def standing(remote: Remote, message_id: str, client: str) -> tuple[object, ...]:
    """State, attempt and failures of a message, for one recipient."""
    found = remote.state(message_id)[client]
    return found["state"], found.get("attempt"), found.get("failures")


def test_an_ack_settles_it_and_is_idempotent(remote: Remote) -> None:
    with remote.connect(remote.name()) as socket:
        message_id = remote.send(remote.name("sender"), socket.client, require_ack=True)["message_id"]
        message = socket.message()
        assert message["requires_ack"] is True
        assert not {"attempt", "redelivered"} & set(message)
        assert standing(remote, message_id, socket.client) == ("leased", 1, 0)
        for _ in range(2):
            answer = socket.settle("ack", message)
            assert (answer["type"], answer["message_id"], answer["status"]) == ("acked", message_id, "acked")
            assert answer["attempt"] == 1
        assert standing(remote, message_id, socket.client)[0] == "acked"
    with remote.connect(socket.client) as again:
        assert again.is_quiet()


def test_any_transport_may_settle_what_another_brought(remote: Remote) -> None:
    with remote.connect(remote.name()) as socket:
        message_id = remote.send(remote.name("sender"), socket.client, require_ack=True)["message_id"]
        socket.message()
        assert remote.settle("ack", message_id, socket.client)["status"] == "acked"
        assert standing(remote, message_id, socket.client)[0] == "acked"


def test_an_ack_without_a_ref_is_done_and_not_answered(remote: Remote) -> None:
    with remote.connect(remote.name()) as socket:
        message_id = remote.send(remote.name("sender"), socket.client, require_ack=True)["message_id"]
        socket.message()
        socket.send("ack", message_id=message_id)
        eventually(lambda: standing(remote, message_id, socket.client)[0] == "acked")
        socket.send("ping")
        assert socket.read()["type"] == "pong"


def test_what_was_not_acked_comes_again_at_the_next_connection_uncounted(remote: Remote) -> None:
    name = remote.name()
    message_id = remote.send(remote.name("sender"), name, require_ack=True)["message_id"]
    with remote.connect(name) as socket:
        assert "redelivered" not in socket.message()
    with remote.connect(name) as socket:
        again = socket.message()
        assert (again["id"], again["redelivered"], "attempt" in again) == (message_id, True, False)
        assert standing(remote, message_id, name) == ("leased", 1, 0)


def test_a_cursor_neither_brings_nor_hides_what_needs_an_ack(remote: Remote) -> None:
    name = remote.name()
    remote.send(remote.name("sender"), name, require_ack=True)
    for since in ("latest", "earliest"):
        assert remote.read(name, since=since)["count"] == 1
    with remote.connect(name, since="latest") as socket:
        socket.settle("ack", socket.message())
    assert remote.read(name, since=remote.start)["count"] == 0


def test_a_nack_gives_back_and_counts(remote: Remote) -> None:
    with remote.connect(remote.name()) as socket:
        message_id = remote.send(remote.name("sender"), socket.client, require_ack=True)["message_id"]
        assert socket.settle("nack", socket.message(), delay=0, reason="busy")["status"] == "nacked"
        again = socket.message()
        assert (again["id"], again["attempt"], again["redelivered"]) == (message_id, 2, True)
        assert standing(remote, message_id, socket.client) == ("leased", 2, 1)


def test_a_nack_with_a_delay_rests(remote: Remote) -> None:
    with remote.connect(remote.name()) as socket:
        message_id = remote.send(remote.name("sender"), socket.client, require_ack=True)["message_id"]
        message, began = socket.message(), time.monotonic()
        socket.settle("nack", message, delay=1)
        assert standing(remote, message_id, socket.client) == ("resting", 1, 1)
        assert socket.message()["attempt"] == 2
        assert time.monotonic() - began >= 1


def test_a_nack_without_a_delay_rests_for_seconds(remote: Remote) -> None:
    with remote.connect(remote.name()) as socket:
        message_id = remote.send(remote.name("sender"), socket.client, require_ack=True)["message_id"]
        socket.settle("nack", socket.message())
        assert standing(remote, message_id, socket.client) == ("resting", 1, 1)
        assert socket.is_quiet(2 * QUIET_SECONDS)


def test_a_release_gives_back_and_does_not_count(remote: Remote) -> None:
    with remote.connect(remote.name()) as socket:
        message_id = remote.send(remote.name("sender"), socket.client, require_ack=True)["message_id"]
        assert socket.settle("release", socket.message())["status"] == "released"
        assert socket.message()["attempt"] == 2
        assert standing(remote, message_id, socket.client) == ("leased", 2, 0)


def test_a_lease_that_runs_out_counts(remote: Remote) -> None:
    with remote.connect(remote.name()) as socket:
        sent = remote.send(remote.name("sender"), socket.client, require_ack=True, ack_wait=0.3)
        socket.message()
        eventually(lambda: standing(remote, sent["message_id"], socket.client) == ("resting", 1, 1))


def test_progress_extends_the_lease(remote: Remote) -> None:
    with remote.connect(remote.name()) as socket:
        sent = remote.send(remote.name("sender"), socket.client, require_ack=True, ack_wait=0.5)
        message = socket.message()
        extended = remote.settle("progress", message["id"], socket.client, ack_wait=60)
        assert (extended["status"], extended["attempt"]) == ("extended", 1)
        assert extended["lease_until"] > sent["timestamp"]
        mark = remote.send(remote.name("sender"), socket.client, require_ack=True, ack_wait=0.5)  # its lease ends
        eventually(lambda: standing(remote, mark["message_id"], socket.client) == ("resting", 1, 1))
        assert standing(remote, sent["message_id"], socket.client) == ("leased", 1, 0)


def test_a_late_word_about_an_older_attempt_is_superseded(remote: Remote) -> None:
    with remote.connect(remote.name()) as socket:
        message_id = remote.send(remote.name("sender"), socket.client, require_ack=True)["message_id"]
        socket.settle("nack", socket.message(), delay=0)
        second = socket.message()
        for verb in ("ack", "nack", "progress", "release", "reject"):
            answer = socket.settle(verb, second, attempt=1)
            assert (answer["status"], answer["attempt"]) == ("superseded", 2), verb
        assert standing(remote, message_id, socket.client) == ("leased", 2, 1)
        assert socket.settle("ack", second, attempt=2)["status"] == "acked"


def test_a_backlog_comes_by_priority_then_in_order(remote: Remote) -> None:
    name, sender = remote.name(), remote.name("sender")
    for priority in ("bulk", "low", "normal", "high", "critical", 9, 1):
        remote.send(sender, name, priority, require_ack=True, priority=priority)
    with remote.connect(name) as socket:
        order = [message["payload"] for message in socket.messages(7)]
    assert order == ["critical", 1, "high", "normal", "low", "bulk", 9]


def test_plain_messages_come_in_order_whatever_their_priority(remote: Remote) -> None:
    name, sender = remote.name(), remote.name("sender")
    for priority in ("low", "critical", "normal"):
        remote.send(sender, name, priority, priority=priority)
    with remote.connect(name) as socket:
        assert [message["payload"] for message in socket.messages(3)] == ["low", "critical", "normal"]


def test_a_window_of_unsettled_messages_is_pushed_and_an_ack_brings_the_next(remote: Remote) -> None:
    name, sender = remote.name(), remote.name("sender")
    for number in range(102):
        remote.send(sender, name, number, require_ack=True)
    with remote.connect(name) as socket:
        first = socket.messages(100)
        assert socket.is_quiet()
        socket.settle("ack", first[0])
        assert socket.message()["payload"] == 100
        assert socket.is_quiet()


def test_each_of_a_list_settles_for_itself(remote: Remote) -> None:
    one, two = remote.name(), remote.name()
    message_id = remote.send(remote.name("sender"), [one, two], require_ack=True)["message_id"]
    assert remote.settle("ack", message_id, one)["status"] == "acked"
    assert {name: found["state"] for name, found in remote.state(message_id).items()} == {one: "acked", two: "waiting"}


def test_who_is_no_recipient_may_not_settle(remote: Remote) -> None:
    name = remote.name()
    message_id = remote.send(remote.name("sender"), name, require_ack=True)["message_id"]
    refused = remote.post(f"/api/messages/{message_id}/ack", {"client": remote.name("stranger")})
    assert (refused.status, refused.body["code"]) == (403, "not_recipient")
    with remote.connect(remote.name("stranger")) as stranger:
        answer = stranger.ask("ack", message_id=message_id)
        assert (answer["type"], answer["code"]) == ("error", "not_recipient")
    assert standing(remote, message_id, name)[0] == "waiting"


def test_a_message_that_asks_for_no_ack_needs_none(remote: Remote) -> None:
    name = remote.name()
    message_id = remote.send(remote.name("sender"), name)["message_id"]
    assert remote.settle("ack", message_id, name)["status"] == "not_needed"


@pytest.mark.parametrize(
    ("said", "status", "code"),
    [
        ({}, 400, "missing_field"),
        ({"attempt": 0}, 400, "bad_field"),
        ({"attempt": 2}, 400, "bad_field"),
        ({"delay": -1}, 400, "bad_field"),
        ({"ack_wait": 0.01}, 400, "bad_field"),
        ({"reason": "x" * 1001}, 400, "bad_field"),
    ],
)
def test_a_verdict_that_can_not_be_read_changes_nothing(
    remote: Remote, said: dict[str, object], status: int, code: str
) -> None:
    name = remote.name()
    message_id = remote.send(remote.name("sender"), name, require_ack=True)["message_id"]
    body = {"client": name, **said} if said else {}
    refused = remote.post(f"/api/messages/{message_id}/nack", body)
    assert (refused.status, refused.body["code"]) == (status, code)
    assert standing(remote, message_id, name) == ("waiting", 0, 0)


def test_a_verdict_on_an_unknown_message_is_refused(remote: Remote) -> None:
    refused = remote.post("/api/messages/msg-none/ack", {"client": remote.name()})
    assert (refused.status, refused.body["code"]) == (404, "unknown_message")
    with remote.connect(remote.name()) as socket:
        assert socket.ask("ack", message_id="msg-none")["code"] == "unknown_message"
        assert socket.ask("ack")["code"] == "missing_field"


@pytest.mark.parametrize("to", ["all", "topic:a.b"])
def test_an_ack_needs_names(remote: Remote, to: str) -> None:
    refused = remote.post("/api/send", {"from": remote.name(), "to": to, "require_ack": True})
    assert (refused.status, refused.body["code"]) == (400, "ack_needs_names")
