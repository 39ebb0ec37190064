"""Topics: who hears what, in which order, live, late and slowly, with one worker and with four."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

from bus.storage.log_reader import SCANNED_MESSAGES
from bus.testing import BusServer, eventually
from bus.topics import MAX_PATTERNS
from tests.follower import Follower
from tests.rawws import TEXT, RawWebSocket, frame_bytes
from tests.refusals import check, check_sentence
from tests.workers import only

Start = Callable[..., BusServer]


@pytest.fixture(params=["server", "server4"], ids=["1 worker", "4 workers"])
def bus(request: pytest.FixtureRequest) -> BusServer:
    """The module's server, with one worker and with four."""
    found: BusServer = request.getfixturevalue(request.param)
    return found


def send(server: BusServer, to: Any, payload: Any = None, **more: Any) -> dict[str, Any]:
    answer = server.call("POST", "/api/send", {"from": "crier", "to": to, "payload": payload, **more})
    assert answer.status == 200, answer.body
    body: dict[str, Any] = answer.body
    return body


def send_all(server: BusServer, addresses: Sequence[Any], size: int = 0) -> list[int]:
    """Send a message to each of these addresses, in batches. Their seqs."""
    seqs: list[int] = []
    for start in range(0, len(addresses), 500):
        messages = [{"from": "crier", "to": to, "payload": "x" * size} for to in addresses[start : start + 500]]
        answer = server.call("POST", "/api/send/batch", {"messages": messages})
        assert answer.status == 200, answer.body
        seqs += [result["seq"] for result in answer.body["results"]]
    return seqs


def online(server: BusServer, topic: str) -> int:
    """How many connections an ephemeral message to a topic finds, as one worker sees it."""
    (fate,) = send(server, f"topic:{topic}", ephemeral=True)["recipients"]
    assert (fate["client"], fate["state"], set(fate)) == (f"topic:{topic}", "sent", {"client", "state", "online"})
    return int(fate["online"])


def wait_for_online(server: BusServer, topic: str, count: int) -> None:
    """Wait until every worker counts so many subscribers."""

    def counts() -> set[int]:
        seen = set()
        for pid in server.worker_pids():
            with only(server, pid):
                seen.add(online(server, topic))
        return seen

    eventually(lambda: counts() == {count}, what=f"{count} subscribers of {topic}")


def subscribe(follower: Follower, *patterns: str, verb: str = "subscribe", **more: Any) -> dict[str, Any]:
    """Send a `subscribe` or `unsubscribe`, and return its answer."""
    ref = len(follower.others)
    follower.socket.send_json({"type": verb, "topics": list(patterns), "ref": ref, **more})
    return eventually(
        lambda: next((frame for frame in list(follower.others) if frame.get("ref") == ref), None),
        what="the answer",
    )


# ---- who hears what


def test_subscribers_hear_what_their_patterns_match_once_and_nothing_else(bus: BusServer) -> None:
    topics = ["ci", "ci.linux", "ci.linux.arm", "ci.mac", "cd.linux", "ci.linux.arm.64"]
    heard = {
        "ci": ["ci"],
        "ci.*": ["ci.linux", "ci.mac"],
        "ci.>": ["ci.linux", "ci.linux.arm", "ci.mac", "ci.linux.arm.64"],
        "*.linux": ["ci.linux", "cd.linux"],
        "*.linux.>": ["ci.linux.arm", "ci.linux.arm.64"],
        "ci.*,ci.>,ci.linux": ["ci.linux", "ci.linux.arm", "ci.mac", "ci.linux.arm.64"],
        "": [],
    }
    with ExitStack() as stack:
        followers = {
            patterns: stack.enter_context(Follower(bus.port, f"hearer-{number}", f"topics={patterns}"))
            for number, patterns in enumerate(heard)
        }
        for topic in topics:
            send(bus, f"topic:{topic}", topic)
        send(bus, [follower.client for follower in followers.values()], "last")
        for patterns, follower in followers.items():
            follower.wait_for(len(heard[patterns]) + 1)
            assert follower.payloads() == [*heard[patterns], "last"], patterns
            assert {message["to"] for message in follower.messages[:-1]} == {f"topic:{t}" for t in heard[patterns]}


def test_who_sends_to_a_topic_hears_it_too_when_subscribed(server: BusServer) -> None:
    with Follower(server.port, "crier", "topics=self.talk") as crier:
        seqs = send_all(server, ["topic:self.talk", "all", "crier", "all", "topic:self.talk"])
        seqs += send_all(server, ["topic:self.talk", "all"])
        seqs += send_all(server, ["all", "crier"])
        crier.wait_for(5)
        assert crier.seqs == [seqs[place] for place in (0, 2, 4, 5, 8)]


