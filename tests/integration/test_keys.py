"""API keys on the running server, with one worker and with four: what each grants, rotation, and what ends with a key."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from bus.settings import ROOT
from bus.testing import Answer, BusServer, eventually
from tests.follower import Follower
from tests.rawws import CLOSE, TEXT, RawWebSocket
from tests.refusals import KEY, check
from tests.stored import rows


@pytest.fixture(scope="module", params=[1, 4], ids=["1 worker", "4 workers"])
def bus(request: pytest.FixtureRequest) -> Iterator[BusServer]:
    """A server with auth on."""
    with BusServer(workers=request.param, env={"API_KEY": KEY}) as server:
        yield server


def call(bus: BusServer, method: str, path: str, body: object = None, *, key: str = KEY) -> Answer:
    return bus.call(method, path, body, headers={"X-API-Key": key})


def make(bus: BusServer, **granted: Any) -> dict[str, Any]:
    """A fresh key."""
    answer = call(bus, "POST", "/api/keys", {"clients": ["alice"], **granted})
    assert answer.status == 200, answer
    return dict(answer.body)


def sent(bus: BusServer, key: str, **fields: Any) -> Answer:
    return call(bus, "POST", "/api/send", {"to": "bob", **fields}, key=key)


def test_the_secret_is_shown_once_and_stored_nowhere(bus: BusServer) -> None:
    made = make(bus, label="to be looked for")
    secret = made["key"].split("_")[3]
    listed = call(bus, "GET", f"/api/keys/{made['id']}").body
    assert "key" not in listed
    assert listed["label"] == "to be looked for"
    assert call(bus, "GET", "/api/auth/me", key=made["key"]).body["name"] == f"key:{made['id']}"
    for file in bus.data_dir.rglob("*"):
        if file.is_file():
            assert secret.encode() not in file.read_bytes(), file.name
    assert secret not in bus.log


def test_who_sends_comes_from_the_credential(bus: BusServer) -> None:
    alice = make(bus)["key"]
    receipt = sent(bus, alice, payload=1).body
    message = call(bus, "GET", f"/api/messages/{receipt['message_id']}", key=alice).body["message"]
    assert (message["from"], message["verified"]) == ("alice", True)
    check(sent(bus, alice, **{"from": "bob"}), 403, "not_your_name")
    batch = call(bus, "POST", "/api/send/batch", {"messages": [{"to": "b"}, {"from": "bob", "to": "b"}]}, key=alice)
    assert [result.get("code", "sent") for result in batch.body["results"]] == ["sent", "not_your_name"]
    forged = sent(bus, KEY, **{"from": "alice", "verified": True}).body["message_id"]
    assert "verified" not in call(bus, "GET", f"/api/messages/{forged}").body["message"]


def test_on_behalf_of_needs_its_scope(bus: BusServer) -> None:
    check(sent(bus, make(bus)["key"], on_behalf_of="carol"), 403, "not_allowed")
    gateway = make(bus, clients=["gateway"], scopes=["send", "read", "on-behalf-of"])["key"]
    receipt = sent(bus, gateway, on_behalf_of="carol").body
    message = call(bus, "GET", f"/api/messages/{receipt['message_id']}").body["message"]
    assert (message["from"], message["on_behalf_of"], message["verified"]) == ("gateway", "carol", True)


def test_one_cannot_read_ack_claim_or_listen_as_another(bus: BusServer) -> None:
    alice, bob = make(bus)["key"], make(bus, clients=["bob"])["key"]
    receipt = sent(bus, KEY, **{"from": "x", "to": "bob", "require_ack": True}).body
    path = f"/api/messages/{receipt['message_id']}"
    check(call(bus, "GET", "/api/messages?to=bob", key=alice), 403, "not_your_name")
    check(call(bus, "GET", path, key=alice), 404, "unknown_message")
    for verb in ("ack", "nack", "progress", "release", "reject"):
        check(call(bus, "POST", f"{path}/{verb}", {"client": "bob"}, key=alice), 403, "not_your_name")
    assert call(bus, "POST", f"{path}/ack", {"client": "alice"}, key=alice).status in (403, 404)
    check(call(bus, "GET", "/stream/events?client_id=bob", key=alice), 403, "not_your_name")
    check(call(bus, "GET", "/api/dead-letters?owner=bob", key=alice), 403, "needs_admin")
    with RawWebSocket(bus.port, "/ws/bob", {"X-API-Key": alice}) as socket:
        assert (socket.status, json.loads(socket.body)["code"]) == (403, "not_your_name")
    assert call(bus, "POST", f"{path}/ack", {}, key=bob).body["status"] == "acked"


def test_queues_and_topics_as_granted(bus: BusServer) -> None:
    worker = make(bus, clients=["worker"], topics=["builds.*"], queues=["jobs"])["key"]
    sent(bus, KEY, **{"from": "x", "to": "queue:jobs"})
    claimed = call(bus, "POST", "/api/queues/jobs/claim", {}, key=worker).body["messages"]
    assert len(claimed) == 1
    check(call(bus, "POST", "/api/queues/others/claim", {}, key=worker), 403, "not_allowed")
    check(call(bus, "GET", "/api/messages?topics=secret", key=worker), 403, "not_allowed")
    check(call(bus, "GET", "/stream/events?topics=builds.%3E", key=worker), 403, "not_allowed")
    with RawWebSocket(bus.port, "/ws/worker?topics=secret", {"X-API-Key": worker}) as socket:
        assert socket.status == 403
    with Follower(bus.port, "worker", "topics=builds.linux", headers={"X-API-Key": worker}) as listener:
        for topics, queues in ((["secret"], []), ([">"], []), ([], ["others"])):
            listener.others.clear()
            listener.socket.send_json({"type": "subscribe", "topics": topics, "queues": queues, "ref": 1})
            assert listener.wait_for_frame("error")["code"] == "not_allowed"
        listener.socket.send_json({"type": "subscribe", "topics": ["builds.*"], "queues": ["jobs"], "ref": 2})
        assert listener.wait_for_frame("subscribed")["topics"] == ["builds.*", "builds.linux"]


def test_a_socket_sends_as_its_client_and_where_it_may(bus: BusServer) -> None:
    key = make(bus, clients=["talker"], send_to=["listener", "topic:news"])["key"]
    with Follower(bus.port, "talker", headers={"X-API-Key": key}) as talker:
        for number, (to, more) in enumerate(
            [
                ("listener", {}),
                ("topic:news", {}),
                ("other", {}),
                ("all", {}),
                ("queue:q", {}),
                ("other", {"priority": 1}),
            ]
        ):
            talker.socket.send_json({"type": "send", "to": to, "payload": 1, "ref": number, **more})
        eventually(lambda: len(talker.others) >= 6, what="six answers")
        told = {frame["ref"]: frame.get("code", frame["type"]) for frame in talker.others}
    assert told == {0: "sent", 1: "sent", **dict.fromkeys((2, 3, 4, 5), "not_allowed")}
    (message,) = call(bus, "GET", "/api/messages?to=listener&since=earliest").body["messages"]
    assert (message["from"], message["verified"]) == ("talker", True)


def test_a_socket_may_show_its_key_in_the_first_frame(bus: BusServer) -> None:
    key = make(bus)["key"]
    for client, expected in (("alice", "connection_confirmed"), ("bob", 4403)):
        with RawWebSocket(bus.port, f"/ws/{client}") as socket:
            socket.send_json({"type": "auth", "token": key})
            frame = socket.read_frame()
            found = json.loads(frame.payload)["type"] if frame.opcode == TEXT else frame.close_code
            assert found == expected


def test_a_read_only_key_sends_nothing_and_a_send_only_one_reads_nothing(bus: BusServer) -> None:
    reader = make(bus, clients=["reader"], scopes=["read"])["key"]
    writer = make(bus, clients=["writer"], scopes=["send"])["key"]
    check(sent(bus, reader), 403, "not_allowed")
    check(call(bus, "POST", "/stream/broadcast", {"event": "e", "data": 1}, key=reader), 403, "not_allowed")
    with Follower(bus.port, "reader", headers={"X-API-Key": reader}) as listener:
        listener.socket.send_json({"type": "send", "to": "x", "ref": 1})
        assert listener.wait_for_frame("error")["code"] == "not_allowed"
    assert sent(bus, writer).status == 200
    check(call(bus, "GET", "/api/messages", key=writer), 403, "not_allowed")
    with RawWebSocket(bus.port, "/ws/writer", {"X-API-Key": writer}) as socket:
        assert socket.status == 403


def test_an_answer_to_a_request_is_the_askers(bus: BusServer) -> None:
    alice, bob = make(bus)["key"], make(bus, clients=["bob"])["key"]
    asked = call(bus, "POST", "/api/request", {"to": "bob", "wait": 0}, key=alice).body["request_id"]
    assert call(bus, "GET", f"/api/requests/{asked}", key=alice).status == 202
    check(call(bus, "GET", f"/api/requests/{asked}", key=bob), 403, "not_your_name")


def test_one_cannot_take_back_anothers_delayed_message(bus: BusServer) -> None:
    alice, bob = make(bus)["key"], make(bus, clients=["bob"])["key"]
    waiting = sent(bus, alice, delay=3600).body["message_id"]
    check(call(bus, "DELETE", f"/api/messages/{waiting}", key=bob), 403, "not_your_name")
    assert call(bus, "DELETE", f"/api/messages/{waiting}", key=alice).status == 200


def test_events_of_streams_carry_the_credentials_name(bus: BusServer) -> None:
    alice = make(bus)["key"]
    check(
        call(bus, "POST", "/stream/send", {"client_id": "b", "event": "e", "data": 1, "from": "bob"}, key=alice),
        403,
        "not_your_name",
    )
    receipt = call(bus, "POST", "/stream/broadcast", {"event": "e", "data": 1}, key=alice).body
    message = call(bus, "GET", f"/api/messages/{receipt['message_id']}").body["message"]
    assert (message["from"], message["verified"]) == ("alice", True)


# ---- what ends


@pytest.mark.parametrize("end", ["revoke", "delete"])
def test_a_key_that_ends_closes_its_sockets_and_streams(bus: BusServer, end: str) -> None:
    made, other = make(bus), make(bus, clients=["carol"])
    header = {"X-API-Key": made["key"]}
    with (
        Follower(bus.port, "alice", headers=header) as one,
        Follower(bus.port, "alice", headers=header) as two,
        Follower(bus.port, "carol", headers={"X-API-Key": other["key"]}) as stays,
        RawWebSocket(bus.port, "/ws/alice") as three,
    ):
        three.send_json({"type": "auth", "token": made["key"]})
        assert three.read_json()["type"] == "connection_confirmed"
        method, path = ("POST", "/revoke") if end == "revoke" else ("DELETE", "")
        assert call(bus, method, f"/api/keys/{made['id']}{path}").status == 200
        assert (one.wait_for_end(5), two.wait_for_end(5)) == (4401, 4401)
        while (frame := three.read_frame()).opcode != CLOSE:
            pass
        assert frame.close_code == 4401
        eventually(lambda: sent(bus, made["key"]).status == 401, what="the refusal")
        call(bus, "POST", "/api/send", {"from": "x", "to": "carol", "payload": "still there"})
        stays.wait_for(1)


@pytest.mark.parametrize("what", ["messages", "claim"])
def test_a_read_that_waits_gives_nothing_to_a_key_that_has_ended(bus: BusServer, what: str) -> None:
    made = make(bus, clients=["waits"], queues=["wanted"])
    calls: dict[str, tuple[str, str, object]] = {
        "messages": ("GET", "/api/messages?since=latest&wait=10", None),
        "claim": ("POST", "/api/queues/wanted/claim", {"wait": 10}),
    }
    answers: list[Answer] = []
    thread = threading.Thread(target=lambda: answers.append(call(bus, *calls[what], key=made["key"])))
    thread.start()
    eventually(
        lambda: call(bus, "GET", "/api/queues/wanted").status == 200 and thread.is_alive(), what="a waiting read"
    )
    call(bus, "POST", f"/api/keys/{made['id']}/revoke")
    eventually(lambda: sent(bus, made["key"]).status == 401, what="the refusal")
    call(bus, "POST", "/api/send", {"from": "x", "to": "waits" if what == "messages" else "queue:wanted", "payload": 1})
    thread.join(15)
    check(answers[0], 401, "bad_credential")
    if what == "claim":  # it is nobody's yet
        claimed = call(bus, "POST", "/api/queues/wanted/claim", {"client": "other", "wait": 5}).body["messages"]
        assert [message["payload"] for message in claimed] == [1]


def test_a_key_that_expires_closes_its_sockets(bus: BusServer) -> None:
    made = make(bus, expires_in=2)
    with Follower(bus.port, "alice", headers={"X-API-Key": made["key"]}) as listener:
        assert listener.wait_for_end(7) == 4401
    check(sent(bus, made["key"]), 401, "bad_credential")
    assert call(bus, "GET", f"/api/keys/{made['id']}").body["state"] == "expired"


def test_two_keys_are_valid_while_one_is_rotated(bus: BusServer) -> None:
    old = make(bus)
    new = call(bus, "POST", f"/api/keys/{old['id']}/rotate", {"grace": 60}).body
    assert sent(bus, old["key"]).status == sent(bus, new["key"]).status == 200
    check(call(bus, "POST", f"/api/keys/{old['id']}/rotate", {}), 400, "key_rotated")
    last = call(bus, "POST", f"/api/keys/{new['id']}/rotate", {"grace": 0}).body
    eventually(lambda: sent(bus, new["key"]).status == 401, what="the end of the grace")
    assert sent(bus, last["key"]).status == 200
    check(call(bus, "POST", f"/api/keys/{new['id']}/rotate", {}), 400, "key_ended")


def test_a_fresh_key_is_known_to_every_worker_at_once(bus: BusServer) -> None:
    for _ in range(10):
        key = make(bus)["key"]
        assert [sent(bus, key).status for _ in range(8)] == [200] * 8


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        ({}, "bad_field", "clients"),
        ({"clients": ["a b"]}, "bad_name", "clients"),
        ({"clients": ["a"], "scopes": []}, "bad_field", "scopes"),
        ({"clients": ["a"], "scopes": ["root"]}, "bad_field", "scopes"),
        ({"clients": ["a"], "expires_in": 0}, "bad_field", "expires_in"),
        ({"clients": ["a"], "expires_in": 1e12}, "bad_field", "expires_in"),
        ({"clients": ["a"], "label": "x" * 201}, "bad_field", "label"),
        ({"clients": ["a"], "surprise": 1}, "unknown_field", "surprise"),
    ],
)
def test_a_key_that_cannot_be_meant_is_refused(bus: BusServer, body: object, code: str, field: str) -> None:
    check(call(bus, "POST", "/api/keys", body), 400, code, field)


def test_why_is_explained(bus: BusServer) -> None:
    made = make(bus, send_to=["topic:builds.>"])
    ask = {"action": "send", "target": "topic:other"}
    mine = call(bus, "POST", "/api/auth/explain", ask, key=made["key"]).body
    assert (mine["allowed"], mine["why"]) == (
        False,
        "Its `send_to` are topic:builds.>, which does not cover topic:other.",
    )
    assert call(bus, "POST", "/api/auth/explain", {**ask, "key_id": made["id"]}).body["why"] == mine["why"]
    check(call(bus, "POST", "/api/auth/explain", {**ask, "key_id": made["id"]}, key=made["key"]), 403, "not_allowed")
    call(bus, "POST", f"/api/keys/{made['id']}/revoke")
    assert "revoked" in call(bus, "POST", "/api/auth/explain", {**ask, "key_id": made["id"]}).body["why"]


# ---- the first key, and the command line


def test_the_first_start_prints_one_admin_key_and_no_other_start_does(tmp_path: Any) -> None:
    with BusServer(workers=4, data_dir=tmp_path / "data", env={"ENABLE_AUTH": "true"}) as server:
        shown = [line for line in server.log.splitlines() if "shown this once" in line]
        assert len(shown) == 1
        key = shown[0].rpartition(": ")[2].strip()
        assert call(server, "GET", "/api/auth/me", key=key).body["admin"] is True
        server.terminate()
        server.start()
        assert server.log.count("shown this once") == 1
        assert call(server, "GET", "/api/auth/me", key=key).status == 200
        assert rows(server, "SELECT count(*) FROM api_keys") == [(1,)]


def test_the_command_line_makes_rotates_and_revokes(bus: BusServer) -> None:
    def run(*words: str, code: int = 0) -> str:
        command = [sys.executable, "-m", "bus", *words, "--url", bus.url, "--api-key", KEY]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == code, done
        return done.stdout

    made = json.loads(run("keys", "create", "--client", "shell", "--label", "from a shell", "--expires-in", "30d"))
    assert made["key"].startswith("bus_dev_")
    assert "from a shell" in run("keys", "list")
    assert run("auth", "explain", "read", "shell", "--key", made["id"]).startswith("yes: ")
    assert run("auth", "explain", "read", "other", "--key", made["id"], code=1).startswith("no: ")
    successor = json.loads(run("keys", "rotate", made["id"], "--grace", "1h"))
    assert successor["clients"] == ["shell"]
    assert "revoked" in run("keys", "revoke", successor["id"])
    assert "deleted" in run("keys", "delete", made["id"])


def test_a_ttl_lengthens_a_policy_for_administrators_only(bus: BusServer) -> None:
    alice = make(bus)["key"]
    call(bus, "PUT", "/api/ttl/policies/brief", {"ttl_seconds": 600})

    def life(key: str, ttl: int) -> float:
        receipt = sent(bus, key, **{"from": "alice", "type": "brief", "ttl": ttl}).body
        message = call(bus, "GET", f"/api/messages/{receipt['message_id']}").body["message"]
        ends, began = (datetime.fromisoformat(message[name]) for name in ("expires_at", "timestamp"))
        return (ends - began).total_seconds()

    assert life(alice, 60) == pytest.approx(60, abs=5)
    assert life(alice, 6000) == pytest.approx(600, abs=5)
    assert life(KEY, 6000) == pytest.approx(6000, abs=5)
