"""Inboxes: who gets what, from where on, and what is told when something is not there any more."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import pytest
from websockets.sync.client import connect

from bus.testing import BusServer, eventually
from tests.workers import wait_until_known


def send(server: BusServer, to: Any, payload: Any = None, sender: str = "sender", **more: Any):
    return server.call("POST", "/api/send", {"from": sender, "to": to, "payload": payload, **more})


def inbox(server: BusServer, name: str, query: str = "") -> dict[str, Any]:
    answer = server.call("GET", f"/api/messages?to={name}{query}")
    assert answer.status == 200, answer
    return answer.body


def payloads(page: dict[str, Any]) -> list[Any]:
    return [message["payload"] for message in page["messages"]]


class Socket:
    """A WebSocket of a client; frames by type."""

    def __init__(self, socket: Any) -> None:
        self.socket = socket
        self.hello = self.frame()

    def frame(self, timeout: float = 5) -> dict[str, Any]:
        return json.loads(self.socket.recv(timeout=timeout))

    def payloads(self, count: int) -> list[Any]:
        return [self.frame()["message"]["payload"] for _ in range(count)]

    def silent(self) -> bool:
        """Nothing waits: the answer to a ping comes next."""
        self.socket.send('{"type":"ping"}')
        return self.frame()["type"] == "pong"


@contextmanager
def ws(server: BusServer, name: str, query: str = ""):
    with connect(f"{server.ws_url}/ws/{name}{query}", max_size=None) as socket:
        yield Socket(socket)


# ---- addresses and fate


def test_a_list_reaches_each_named_once_with_one_seq(server: BusServer) -> None:
    answer = send(server, ["l1", "l2", "l1"], "x").body
    assert [r["client"] for r in answer["recipients"]] == ["l1", "l2"]
    one, two = inbox(server, "l1"), inbox(server, "l2")
    assert one["messages"] == two["messages"]
    assert one["messages"][0]["to"] == ["l1", "l2"]


def test_all_reaches_every_known_client_but_the_sender(server: BusServer) -> None:
    with ws(server, "here") as here, ws(server, "me") as me:
        send(server, "here", "opens", sender="offline-but-known")
        assert here.payloads(1) == ["opens"]
        answer = send(server, "*", "hello", sender="me").body
        assert answer["recipients"][0]["client"] == "all"
        assert answer["recipients"][0]["state"] == "sent"
        assert here.payloads(1) == ["hello"]
        assert me.silent()
    assert payloads(inbox(server, "offline-but-known"))[-1] == "hello"
    assert inbox(server, "never-heard-of")["count"] == 0


def test_fate_says_what_happens_for_each_name(server: BusServer) -> None:
    with ws(server, "f-online"):
        send(server, "someone", sender="f-known")
        states = {
            r["client"]: r["state"] for r in send(server, ["f-online", "f-known", "f-stranger"]).body["recipients"]
        }
    assert states == {"f-online": "delivered", "f-known": "queued", "f-stranger": "unknown"}


def test_the_first_message_opens_an_inbox_and_waits_in_it(server: BusServer) -> None:
    send(server, "fresh", 1)
    with ws(server, "fresh") as fresh:
        assert fresh.payloads(1) == [1]


def test_a_name_never_addressed_begins_at_the_end_of_the_log(server: BusServer) -> None:
    send(server, "all", "long ago")
    with ws(server, "newcomer") as newcomer:
        assert newcomer.silent()


def test_one_recipients_flood_never_evicts_anothers_mail(server: BusServer) -> None:
    send(server, "quiet", "precious")
    for _ in range(6):
        server.call("POST", "/api/send/batch", {"messages": [{"from": "x", "to": "flooded"}] * 100})
    assert payloads(inbox(server, "quiet")) == ["precious"]


def test_ids_are_unique_and_rise(server: BusServer) -> None:
    body = server.call("POST", "/api/send/batch", {"messages": [{"from": "x", "to": "ids"}] * 200}).body
    ids = [result["message_id"] for result in body["results"]]
    assert len(set(ids)) == 200
    assert ids == sorted(ids)


# ---- cursors


def test_a_cursor_never_returns_the_same_message_again(server: BusServer) -> None:
    for n in range(5):
        send(server, "paged", n)
    first = inbox(server, "paged", "&limit=2")
    assert (payloads(first), first["more"]) == ([0, 1], True)
    rest = inbox(server, "paged", f"&since={first['cursor']}")
    assert (payloads(rest), rest["more"]) == ([2, 3, 4], False)
    assert inbox(server, "paged", f"&since={rest['cursor']}")["count"] == 0


def test_since_takes_an_iso_time_also_with_an_unescaped_plus(server: BusServer) -> None:
    for n in range(3):
        send(server, "timed", n)
    stamps = [message["timestamp"] for message in inbox(server, "timed")["messages"]]
    for text in (quote(stamps[1]), stamps[1].replace("+", "%20")):
        assert payloads(inbox(server, "timed", f"&since={text}")) == [2]


def test_a_read_never_changes_what_a_later_read_returns(server: BusServer) -> None:
    send(server, "reread", 1)
    assert payloads(inbox(server, "reread")) == payloads(inbox(server, "reread")) == [1]


def test_limit_zero_returns_nothing_and_keeps_the_place(server: BusServer) -> None:
    send(server, "zero", 1)
    page = inbox(server, "zero", "&limit=0")
    assert page["count"] == 0
    assert payloads(inbox(server, "zero", f"&since={page['cursor']}")) == [1]


def test_the_kept_cursor_moves_by_pongs_so_that_nothing_comes_twice(server: BusServer) -> None:
    with ws(server, "kept") as kept:
        send(server, "kept", 1)
        assert kept.payloads(1) == [1]
        eventually(lambda: inbox(server, "kept")["count"] == 0, what="the kept cursor")
    send(server, "kept", 2)
    with ws(server, "kept") as kept:
        assert kept.payloads(1) == [2]


def test_a_socket_resumes_from_its_own_cursor(fresh_server) -> None:
    server = fresh_server()
    seqs = [send(server, "own", n).body["seq"] for n in range(3)]
    with ws(server, "own") as own:
        epoch = own.hello["epoch"]
    with ws(server, "own", f"?since={epoch}:{seqs[0]}") as own:
        assert own.hello["resumed"]["from"] == f"{epoch}:{seqs[0]}"
        assert own.payloads(2) == [1, 2]
    with ws(server, "own", "?since=earliest") as own:
        assert own.payloads(3) == [0, 1, 2]
    with ws(server, "own", "?since=latest") as own:
        assert own.silent()


def test_two_connections_of_one_client_both_get_everything_in_order(server: BusServer) -> None:
    with ws(server, "twin") as one, ws(server, "twin") as two:
        for n in range(50):
            send(server, "twin", n)
        assert one.payloads(50) == two.payloads(50) == list(range(50))


def test_a_long_backlog_joins_the_live_stream_without_a_seam(server: BusServer) -> None:
    def flood() -> None:
        for start in range(0, 6000, 500):
            batch = [{"from": "x", "to": "seam", "payload": n} for n in range(start, start + 500)]
            server.call("POST", "/api/send/batch", {"messages": batch})

    flooding = threading.Thread(target=flood)
    flooding.start()
    eventually(lambda: inbox(server, "seam", "&limit=1")["count"] == 1, what="the flood")
    with ws(server, "seam") as seam:
        assert seam.payloads(6000) == list(range(6000))
    flooding.join()


# ---- gaps


def test_a_cursor_of_another_log_is_told_so(fresh_server) -> None:
    server = fresh_server()
    send(server, "gapped", 1)
    page = inbox(server, "gapped", "&since=0123456789ab:5")
    assert page["gap"]["reason"] == "epoch_changed"
    assert page["gap"]["requested"] == "0123456789ab:5"
    assert payloads(page) == [1]
    with ws(server, "gapped", "?since=0123456789ab:5&on_gap=latest") as gapped:
        assert gapped.hello["resumed"]["gap"]["reason"] == "epoch_changed"
        assert gapped.silent()


def test_a_cursor_from_the_future_is_told_so(server: BusServer) -> None:
    epoch = server.call("GET", "/api/status").body["epoch"]
    assert inbox(server, "gapped", f"&since={epoch}:999999999")["gap"]["reason"] == "unknown"


def test_clear_tells_who_missed_something_and_seq_never_goes_back(fresh_server) -> None:
    server = fresh_server()
    last = [send(server, "cleared", n).body["seq"] for n in range(3)][-1]
    assert server.call("POST", "/api/clear").body["cleared"] == 3
    page = inbox(server, "cleared")
    assert (page["count"], page["gap"]["reason"], page["gap"]["lost"]) == (0, "evicted", 3)
    assert send(server, "cleared").body["seq"] == last + 1
    server.kill()
    server.start()
    assert send(server, "cleared").body["seq"] == last + 2


def test_a_capped_log_evicts_the_oldest_and_says_so(fresh_server) -> None:
    server = fresh_server(env={"MAX_LOG_BYTES": str(1024 * 1024), "INBOX_LIMIT": "100000"})
    first = send(server, "capped", 0).body
    for _ in range(20):
        server.call(
            "POST", "/api/send/batch", {"messages": [{"from": "x", "to": "capped", "payload": "x" * 1000}] * 100}
        )
    page = eventually(
        lambda: (found := inbox(server, "capped")).get("gap") and found, within_seconds=15, what="an eviction"
    )
    assert page["gap"]["reason"] == "evicted"
    assert page["messages"][0]["seq"] > first["seq"]
    assert server.call("GET", f"/api/messages/{first['message_id']}").status == 404


# ---- idempotency


def test_a_repeat_is_answered_with_the_first_result_and_stored_once(server: BusServer) -> None:
    first = send(server, "idem", 1, idempotency_key="k1")
    again = send(server, "idem", 1, idempotency_key="k1")
    assert again.body["duplicate"] is True
    assert [again.body[k] for k in ("message_id", "seq", "timestamp", "recipients")] == [
        first.body[k] for k in ("message_id", "seq", "timestamp", "recipients")
    ]
    assert inbox(server, "idem")["count"] == 1
    other = send(server, "idem", 2, idempotency_key="k1")
    assert (other.status, other.body["code"]) == (422, "idempotency_key_reused")
    assert send(server, "idem", 2, sender="another", idempotency_key="k1").status == 200


def test_the_same_key_at_once_is_one_message(server4: BusServer) -> None:
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(send(server4, "once", 1, idempotency_key="k")))
        for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({answer.body["message_id"] for answer in answers}) == 1
    assert sum("duplicate" not in answer.body for answer in answers) == 1
    assert inbox(server4, "once")["count"] == 1


def test_a_key_survives_a_kill(fresh_server) -> None:
    server = fresh_server()
    first = send(server, "idem", 1, idempotency_key="k")
    server.kill()
    server.start()
    assert send(server, "idem", 1, idempotency_key="k").body["message_id"] == first.body["message_id"]


# ---- caps


def test_a_full_inbox_refuses_and_others_go_on(fresh_server) -> None:
    server = fresh_server(env={"INBOX_LIMIT": "5"})
    results = server.call(
        "POST", "/api/send/batch", {"messages": [{"from": "x", "to": "full", "payload": n} for n in range(8)]}
    )
    assert [r.get("code", "sent") for r in results.body["results"]] == ["sent"] * 5 + ["inbox_full"] * 3
    refused = send(server, "full")
    assert (refused.status, refused.body["code"]) == (429, "inbox_full")
    assert "retry-after" in refused.headers
    states = {r["client"]: r["state"] for r in send(server, ["full", "roomy"]).body["recipients"]}
    assert states["full"] == "refused"
    assert inbox(server, "roomy")["count"] == 1
    assert payloads(inbox(server, "full")) == [0, 1, 2, 3, 4]
    eventually(lambda: send(server, "full", 5).status == 200, what="room after the fetch")


def test_an_online_reader_is_never_full(fresh_server) -> None:
    server = fresh_server(env={"INBOX_LIMIT": "5"})
    with ws(server, "reader") as reader:
        for n in range(50):
            assert send(server, "reader", n).status == 200
        assert reader.payloads(50) == list(range(50))


# ---- ephemeral


def test_an_ephemeral_message_reaches_who_is_there_and_nobody_later(server: BusServer) -> None:
    with ws(server, "eph") as eph:
        wait_until_known(server, ["eph"])
        answer = send(server, ["eph", "eph-away"], 1, ephemeral=True).body
        assert {r["client"]: r["state"] for r in answer["recipients"]} == {"eph": "delivered", "eph-away": "dropped"}
        assert answer["seq"] is None
        message = eph.frame()["message"]
        assert (message["payload"], message["seq"], message["id"]) == (1, None, answer["message_id"])
    assert "eph" not in [message["to"] for message in inbox(server, "eph", "&since=earliest")["messages"]]


# ---- long polls and payloads


def test_a_long_poll_wakes_for_a_message_and_not_for_others(server: BusServer) -> None:
    found: list[Any] = []
    poll = threading.Thread(target=lambda: found.append(inbox(server, "poller", "&wait=20")))
    poll.start()
    send(server, "not-the-poller", 0)
    send(server, "poller", "wake up")
    poll.join(10)
    assert payloads(found[0]) == ["wake up"]


def test_a_long_poll_ends_empty_in_time(server: BusServer) -> None:
    assert inbox(server, "nobody-writes", "&wait=0.2")["count"] == 0


@pytest.mark.parametrize(
    "payload",
    [
        None,
        True,
        0,
        -1.5e300,
        "",
        "שלום",
        "<script>alert(1)</script>'; DROP TABLE messages; --",
        [],
        {},
        {"a": [{"b": None}]},
    ],
)
def test_a_payload_comes_out_as_it_went_in(server: BusServer, payload: Any) -> None:
    seq = send(server, "exact", payload).body["seq"]
    epoch = server.call("GET", "/api/status").body["epoch"]
    assert payloads(inbox(server, "exact", f"&since={epoch}:{seq - 1}")) == [payload]