def test_topics_are_of_a_connection_and_not_of_its_client(server: BusServer) -> None:
    with (
        Follower(server.port, "split", "topics=split.a") as one,
        Follower(server.port, "split", "topics=split.b") as other,
        Follower(server.port, "split") as plain,
    ):
        send_all(server, ["split", "topic:split.a", "topic:split.b", "all", "topic:split.a", "split"])
        kinds = {
            id(follower): [message["to"] for message in follower.wait_for(count)]
            for follower, count in ((one, 5), (other, 4), (plain, 3))
        }
        assert kinds[id(one)] == ["split", "topic:split.a", "all", "topic:split.a", "split"]
        assert kinds[id(other)] == ["split", "topic:split.b", "all", "split"]
        assert kinds[id(plain)] == ["split", "all", "split"]


def test_everything_that_a_connection_is_due_comes_in_one_order(bus: BusServer) -> None:
    count = 300
    topics = ["topic:mix.a", "topic:mix.b", "topic:mix.c.d"]
    patterns = ["mix.*", "mix.>", "mix.a", "mix.c.d,mix.b", ""]
    due: dict[str, list[int]] = {f"mixed-{number}": [] for number in range(len(patterns))}
    matching = {"mixed-0": topics[:2], "mixed-1": topics, "mixed-2": topics[:1], "mixed-3": topics[1:], "mixed-4": []}

    def produce(sender: int) -> list[tuple[int, Any]]:
        chance = random.Random(sender)
        with RawWebSocket(bus.port, f"/ws/mixer-{sender}") as socket:
            to = [chance.choice([*topics, *due, list(due)[:3], "all"]) for _ in range(count)]
            for number, address in enumerate(to):
                socket.send_json({"type": "send", "to": address, "payload": number, "ref": number})
            return [(socket.read_until("sent")["seq"], address) for address in to]

    with ExitStack() as stack:
        followers = [
            stack.enter_context(Follower(bus.port, name, f"topics={mine}"))
            for name, mine in zip(due, patterns, strict=True)
        ]
        with ThreadPoolExecutor() as pool:
            sent = sorted((pair for pairs in pool.map(produce, range(4)) for pair in pairs), key=lambda pair: pair[0])
        for seq, address in sent:
            for name, mine in due.items():
                if address in ("all", name) or name in address or address in matching[name]:
                    mine.append(seq)
        for follower in followers:
            follower.wait_for(len(due[follower.client]))
            assert follower.seqs == due[follower.client]


# ---- frames


def test_a_subscription_takes_effect_with_its_answer_and_ends_with_its_answer(bus: BusServer) -> None:
    with Follower(bus.port, "frames") as follower:
        send(bus, "topic:fr.a", "too early")
        send(bus, "frames", 0)
        follower.wait_for(1)  # its worker's tail has come as far
        answer = subscribe(follower, "fr.b", "fr.*", "fr.b")
        assert answer == {"type": "subscribed", "topics": ["fr.*", "fr.b"], "queues": [], "ref": answer["ref"]}
        send(bus, "topic:fr.a", 1)
        send(bus, "topic:fr.b", 2)
        follower.wait_for(3)
        assert subscribe(follower, "fr.*", "never.subscribed", verb="unsubscribe")["topics"] == ["fr.b"]
        send(bus, "topic:fr.a", "too late")
        send(bus, "topic:fr.b", 3)
        follower.wait_for(4)
        assert subscribe(follower, "fr.b", verb="unsubscribe")["topics"] == []
        send(bus, "topic:fr.b", "too late")
        send(bus, "frames", 4)
        follower.wait_for(5)
        assert follower.payloads() == [0, 1, 2, 3, 4]


def test_an_empty_subscribe_is_answered_as_ever(server: BusServer) -> None:
    with RawWebSocket(server.port, "/ws/v11") as old:
        old.read_json()
        old.send_json({"type": "subscribe"})
        assert old.read_json() == {"type": "subscribed", "topics": [], "queues": []}


def test_a_bad_pattern_is_refused_and_none_of_its_frame_is_subscribed_to(server: BusServer) -> None:
    with Follower(server.port, "wrong", "topics=fine") as follower:
        for patterns, code in (
            (["good", "b*d"], "bad_pattern"),
            (["good", ">.x"], "bad_pattern"),
            (["good", ""], "bad_pattern"),
            ([f"t.{number}" for number in range(MAX_PATTERNS)], "too_many_topics"),
        ):
            for verb in ("subscribe", "unsubscribe")[: 2 if code == "bad_pattern" else 1]:
                error = subscribe(follower, *patterns, verb=verb)
                assert (error["type"], error["code"], error["field"]) == ("error", code, "topics")
                check_sentence(error["error"])
        assert subscribe(follower)["topics"] == ["fine"]
        assert len(subscribe(follower, *[f"t.{n}" for n in range(MAX_PATTERNS - 1)])["topics"]) == MAX_PATTERNS


