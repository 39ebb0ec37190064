"""`request`, `dead-letters`, `replay`, `thread`, `queues` and what `send` can ask for: real processes, a real server."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from bus.client import Client
from bus.settings import ROOT
from bus.testing import BusServer, eventually
from tests.integration.test_cli import PATIENCE_SECONDS, command, environment, run


@pytest.fixture
def dead(server: BusServer) -> Iterator[str]:
    """A client with three dead letters, of two senders; none is left at the end."""
    with Client("rejecting", server.url) as client:
        client.on(None, lambda message: message.reject("no") if not message.redriven else None)
        for sender in ("one", "one", "two"):
            body = {"from": sender, "to": "rejecting", "payload": sender, "type": "task", "require_ack": True}
            assert server.call("POST", "/api/send", body).status == 200
        eventually(lambda: len(letters(server)) == 3, what="the third dead letter")
        yield "rejecting"
        client.purge(owner="rejecting")


def letters(server: BusServer) -> list[dict[str, Any]]:
    """The dead letters of the client `rejecting`."""
    listed: list[dict[str, Any]] = server.call("GET", "/api/dead-letters?owner=rejecting").body["dead_letters"]
    return listed


# ---- send and request


def test_send_says_how_a_message_is_to_be_treated(server: BusServer) -> None:
    terms = ["--require-ack", "--priority", "high", "--ttl", "60", "--thread", "t-send", "--correlation-id", "c-1"]
    receipt = json.loads(run(server.url, "send", "--to", "s-terms", *terms, "text").stdout)
    message = server.call("GET", f"/api/messages/{receipt['message_id']}").body["message"]
    assert (message["requires_ack"], message["priority"], message["thread_id"]) == (True, "high", "t-send")
    assert message["correlation_id"] == "c-1"
    assert message["expires_at"] > message["timestamp"]
    later = json.loads(run(server.url, "send", "--to", "s-terms", "--delay", "3600", "later").stdout)
    assert (later["seq"], later["recipients"][0]["state"]) == (None, "scheduled")
    assert later["deliver_at"]
    bad = run(server.url, "send", "--to", "s-terms", "--ttl", "-1", "text")
    assert (bad.returncode, bad.stdout, len(bad.stderr.splitlines())) == (1, "", 1)
    not_json = run(server.url, "send", "--to", "s-terms", "--json", "{")
    assert (not_json.returncode, "must be JSON" in not_json.stderr) == (2, True)


def test_request_prints_the_reply(server: BusServer) -> None:
    with Client("r-agent", server.url) as agent:
        agent.on_request("question", lambda message: {"echo": message.payload})
        done = run(server.url, "request", "--to", "r-agent", "--type", "question", "--json", '{"q": 1}')
    assert (done.returncode, done.stderr) == (0, "")
    reply = json.loads(done.stdout)
    assert (reply["from"], reply["payload"]) == ("r-agent", {"echo": {"q": 1}})


def test_a_request_without_a_reply_ends_with_3_and_can_be_fetched_later(server: BusServer) -> None:
    done = run(server.url, "request", "--to", "r-late", "--wait", "0", "?")
    assert (done.returncode, done.stdout) == (3, "")
    assert "No reply from r-late" in done.stderr
    request_id = done.stderr.split("--fetch ")[1].split()[0]
    with Client("r-late", server.url) as late:
        late.reply(late.receive(PATIENCE_SECONDS), "!")
    fetched = run(server.url, "request", "--fetch", request_id)
    assert (fetched.returncode, json.loads(fetched.stdout)["payload"]) == (0, "!")
    offline = run(server.url, "request", "--to", "r-late", "--require-online", "?")
    assert (offline.returncode, offline.stdout, len(offline.stderr.splitlines())) == (1, "", 1)
    assert run(server.url, "request", "?").returncode == 2
    assert run(server.url, "request", "--fetch", "msg-000000000000-000000000000").returncode == 1


# ---- dead letters


def test_dead_letters_are_listed_for_people_and_for_programs(server: BusServer, dead: str) -> None:
    table = run(server.url, "dead-letters", "list", "--owner", dead).stdout.splitlines()
    assert table[0].split() == ["DIED", "OWNER", "REASON", "TRIES", "FROM", "TYPE", "ID"]
    assert [row.split()[3] for row in table[1:]] == ["rejected"] * 3
    listed = run(server.url, "dead-letters", "list", "--owner", dead, "--from", "two", "--json").stdout
    (letter,) = map(json.loads, listed.splitlines())
    assert (letter["owner"], letter["message"]["payload"], letter["reason"]) == (dead, "two", "rejected")
    shown = json.loads(run(server.url, "dead-letters", "show", letter["id"]).stdout)
    assert shown == letter
    cut = run(server.url, "dead-letters", "list", "--owner", dead, "--limit", "2")
    assert len(cut.stdout.splitlines()) == 3
    assert "more" in cut.stderr


def test_redrive_counts_asks_and_does_it_at_a_yes_only(server: BusServer, dead: str) -> None:
    only = ["--owner", dead, "--from", "one"]
    for given in ("n\n", ""):
        refused = run(server.url, "dead-letters", "redrive", *only, given=given)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "Redrive 2 dead letters?" in refused.stderr
        assert "Nothing was changed" in refused.stderr
    assert len(letters(server)) == 3
    done = run(server.url, "dead-letters", "redrive", *only, given="y\n")
    assert (done.returncode, done.stdout) == (0, "2 dead letters redriven.\n")
    (left,) = letters(server)
    one = run(server.url, "dead-letters", "redrive", left["id"], "--yes")
    assert one.stdout == "1 dead letter redriven.\n"
    assert run(server.url, "dead-letters", "redrive", left["id"], "--yes").returncode == 1
    none = run(server.url, "dead-letters", "redrive", *only, "--yes")
    assert (none.returncode, none.stderr) == (0, "No dead letter matches.\n")


def test_purge_counts_and_asks(server: BusServer, dead: str) -> None:
    refused = run(server.url, "dead-letters", "purge", "--owner", dead, given="n\n")
    assert "Purge 3 dead letters?" in refused.stderr
    done = run(server.url, "dead-letters", "purge", "--owner", dead, "--yes")
    assert done.stdout == "3 dead letters purged.\n"
    assert letters(server) == []
    assert run(server.url, "dead-letters", "purge", "some-id", "--reason", "rejected").returncode == 2


# ---- replay, thread, queues


def test_replay_says_how_much_it_copied(server: BusServer) -> None:
    for n in range(3):
        server.call(
            "POST", "/api/send", {"from": "a", "to": "p-inbox", "payload": n, "type": "odd" if n % 2 else "even"}
        )
    done = run(server.url, "replay", "--to", "p-inbox", "--since", "earliest", "--type", "even")
    assert (done.returncode, done.stderr) == (0, "")
    assert "done, 2 messages into p-inbox" in done.stdout
    replay_id = done.stdout.split()[0]
    assert replay_id in run(server.url, "replays").stdout
    listed = [json.loads(line) for line in run(server.url, "replays", "--json").stdout.splitlines()]
    assert next(each for each in listed if each["replay_id"] == replay_id)["copied"] == 2
    shown = run(server.url, "tail", "--client", "p-inbox", "--since", "earliest", "--count", "5").stdout.splitlines()
    assert [json.loads(line).get("replayed", False) for line in shown] == [False, False, False, True, True]
    slow = run(server.url, "replay", "--to", "p-inbox", "--since", "earliest", "--rate", "0.1", "--no-wait", "--json")
    made = json.loads(slow.stdout)
    assert made["status"] == "running"
    assert "is cancelled" in run(server.url, "replays", "--cancel", made["replay_id"]).stderr


def test_a_thread_is_printed_with_who_took_part(server: BusServer) -> None:
    for sender, to in (("ann", "bob"), ("bob", "ann")):
        server.call("POST", "/api/send", {"from": sender, "to": to, "payload": sender, "thread_id": "t: cli ?"})
    done = run(server.url, "thread", "t: cli ?")
    assert [json.loads(line)["payload"] for line in done.stdout.splitlines()] == ["ann", "bob"]
    assert done.stderr.startswith("2 messages of ")
    assert "ann" in done.stderr
    missing = run(server.url, "thread", "no-such-thread")
    assert (missing.returncode, len(missing.stderr.splitlines())) == (1, 1)


def test_queues_are_listed(server: BusServer) -> None:
    for n in range(2):
        server.call("POST", "/api/send", {"from": "a", "to": "queue:listed", "payload": n})
    server.call("POST", "/api/queues/listed/claim", {"client": "worker"})
    table = run(server.url, "queues").stdout.splitlines()
    row = next(line.split() for line in table if line.startswith("listed "))
    assert row[:2] == ["listed", "1"]
    assert row[4] == "1"
    listed = [json.loads(line) for line in run(server.url, "queues", "--json").stdout.splitlines()]
    assert next(each for each in listed if each["queue"] == "listed")["in_flight"] == 1


def test_every_command_has_a_help_that_says_what_it_does() -> None:
    def help_of(*path: str) -> str:
        shown = subprocess.run(
            [*command("http://127.0.0.1:1", *path)[:-2], "--help"],
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
            check=True,
        )
        return shown.stdout

    assert "dead-letters" in help_of()
    for name in ("send", "request", "tail", "claim", "log", "thread", "queues", "replay", "replays"):
        assert len(help_of(name).splitlines()) > 6
    for name in ("list", "show", "redrive", "purge"):
        assert "dead letter" in help_of("dead-letters", name)
