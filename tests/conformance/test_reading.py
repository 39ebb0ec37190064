"""Reading an inbox: pages, cursors, long polls, resuming; and that reading changes nothing."""

from __future__ import annotations

import re
import threading
import time

import pytest

from tests.conformance.remote import CURSOR, Remote, eventually


def filled(remote: Remote, count: int) -> str:
    """A name with so many messages, of payload 0, 1, 2, …"""
    name, sender = remote.name(), remote.name("sender")
    remote.post("/api/send/batch", {"messages": [{"from": sender, "to": name, "payload": n} for n in range(count)]})
    return name


def test_pages_follow_one_another_without_a_hole(remote: Remote) -> None:
    name = filled(remote, 7)
    page = remote.read(name, limit=3)
    assert (page["count"], page["more"]) == (3, True)
    payloads = [message["payload"] for message in page["messages"]]
    while page["more"]:
        page = remote.read(name, since=page["cursor"], limit=3)
        payloads += [message["payload"] for message in page["messages"]]
    assert payloads == list(range(7))
    last = remote.read(name, since=page["cursor"])
    assert (last["count"], last["more"], last["messages"]) == (0, False, [])
    assert re.fullmatch(CURSOR, last["cursor"])


def test_a_read_changes_nothing_that_a_later_read_returns(remote: Remote) -> None:
    name = filled(remote, 3)
    first = remote.read(name)
    assert first["count"] == 3
    assert remote.read(name)["messages"] == first["messages"]
    assert remote.read(name, limit=0)["count"] == 0
    with remote.connect(name) as socket:
        assert [message["payload"] for message in socket.messages(3)] == [0, 1, 2]


def test_a_place_may_be_a_cursor_a_time_the_beginning_or_now(remote: Remote) -> None:
    name = filled(remote, 2)
    one, two = remote.read(name)["messages"]
    for since in (remote.start, "earliest", "2020-01-01T00:00:00Z"):
        assert remote.read(name, since=since, from_=one["from"])["messages"] == [one, two]
    for since in ("latest", two["timestamp"]):
        assert remote.read(name, since=since, from_=one["from"])["messages"] == []


def test_a_page_can_be_narrowed_to_a_type_and_a_sender(remote: Remote) -> None:
    name, one, two = remote.name(), remote.name("sender"), remote.name("sender")
    for sender, type_ in ((one, "a"), (one, "b"), (two, "a")):
        remote.send(sender, name, [sender, type_], type=type_)
    assert [m["payload"] for m in remote.read(name, type="a")["messages"]] == [[one, "a"], [two, "a"]]
    assert [m["payload"] for m in remote.read(name, from_=one, type="a")["messages"]] == [[one, "a"]]


def test_a_long_poll_answers_when_something_comes(remote: Remote) -> None:
    name, sender = remote.name(), remote.name("sender")
    timer = threading.Timer(0.3, remote.send, [sender, name, "came"])
    timer.start()
    began = time.monotonic()
    page = remote.read(name, wait=20)
    timer.join()
    assert [message["payload"] for message in page["messages"]] == ["came"]
    assert time.monotonic() - began < 10


def test_a_long_poll_answers_empty_when_its_time_is_over(remote: Remote) -> None:
    began = time.monotonic()
    assert remote.read(remote.name(), wait=0.3)["count"] == 0
    assert 0.25 < time.monotonic() - began < 5


def test_what_is_there_comes_however_short_the_wait(remote: Remote) -> None:
    name = filled(remote, 1)
    assert remote.read(name, wait="1e-300")["count"] == 1


def test_a_reader_with_a_cursor_of_another_epoch_is_told_and_goes_on(remote: Remote) -> None:
    name = filled(remote, 1)
    page = remote.read(name, since="000000000000:3")
    assert (page["gap"]["requested"], page["gap"]["reason"]) == ("000000000000:3", "epoch_changed")
    assert page["count"] == 1
    assert remote.read(name, since="000000000000:3", on_gap="latest")["count"] == 0


def test_what_came_while_a_client_was_away_waits_for_it(remote: Remote) -> None:
    name = remote.name()
    remote.connect(name).close()
    for number in range(5):
        remote.send(remote.name("sender"), name, number)
    with remote.connect(name) as socket:
        assert [message["payload"] for message in socket.messages(5)] == list(range(5))


def test_a_client_goes_on_where_its_own_cursor_stands(remote: Remote) -> None:
    name = filled(remote, 6)
    messages = remote.read(name)["messages"]
    epoch = remote.read(name)["cursor"].partition(":")[0]
    with remote.connect(name, since=f"{epoch}:{messages[3]['seq']}") as socket:
        assert [message["payload"] for message in socket.messages(2)] == [4, 5]
        assert socket.is_quiet()


def test_the_bus_keeps_the_place_of_a_client_that_brings_none(remote: Remote) -> None:
    name = filled(remote, 3)
    with remote.connect(name) as socket:
        last = socket.messages(3)[-1]
        eventually(lambda: remote.state(last["id"])[name]["state"] == "confirmed")
    remote.send(remote.name("sender"), name, "after")
    with remote.connect(name) as socket:
        assert socket.message()["payload"] == "after"
        assert socket.is_quiet()


def test_every_connection_of_a_client_gets_its_messages(remote: Remote) -> None:
    name = remote.name()
    with remote.connect(name) as one, remote.connect(name) as two:
        remote.send(remote.name("sender"), name, 1)
        assert one.message() == two.message()


def test_a_message_can_be_looked_up_and_an_unknown_one_is_told(remote: Remote) -> None:
    name = remote.name()
    receipt = remote.send(remote.name("sender"), name)
    assert remote.state(receipt["message_id"]) == {name: {"client": name, "state": "waiting"}}
    unknown = remote.get("/api/messages/msg-none")
    assert (unknown.status, unknown.body["code"]) == (404, "unknown_message")


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({}, "to"),
        ({"to": "all"}, "to"),
        ({"limit": "-1"}, "limit"),
        ({"limit": "1001"}, "limit"),
        ({"wait": "51"}, "wait"),
        ({"since": "x"}, "since"),
        ({"on_gap": "x"}, "on_gap"),
    ],
)
def test_a_read_that_can_not_be_read_is_refused(remote: Remote, query: dict[str, str], field: str) -> None:
    refused = remote.get("/api/messages", **({"to": remote.name()} | query if query else {}))
    assert (refused.status, refused.body["field"]) == (400, field)


def test_a_message_whose_time_is_over_is_not_read_and_counted(remote: Remote) -> None:
    name = remote.name()
    receipt = remote.send(remote.name("sender"), name, ttl=0.2)
    assert remote.get(f"/api/messages/{receipt['message_id']}").body["message"]["expires_at"] > receipt["timestamp"]
    before = f"{remote.start.partition(':')[0]}:{receipt['seq'] - 1}"
    assert eventually(lambda: remote.read(name, since=before)["expired"] == 1)
    assert remote.read(name, since=before)["messages"] == []
    with remote.connect(name, since=before) as socket:
        assert socket.hello["resumed"]["expired"] >= 1
        assert socket.is_quiet()