@pytest.mark.parametrize("patterns", ["a*", "a.>.b", "a,,b", "a%20b", "%24x", "p" * 129, ","])
def test_a_bad_pattern_gets_no_socket_and_no_page(server: BusServer, patterns: str) -> None:
    with RawWebSocket(server.port, f"/ws/wrong?topics={patterns}") as socket:
        assert (socket.status, json.loads(socket.body)["code"]) == (400, "bad_pattern")
    check(server.call("GET", f"/api/messages?to=wrong&topics={patterns}"), 400, "bad_pattern", "topics")


# ---- coming back, and being slow


@pytest.mark.parametrize("missed", [3, 700, SCANNED_MESSAGES + 700], ids=["few", "a page", "more than is looked at"])
def test_who_returns_with_its_topics_and_cursor_gets_exactly_what_it_missed(bus: BusServer, missed: int) -> None:
    name = f"returner-{missed}"
    with Follower(bus.port, name, f"topics={name}.*") as before:
        cursor = before.hello["cursor"]
        first = send_all(bus, [f"topic:{name}.a", name])
        before.wait_for(2)
        assert before.seqs == first
    epoch = cursor.split(":")[0]
    addresses = [f"topic:{name}.b", f"topic:{name}.b.deeper", f"topic:other.{name}"] * missed + [name, "all"]
    seqs = send_all(bus, addresses)
    mine = [seq for seq, to in zip(seqs, addresses, strict=True) if to in (f"topic:{name}.b", name, "all")]
    with Follower(bus.port, name, f"since={epoch}:{first[-1]}&topics={name}.*") as back:
        back.wait_for(missed + 2)
        assert back.seqs == mine
    with Follower(bus.port, name, f"since={epoch}:{first[-1]}") as without:
        without.wait_for(2)
        assert without.seqs == mine[-2:]
    with Follower(bus.port, name, f"since={epoch}:{first[-1]}&topics={name}.none") as other:
        other.wait_for(2)
        assert other.seqs == mine[-2:]


def test_who_returns_while_messages_flow_gets_each_once(bus: BusServer) -> None:
    enough = threading.Event()
    seqs: list[int] = []

    def produce() -> None:
        while not enough.is_set():
            addresses = [f"topic:flow.{number % 7}" for number in range(20)] + ["topic:flow", "topic:flow.1.x"]
            seqs.extend(send_all(bus, addresses)[:20])

    thread = threading.Thread(target=produce)
    thread.start()
    try:
        got: list[int] = []
        cursor = "latest"
        for _ in range(25):
            with Follower(bus.port, "diver", f"topics=flow.*&since={cursor}") as diver:
                diver.wait_for(50)
            got += diver.seqs
            cursor = f"{diver.hello['epoch']}:{got[-1]}"
    finally:
        enough.set()
        thread.join()
    assert got == [seq for seq in seqs if got[0] <= seq <= got[-1]]


@pytest.mark.parametrize("by_frame", [False, True])
def test_a_slow_reader_gets_all_that_its_topics_bring(server: BusServer, by_frame: bool) -> None:
    name = f"slow-{by_frame}"
    path = f"/ws/{name}" + ("" if by_frame else f"?topics={name}.>")
    with RawWebSocket(server.port, path, receive_buffer_bytes=4096) as reader:
        reader.read_json()
        if by_frame:
            reader.send_json({"type": "subscribe", "topics": [f"{name}.>"]})
            reader.read_until("subscribed")
        addresses = [f"topic:{name}.{number % 50}.x" for number in range(2500)]
        addresses[::10] = [name] * 250
        addresses[1::10] = ["topic:elsewhere"] * 250
        seqs = send_all(server, addresses, size=2000)
        online(server, f"{name}.lost")  # an ephemeral one: it is lost, and counted
        wanted = [seq for seq, to in zip(seqs, addresses, strict=True) if to != "topic:elsewhere"]
        got, dropped = [], 0
        while len(got) < len(wanted) or not dropped:
            frame = reader.read_json()
            if frame["type"] == "message":
                got.append(frame["message"]["seq"])
            dropped += frame["n"] if frame["type"] == "dropped" else 0
        assert (got, dropped) == (wanted, 1)
        last = send(server, f"topic:{name}.1.x")["seq"]
        assert reader.read_until("message")["message"]["seq"] == last


