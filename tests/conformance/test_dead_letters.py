"""Dead letters and replays: nothing disappears, and what is there can be sent again."""

from __future__ import annotations

import re

from tests.conformance.remote import TIME, Frame, Remote, eventually


def letters(remote: Remote, owner: str, **query: object) -> list[Frame]:
    """The dead letters of one owner."""
    found: list[Frame] = remote.get("/api/dead-letters", owner=owner, **query).body["dead_letters"]
    return found


def rejected(remote: Remote, name: str, payload: object = None) -> str:
    """The id of a message that its recipient rejected."""
    message_id = remote.send(remote.name("sender"), name, payload, require_ack=True)["message_id"]
    assert remote.settle("reject", message_id, name, reason="no use")["status"] == "rejected"
    return str(message_id)


def test_what_is_rejected_is_a_dead_letter_at_once_and_its_sender_is_told(admin: Remote) -> None:
    with admin.connect(admin.name()) as socket, admin.connect(admin.name("sender")) as sender:
        sent = sender.ask("send", to=socket.client, require_ack=True, payload={"a": 1})
        assert socket.settle("reject", socket.message(), reason="no use")["status"] == "rejected"
        failed = sender.expect("failed")
        assert failed["recipient"] == socket.client
        assert (failed["message_id"], failed["reason"]) == (sent["message_id"], "rejected")
        assert socket.ask("ack", message_id=sent["message_id"])["status"] == "dead"
    (letter,) = letters(admin, socket.client)
    assert (letter["id"], letter["reason"], letter["detail"]) == (sent["message_id"], "rejected", "no use")
    assert letter["message"]["payload"] == {"a": 1}
    (attempt,) = letter["attempts"]
    assert (attempt["attempt"], attempt["consumer"], attempt["outcome"]) == (1, socket.client, "rejected")
    assert all(re.fullmatch(TIME, time) for time in (letter["died_at"], attempt["began_at"], attempt["ended_at"]))
    assert admin.state(sent["message_id"])[socket.client]["state"] == "dead_letter"


def test_five_counted_failures_are_the_end(admin: Remote) -> None:
    with admin.connect(admin.name()) as socket:
        sent = admin.send(admin.name("sender"), socket.client, require_ack=True)
        statuses = [socket.settle("nack", socket.message(), delay=0)["status"] for _ in range(5)]
    assert statuses == ["nacked"] * 4 + ["dead"]
    (letter,) = letters(admin, socket.client)
    assert (letter["id"], letter["reason"]) == (sent["message_id"], "max_attempts")
    assert [attempt["attempt"] for attempt in letter["attempts"]] == [1, 2, 3, 4, 5]


def test_a_dead_letter_can_be_sent_again_under_its_id(admin: Remote) -> None:
    name = admin.name()
    message_id = rejected(admin, name, "again")
    answer = admin.post(f"/api/dead-letters/{message_id}/redrive", {})
    assert (answer.status, answer.body) == (200, {"matched": 1, "redriven": 1})
    assert letters(admin, name) == []
    with admin.connect(name) as socket:
        message = socket.message()
        assert (message["id"], message["redriven"], message["payload"]) == (message_id, True, "again")
        assert not {"attempt", "redelivered"} & set(message)
        assert socket.settle("ack", message)["status"] == "acked"


def test_many_can_be_counted_sent_again_and_purged(admin: Remote) -> None:
    name = admin.name()
    for _ in range(3):
        rejected(admin, name)
    count = admin.post("/api/dead-letters/redrive", {"owner": name, "dry_run": True}).body
    assert count == {"matched": 3, "redriven": 0}
    assert admin.post("/api/dead-letters/redrive", {"owner": name, "limit": 1}).body == {"matched": 3, "redriven": 1}
    count = admin.call("DELETE", "/api/dead-letters", owner=name, dry_run="true").body
    assert count == {"matched": 2, "purged": 0}
    assert admin.call("DELETE", "/api/dead-letters", owner=name).body == {"matched": 2, "purged": 2}
    assert letters(admin, name) == []
    for message in admin.read(name, since=admin.start)["messages"]:
        admin.settle("ack", message["id"], name)


def test_dead_letters_come_in_pages_and_can_be_narrowed(admin: Remote) -> None:
    name = admin.name()
    ids = [rejected(admin, name) for _ in range(3)]
    first = admin.get("/api/dead-letters", owner=name, limit=2).body
    rest = admin.get("/api/dead-letters", owner=name, cursor=first["cursor"]).body
    assert [letter["id"] for letter in first["dead_letters"] + rest["dead_letters"]] == ids
    assert (first["more"], rest["more"]) == (True, False)
    assert letters(admin, name, reason="expired") == []
    assert len(letters(admin, name, reason="rejected")) == 3
    assert admin.get("/api/dead-letters", reason="bored").status == 400


def test_a_dead_letter_that_is_none_is_told(admin: Remote) -> None:
    for method, path in (("GET", ""), ("POST", "/redrive"), ("DELETE", "")):
        refused = admin.call(method, f"/api/dead-letters/msg-none{path}", {} if path else None)
        assert (refused.status, refused.body["code"]) == (404, "unknown_dead_letter")


# ---- replay


def test_a_range_is_replayed_as_new_messages_that_say_so(admin: Remote) -> None:
    name = admin.name()
    sent = [admin.send(admin.name("sender"), name, number) for number in range(3)]
    began = admin.read(name)["cursor"].partition(":")[0] + f":{sent[0]['seq']}"
    replay = admin.post("/api/replay", {"to": name, "since": began})
    assert (replay.status, replay.body["status"], replay.body["to"]) == (202, "running", name)
    path = f"/api/replays/{replay.body['replay_id']}"
    eventually(lambda: admin.get(path).body["status"] == "done")
    copies = admin.read(name, since=admin.start)["messages"][3:]
    assert admin.get(path).body["copied"] == len(copies) == 2
    assert [(copy["replay_of"], copy["payload"]) for copy in copies] == [
        (receipt["message_id"], number) for number, receipt in enumerate(sent) if number
    ]
    assert all(copy["replayed"] is True for copy in copies)
    assert not {copy["id"] for copy in copies} & {receipt["message_id"] for receipt in sent}
    assert admin.call("DELETE", path).body["status"] == "done"  # it was over


def test_the_log_tells_everything_in_its_order(admin: Remote) -> None:
    name = admin.name()
    start = admin.read(name, since="latest")["cursor"]
    sender = admin.name("sender")
    sent = [admin.send(sender, name, require_ack=number == 1)["message_id"] for number in range(3)]
    log = admin.get("/api/log", since=start, to=name, from_=sender).body
    assert [message["id"] for message in log["messages"]] == sent
    until = admin.get("/api/log", since=start, to=name, from_=sender, limit=2).body
    assert ([message["id"] for message in until["messages"]], until["more"]) == (sent[:2], True)
