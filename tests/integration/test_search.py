"""Search against real servers: what is found, by whom, and what is not any more."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from bus.client import Calls
from bus.errors import Malformed
from bus.settings import ROOT
from bus.testing import BusServer, eventually
from tests.databases import PostgresServer
from tests.refusals import KEY


def search(bus: BusServer, key: str | None = None, **query: object) -> dict[str, Any]:
    """The answer to a search, once everything that was sent before is indexed."""

    def complete() -> Any:
        named = {name.rstrip("_"): value for name, value in query.items()}
        answer = bus.call("GET", f"/api/search?{urlencode(named)}", headers={"X-API-Key": key} if key else {})
        assert answer.status == 200, answer.body
        return answer.body if answer.body["complete"] else None

    return dict(eventually(complete, what="the index's end"))


def payloads(answer: dict[str, Any]) -> list[Any]:
    return [result["message"]["payload"] for result in answer["results"]]


def send(bus: BusServer, payload: object, *, key: str | None = None, **fields: Any) -> dict[str, Any]:
    body = {"from": "searcher", "to": "searched", "payload": payload, **{k.rstrip("_"): v for k, v in fields.items()}}
    answer = bus.call("POST", "/api/send", body, headers={"X-API-Key": key} if key else {})
    assert answer.status == 200, answer.body
    return dict(answer.body)


def word() -> str:
    """A word that no other test has."""
    return f"w{uuid.uuid4().hex[:12]}"


def test_a_message_is_found_by_its_words(each_server: BusServer) -> None:
    one = word()
    sent = send(each_server, {"text": f"שלום, the {one} of 日本語", "n": 4711}, type="note.x")
    for q in (
        one.upper(),
        f'"the {one}"',
        f"{one} 4711",
        f"{one[:8]}*",
        f"{one} 日本",
        f"{one} searcher",
        f"note.x {one}",
    ):
        found = search(each_server, q=q)
        assert [result["message"]["id"] for result in found["results"]] == [sent["message_id"]], q
    assert found["indexed_to"].partition(":")[2] >= str(sent["seq"])
    assert (found["order"], found["more"]) == ("newest", False)
    shown = search(each_server, q=one)["results"][0]["snippet"]
    assert [shown["text"][at : at + n] for at, n in shown["matches"]] == [one]
    twin = each_server.call("GET", f"/api/v1/search?q={one}").body
    assert payloads(twin) == payloads(search(each_server, q=one))


def test_the_python_client_searches(server: BusServer) -> None:
    one, calls = word(), Calls("searcher", server.url)
    for number in range(3):
        send(server, f"{one} number {number}", type="counted")
    search(server, q=one)
    found = calls.search(one, sender="searcher", type="counted", limit=2)
    assert [hit.message.payload for hit in found.hits] == [f"{one} number 2", f"{one} number 1"]
    assert [hit.text[at : at + n] for hit in found.hits for at, n in hit.matches] == [one, one]
    assert (found.more, found.complete) == (True, True)
    assert len(calls.search(one, order="rank").hits) == 3
    with pytest.raises(Malformed):
        calls.search("*")


def test_sender_type_address_and_time_narrow(each_server: BusServer) -> None:
    one = word()
    first = send(each_server, [one, "a"], from_="a.b", type="x")
    second = send(each_server, [one, "b"], from_="ab", type="X", to=["searched", "other"])
    send(each_server, [one, "c"], from_="a-b", type="x", to="topic:t.1")
    send(each_server, [one, "d"], to="all")
    send(each_server, [one, "e"], to="queue:searches")

    def letters(**query: object) -> str:
        return "".join(payload[1] for payload in payloads(search(each_server, q=one, **query)))

    assert letters() == "edcba"
    assert letters(from_="a.b") == "a"
    assert letters(type="x") == "ca"
    assert letters(to="searched") == "ba"
    assert letters(to="other") == "b"
    assert (letters(to="topic:t.1"), letters(to="topic:t"), letters(to="all"), letters(to="queue:searches")) == (
        "c",
        "",
        "d",
        "e",
    )
    epoch = search(each_server, q=one)["indexed_to"].partition(":")[0]
    assert letters(since=f"{epoch}:{second['seq']}") == "edc"
    assert letters(until=f"{epoch}:{second['seq']}") == "ba"
    assert letters(until=first["timestamp"]) == "a"
    assert letters(since=first["timestamp"]) == "edcb"
    without = each_server.call("GET", f"/api/search?q=&from=a.b&type=&since={epoch}:{first['seq'] - 1}").body
    assert payloads(without) == [[one, "a"]]


def test_pages_follow_one_another_in_both_orders(each_server: BusServer) -> None:
    one = word()
    for number in range(25):
        send(each_server, f"{one} " * (number % 5 + 1) + "filler " * 20 + str(number))
    for order in ("newest", "rank"):
        seen: list[int] = []
        cursor, more = "", True
        while more:
            page = search(each_server, q=one, limit=7, order=order, cursor=cursor)
            seen += [result["message"]["seq"] for result in page["results"]]
            cursor, more = page["cursor"], page["more"]
        assert len(seen) == len(set(seen)) == 25
        newest = sorted(seen, reverse=True)
        assert (seen == newest) == (order == "newest")
    best = payloads(search(each_server, q=one, limit=5, order="rank"))
    assert {text.count(one) for text in best} == {5}


def test_what_has_left_the_log_is_not_found(fresh_server: Callable[..., BusServer]) -> None:
    bus = fresh_server(env={"TTL_SWEEP_INTERVAL": "1"})
    one = word()
    send(bus, f"{one} stays")
    send(bus, f"{one} goes", ttl=1.5)
    send(bus, f"{one} never", ephemeral=True)
    assert len(payloads(search(bus, q=one))) == 2
    eventually(lambda: payloads(search(bus, q=one)) == [f"{one} stays"], what="the end of the ttl")
    assert bus.call("POST", "/api/clear", {}).status == 200
    assert payloads(search(bus, q=one)) == []
    again = send(bus, f"{one} again")
    assert [result["message"]["seq"] for result in search(bus, q=one)["results"]] == [again["seq"]]


def test_the_index_begins_with_what_was_there_and_can_be_left_out(fresh_server: Callable[..., BusServer]) -> None:
    bus = fresh_server(env={"DISABLED_EXTENSIONS": "search"})
    one = word()
    for number in range(300):
        send(bus, f"{one} {number}")
    assert bus.call("GET", f"/api/search?q={one}").status == 404
    bus.terminate()
    bus.env = {}
    bus.start()
    assert payloads(search(bus, q=f"{one} 7")) == [f"{one} 7"]
    assert len(search(bus, q=one, limit=1000)["results"]) == 300


@pytest.mark.parametrize("workers", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_a_kill_while_indexing_leaves_nothing_out_and_nothing_twice(
    fresh_server: Callable[..., BusServer], workers: int
) -> None:
    bus = fresh_server(workers=workers)
    one, sent = word(), 0
    for kill in range(2):
        for _ in range(4):
            messages = [{"from": "a", "to": "b", "payload": f"{one} {kill} {n} " + "words " * 50} for n in range(1000)]
            assert bus.call("POST", "/api/send/batch", {"messages": messages}).status == 200
        sent += 4000

        def has_begun(before: int = kill * 4000) -> bool:
            indexed_to = bus.call("GET", f"/api/search?q={one}&limit=0").body["indexed_to"]
            return int(indexed_to.partition(":")[2]) > before

        eventually(has_begun, within_seconds=30, every_seconds=0.001, what="the indexer's beginning")
        bus.kill()
        bus.start()
    seqs: list[int] = []
    cursor, more = "", True
    while more:
        page = search(bus, q=one, limit=1000, cursor=cursor)
        seqs += [result["message"]["seq"] for result in page["results"]]
        cursor, more = page["cursor"], page["more"]
    assert len(seqs) == len(set(seqs)) == sent


def test_a_caller_finds_what_it_may_read(locked_server: BusServer) -> None:
    one = word()

    def key(**granted: Any) -> str:
        answer = locked_server.call("POST", "/api/keys", granted, headers={"X-API-Key": KEY})
        assert answer.status == 200, answer.body
        return str(answer.body["key"])

    everything = {
        "alice": "r",
        "bob": "s",
        "all": "t",
        "topic:a.b": "u",
        "topic:b.b": "v",
        "queue:q1": "w",
        "queue:z": "x",
    }
    for to, letter in everything.items():
        send(locked_server, [one, letter], key=KEY, from_="root", to=to)
    send(locked_server, [one, "y"], key=KEY, from_="alice", to="bob")
    send(locked_server, [one, "z"], key=KEY, from_="alic", to=["al", "alicea"])

    def letters(who: str) -> str:
        return "".join(sorted(payload[1] for payload in payloads(search(locked_server, key=who, q=one))))

    read = {"scopes": ["read"]}
    assert letters(KEY) == "rstuvwxyz"
    assert letters(key(scopes=["read-all"])) == "rstuvwxyz"
    assert letters(key(**read, clients=["alice"])) == "rtuvwxy"
    assert letters(key(**read, clients=["alice"], topics=["a.*"], queues=["q*"])) == "rtuwy"
    assert letters(key(**read, clients=["alice"], topics=["b.b"], queues=["z"])) == "rtvxy"
    assert letters(key(**read, clients=["al*"], topics=[], queues=[])) == "rtyz"
    assert letters(key(**read, clients=["*"], topics=[], queues=[])) == "rstuvwxyz"
    assert letters(key(scopes=["send"], clients=["alice"])) == ""


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("", "q"),
        ("q=", "q"),
        ("q=%22%2A%22", "q"),
        ("q=a*", "q"),
        ("q=ok&order=best", "order"),
        ("q=ok&cursor=5", "cursor"),
        ("q=ok&cursor=99999999999999999999.1", "cursor"),
        ("q=ok&limit=1001", "limit"),
        ("q=ok&from=no+name", "from"),
        ("q=ok&to=$x", "to"),
        ("q=ok&since=yesterday", "since"),
        ("q=ok&until=0:1", "until"),
    ],
)
def test_what_can_not_be_asked_is_refused(server: BusServer, query: str, field: str) -> None:
    answer = server.call("GET", f"/api/search?{query}")
    assert (answer.status, answer.body["field"]) == (400, field)


@pytest.mark.parametrize(
    "text", ["') OR 1=1 --", '"; DROP TABLE search_index; --', "NEAR/2(a b)", "{text}: a", "a\0b", "%00%ff", "(" * 900]
)
def test_garbage_is_words_or_none(server: BusServer, text: str) -> None:
    assert server.call("GET", f"/api/search?q={quote(text)}").status in (200, 400)
    assert server.call("GET", "/api/search?q=%ff%fe").status in (200, 400)


@pytest.mark.full
def test_a_log_that_moved_to_postgresql_is_found_there(
    fresh_server: Callable[..., BusServer], postgresql: PostgresServer, store: str
) -> None:
    if store != "sqlite":
        pytest.skip("It moves from SQLite.")
    bus = fresh_server()
    one, url = word(), postgresql.make()
    send(bus, f"{one} was here, שלום")
    assert len(search(bus, q=one)["results"]) == 1
    bus.terminate()
    moving = [sys.executable, "-m", "bus", "copy", f"sqlite:///{bus.data_dir / 'bus.db'}", url]
    copied = subprocess.run(moving, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert copied.returncode == 0, copied.stderr
    bus.env = {"DATABASE_URL": url}
    bus.start()
    assert payloads(search(bus, q=f"{one} שלום")) == [f"{one} was here, שלום"]