def test_ephemeral_messages_reach_who_is_subscribed_now(bus: BusServer) -> None:
    cursor = bus.call("GET", "/api/status").body["cursor"]
    with ExitStack() as stack:
        followers = []
        for pid in bus.worker_pids():
            with only(bus, pid):
                followers.append(stack.enter_context(Follower(bus.port, f"blinker-{pid}", "topics=blink.*,wink.*")))
        wait_for_online(bus, "blink.a", len(followers))
        receipt = send(bus, "topic:wink.a", "now", ephemeral=True)
        assert (receipt["seq"], receipt["recipients"][0]["online"]) == (None, len(followers))
        for follower in followers:
            eventually(lambda follower=follower: "now" in follower.payloads(), what="the message")
            assert set(follower.seqs) == {None}
    assert bus.call("GET", f"/api/messages?to=blinker&topics=>&since={cursor}").body["messages"] == []


def test_ephemeral_messages_that_a_slow_reader_loses_are_each_counted_once(server: BusServer) -> None:
    count = 400
    with (
        RawWebSocket(server.port, "/ws/loser?topics=lose.*", receive_buffer_bytes=4096) as loser,
        RawWebSocket(server.port, "/ws/flasher") as flasher,
    ):
        loser.read_json()
        frames = [
            {"type": "send", "to": to, "payload": "x" * 10_000, "ephemeral": True, "ref": 1}
            for to in ("loser", "topic:lose.a")
        ]
        both = b"".join(frame_bytes(TEXT, json.dumps(frame).encode()) for frame in frames)
        for _ in range(count):
            flasher.send_bytes(both)
        for _ in range(2 * count):
            flasher.read_until("sent")
        last = send(server, "loser")["seq"]
        got, dropped = 0, 0
        while True:
            frame = loser.read_json()
            if frame["type"] == "dropped":
                dropped += frame["n"]
            elif frame["type"] == "message" and frame["message"]["seq"] is None:
                got += 1
            elif frame["type"] == "message":
                assert frame["message"]["seq"] == last
            if dropped and got + dropped >= 2 * count:
                break
    assert got + dropped == 2 * count


# ---- over REST


def test_an_inbox_is_read_with_topics_by_cursor_and_by_pages(server: BusServer) -> None:
    start = server.call("GET", "/api/status").body["cursor"]
    addresses = ["topic:rest.a", "reader", "topic:rest.b.c", "topic:other", "all", "topic:rest.a"]
    seqs = send_all(server, addresses)

    def page(query: str) -> dict[str, Any]:
        body: dict[str, Any] = server.call("GET", f"/api/messages?to=reader&{query}").body
        return body

    def read(query: str) -> list[int]:
        return [message["seq"] for message in page(query)["messages"]]

    assert read(f"since={start}&topics=rest.*") == [seqs[0], seqs[1], seqs[4], seqs[5]]
    assert read(f"since={start}&topics=rest.>,other") == seqs
    assert read(f"since={start}") == [seqs[1], seqs[4]]
    assert read(f"since={start}&topics=rest.>&from=nobody") == []
    got: list[int] = []
    cursor, more = start, True
    while more:
        body = page(f"since={cursor}&topics=rest.>&limit=2")
        got += [message["seq"] for message in body["messages"]]
        cursor, more = body["cursor"], body["more"]
    assert got == [seqs[0], seqs[1], seqs[2], seqs[4], seqs[5]]


def test_a_page_looks_past_any_number_of_messages_to_other_topics(server: BusServer) -> None:
    start = server.call("GET", "/api/status").body["cursor"]
    send_all(server, ["topic:crowd"] * (2 * SCANNED_MESSAGES + 10))
    seq = send(server, "topic:needle.x")["seq"]
    for path in (f"/api/messages?to=finder&since={start}&topics=needle.*", f"/api/log?since={start}&topic=needle.*"):
        body = server.call("GET", path).body
        assert ([message["seq"] for message in body["messages"]], body["more"]) == ([seq], False)
    body = server.call("GET", f"/api/messages?to=finder&since={start}&topics=none.*").body
    assert (body["count"], body["more"], body["cursor"].split(":")[1]) == (0, False, str(seq))


def test_a_page_with_what_needs_an_ack_and_nothing_else_takes_the_cursor_on(server: BusServer) -> None:
    cursor = server.call("GET", "/api/status").body["cursor"]
    send(server, "owing", "to be acked", require_ack=True)
    send_all(server, ["topic:crowd"] * (2 * SCANNED_MESSAGES))
    seq = send(server, "topic:beyond.x")["seq"]
    got: list[int] = []
    for _ in range(5):
        body = server.call("GET", f"/api/messages?to=owing&since={cursor}&topics=beyond.*").body
        cursor = body["cursor"]
        got += [message["seq"] for message in body["messages"] if not message["requires_ack"]]
        if not body["more"]:
            break
    assert (got, body["more"]) == ([seq], False)


def test_a_long_poll_wakes_for_its_topics_on_any_worker(bus: BusServer) -> None:
    def poll() -> list[dict[str, Any]]:
        path = "/api/messages?to=poller&since=latest&topics=poll.*&wait=40"
        messages: list[dict[str, Any]] = bus.call("GET", path, timeout_seconds=60).body["messages"]
        return messages

    with ThreadPoolExecutor() as pool:
        answers = [pool.submit(poll) for _ in range(8)]

        def all_are_answered() -> bool:
            send(bus, "topic:poll.deeper.down", "not this")
            send(bus, "topic:poll.a", "wake up")  # once more, for those that began to wait after the last one
            return all(answer.done() for answer in answers)

        eventually(all_are_answered, what="all answers")
        assert {message["payload"] for answer in answers for message in answer.result()} == {"wake up"}


def test_the_log_is_narrowed_to_a_pattern(server: BusServer) -> None:
    start = server.call("GET", "/api/status").body["cursor"]
    seqs = send_all(server, ["topic:log.a", "logger", "topic:log.b.c", "topic:log", "all", "topic:log.a"])

    def read(query: str) -> list[int]:
        body = server.call("GET", f"/api/log?since={start}&{query}").body
        return [message["seq"] for message in body["messages"]]

    assert read("topic=log.*") == [seqs[0], seqs[5]]
    assert read("topic=log.>") == [seqs[0], seqs[2], seqs[5]]
    assert read("topic=>") == [seqs[0], seqs[2], seqs[3], seqs[5]]
    assert read("topic=log.a&from=nobody") == []
    assert read(f"topic=log.a&until={start.split(':')[0]}:{seqs[4]}") == [seqs[0]]
    assert read("topic=>&limit=2") == [seqs[0], seqs[2]]
    check(server.call("GET", "/api/log?topic=log.a*"), 400, "bad_pattern", "topic")
    check(server.call("GET", "/api/log?topic=log&to=logger"), 400, "bad_field", "topic")


# ---- the fate of a send


def test_a_send_says_how_many_connections_of_all_workers_heard_of_it(bus: BusServer) -> None:
    with ExitStack() as stack:
        for pid in bus.worker_pids():
            with only(bus, pid):
                for number in range(2):
                    stack.enter_context(Follower(bus.port, f"counted-{pid}-{number}", "topics=count.*,count.a"))
        everybody = 2 * len(bus.worker_pids())
        wait_for_online(bus, "count.a", everybody)
        assert send(bus, "topic:count.a")["recipients"][0]["online"] == everybody
        last = stack.enter_context(Follower(bus.port, "counted-last"))
        subscribe(last, "count.>")
        wait_for_online(bus, "count.a", everybody + 1)
        subscribe(last, "count.>", verb="unsubscribe")
        wait_for_online(bus, "count.a", everybody)
        assert online(bus, "count.a.b") == 0
    wait_for_online(bus, "count.a", 0)


def test_a_repeat_with_a_key_is_answered_for_its_topic(server: BusServer) -> None:
    for duplicate in (None, True):
        receipt = send(server, "topic:once", 1, idempotency_key="once")
        assert receipt.get("duplicate") is duplicate
        assert (receipt["recipients"][0]["client"], receipt["recipients"][0]["state"]) == ("topic:once", "sent")


@pytest.mark.one_node("signals to one master")
def test_a_dead_workers_subscriptions_vanish_and_a_new_worker_learns_those_of_the_others(fresh_server: Start) -> None:
    server = fresh_server(workers=3)
    with ExitStack() as stack:
        for pid in server.worker_pids():
            with only(server, pid):
                stack.enter_context(Follower(server.port, f"mortal-{pid}", "topics=life.*"))
        wait_for_online(server, "life.a", 3)
        os.kill(server.pid, signal.SIGSTOP)  # the master starts no successor yet
        server.kill_worker(server.worker_pids()[0])
        wait_for_online(server, "life.a", 2)
        os.kill(server.pid, signal.SIGCONT)
        eventually(lambda: len(server.worker_pids()) == 3, what="a successor")
        eventually(lambda: server.call("GET", "/api/status").body["workers"] == 3, what="a successor that serves")
        wait_for_online(server, "life.a", 2)
