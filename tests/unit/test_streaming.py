"""`SSEManager` alone: on any Flask app, in memory, from any thread. The documented snippets run as they are printed."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask, Response

from bus.errors import Malformed
from bus.settings import ROOT
from streaming import SSEManager, create_sse_blueprint

WAIT_SECONDS = 10


@pytest.fixture
def manager() -> SSEManager:
    return SSEManager()


@pytest.fixture
def app(manager: SSEManager) -> Flask:
    made = Flask("alone")
    made.register_blueprint(create_sse_blueprint(manager))
    return made


def fields(block: str) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in block.strip().split("\n") if line)


def names(stream: Iterator[str], count: int) -> list[str]:
    """The names of the next events."""
    found: list[str] = []
    while len(found) < count:
        found += [line[7:] for line in next(stream).split("\n") if line.startswith("event: ")]
    return found


def started(manager: SSEManager, client: str, *args: Any) -> Iterator[str]:
    stream = manager.stream_events(client, *args)
    assert "event: connected" in next(stream)
    return stream


def within_time(call: Any, *args: Any) -> None:
    """Run a call in a thread: a lock taken twice would never let it end."""
    thread = threading.Thread(target=call, args=args, daemon=True)
    thread.start()
    thread.join(WAIT_SECONDS)
    assert not thread.is_alive(), "It hangs."


# ---- what is documented


def test_the_documented_snippet_runs() -> None:
    from flask import Flask  # noqa: PLC0415  # as it is printed

    app = Flask(__name__)
    sse_mgr = SSEManager(max_queue_size=100, heartbeat_interval=30)
    app.register_blueprint(create_sse_blueprint(sse_mgr))
    sse_mgr.broadcast("notification", {"type": "info", "message": "System maintenance in 10 minutes"})
    sse_mgr.send_event("client-123", "message_received", {"from": "code", "text": "Hello world"})
    assert {str(rule) for rule in app.url_map.iter_rules() if "stream" in str(rule)} == {
        "/stream/events",
        "/stream/broadcast",
        "/stream/send",
        "/stream/stats",
        "/stream/clients",
    }


def test_the_snippet_of_the_manual_runs() -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "streaming.md").read_text(), re.DOTALL)
    ran: dict[str, Any] = {"__name__": __name__}
    exec(snippet, ran)
    assert ran["manager"].get_stats()["total_broadcasts"] == 1


def test_the_file_runs_its_example() -> None:
    done = subprocess.run(
        [sys.executable, "streaming.py"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert "event: notification" in done.stdout
    assert '"text":"Hello world"' in done.stdout
    assert "Traceback" not in done.stderr


def test_a_stream_is_the_body_of_an_answer(app: Flask, manager: SSEManager) -> None:
    @app.get("/mine")
    def mine() -> Response:
        return Response(manager.stream_events("client-9"), mimetype="text/event-stream")

    answer = app.test_client().get("/mine")
    parts = answer.iter_encoded()
    assert b"event: connected" in next(parts)
    manager.send_event("client-9", "x", {"שלום": 1})
    assert '{"שלום":1}'.encode() in next(parts)
    answer.close()


def test_alone_it_says_what_it_is() -> None:
    assert "memory" in sys.modules["streaming"].__doc__


# ---- events


def test_a_broadcast_with_a_client_returns(manager: SSEManager) -> None:
    stream = started(manager, "a")
    within_time(manager.broadcast, "news", {"n": 1})
    block = fields(next(stream))
    assert (block["event"], block["data"]) == ("news", '{"n":1}')


def test_the_list_of_clients_returns(app: Flask, manager: SSEManager) -> None:
    manager.register_client("a")
    body: dict[str, Any] = {}
    within_time(lambda: body.update(app.test_client().get("/stream/clients").get_json()))
    assert body["count"] == 1
    assert body["clients"][0]["client_id"] == "a"


def test_strings_go_as_they_are_and_line_ends_part_lines(manager: SSEManager) -> None:
    stream = started(manager, "a")
    manager.send_event("a", "text", "one\ntwo")
    assert next(stream).endswith("data: one\ndata: two\n\n")


def test_who_is_excluded_gets_nothing_also_not_later(manager: SSEManager) -> None:
    stream, other = started(manager, "a"), started(manager, "b")
    manager.broadcast("secret", 1, exclude=["a", "c"])
    manager.broadcast("open", 2)
    assert names(stream, 1) == ["open"]
    assert names(other, 2) == ["secret", "open"]
    late = manager._local.stream("c", None, "earliest")
    text = b"".join(itertools.islice(late, 2))
    assert b"event: open" in text
    assert b"event: secret" not in text


def test_filters_are_the_streams_and_a_new_one_takes_effect(manager: SSEManager) -> None:
    first = started(manager, "a", ["x"])
    manager.send_event("a", "y", 1)
    manager.send_event("a", "x", 2)
    assert names(first, 1) == ["x"]
    first.close()  # type: ignore[attr-defined]
    second = started(manager, "a", ["y"])
    manager.send_event("a", "x", 3)
    manager.send_event("a", "y", 4)
    assert names(second, 1) == ["y"]


def test_a_registration_has_filters_for_streams_that_bring_none(manager: SSEManager) -> None:
    info = manager.register_client("a", {"x"})
    assert info["subscriptions"] == ["x"]
    manager.send_event("a", "y", 1)
    manager.send_event("a", "x", 2)
    stream = started(manager, "a")
    assert names(stream, 1) == ["x"]


# ---- several streams of a client, and going on


def test_two_tabs_get_everything_and_one_may_leave(manager: SSEManager) -> None:
    one, two = started(manager, "tab"), started(manager, "tab")
    manager.send_event("tab", "both", 1)
    assert names(one, 1) == names(two, 1) == ["both"]
    one.close()  # type: ignore[attr-defined]
    manager.send_event("tab", "left", 2)
    assert names(two, 1) == ["left"]
    info = manager.get_client_info("tab")
    assert info is not None
    assert info["streams"] == 1


def test_the_id_seen_last_is_where_a_stream_goes_on(app: Flask, manager: SSEManager) -> None:
    stream = started(manager, "a")
    manager.send_event("a", "zero", 0)
    last = fields(next(stream))["id"]
    stream.close()  # type: ignore[attr-defined]
    for number in (1, 2, 3):
        manager.send_event("a", f"e{number}", number)
    answer = app.test_client().get("/stream/events?client_id=a", headers={"Last-Event-ID": last})
    parts = answer.iter_encoded()
    text = next(parts) + next(parts)
    assert [line for line in text.decode().split("\n") if line.startswith("event: e")] == [
        "event: e1",
        "event: e2",
        "event: e3",
    ]
    answer.close()


def test_ids_of_another_run_are_told_as_a_gap(manager: SSEManager) -> None:
    manager.register_client("a")
    manager.send_event("a", "kept", 1)
    earlier = SSEManager()
    earlier.register_client("a")
    earlier.send_event("a", "x", 1)
    last = earlier.get_client_info("a")["last_event_id"]  # type: ignore[index]
    stream = manager._local.stream("a", None, last)
    first = next(stream).decode()
    assert first.index("event: gap") < first.index("event: connected")
    assert "event: kept" in next(stream).decode()


def test_a_stranger_goes_on_with_what_was_broadcast(app: Flask, manager: SSEManager) -> None:
    manager.register_client("probe")
    manager.broadcast("seen", 0)
    last = manager.get_client_info("probe")["last_event_id"]  # type: ignore[index]
    manager.broadcast("missed", 1)
    answer = app.test_client().get("/stream/events", headers={"Last-Event-ID": last})
    parts = answer.iter_encoded()
    text = (next(parts) + next(parts)).decode()
    assert "event: missed" in text
    assert "event: seen" not in text
    answer.close()
    assert manager.get_stats()["active_clients"] == 1


def test_an_event_may_bring_its_own_id_and_it_smuggles_nothing_in(manager: SSEManager) -> None:
    stream = started(manager, "a")
    manager.send_event("a", "x", 1, "order-17")
    assert fields(next(stream))["id"] == "order-17"
    for bad in ("a\nevent: gap", "a\rb", ""):
        with pytest.raises(Malformed):
            manager.send_event("a", "x", 1, bad)
        with pytest.raises(Malformed):
            manager.send_event("a", bad, 1)
        with pytest.raises(Malformed):
            manager.broadcast(bad, 1)


def test_what_a_slow_stream_missed_is_counted_and_told() -> None:
    manager = SSEManager(max_queue_size=5)
    stream = started(manager, "slow")
    for number in range(12):
        manager.send_event("slow", "n", number)
    text = next(stream)
    assert json.loads(text.split("data: ")[1].split("\n")[0]) == {"reason": "evicted", "lost": 7}
    assert text.count("event: n\n") == 5
    assert manager.get_stats()["total_dropped"] == 7


def test_one_clients_flood_evicts_nothing_of_anothers() -> None:
    manager = SSEManager(max_queue_size=5)
    manager.register_client("calm")
    manager.register_client("flooded")
    manager.send_event("calm", "mine", 1)
    for number in range(100):
        manager.send_event("flooded", "n", number)
    assert names(started(manager, "calm"), 1) == ["mine"]


# ---- the ends


def test_unregistering_ends_the_streams(manager: SSEManager) -> None:
    stream = started(manager, "a")
    manager.unregister_client("a")
    assert list(stream) == []
    assert manager.get_client_info("a") is None
    manager.unregister_client("a")


def test_data_that_is_no_json_is_refused_and_hurts_no_stream(manager: SSEManager) -> None:
    stream = started(manager, "a")
    for call in (lambda: manager.broadcast("x", object()), lambda: manager.send_event("a", "x", {"o": object()})):
        with pytest.raises(TypeError):
            call()
    manager.send_event("a", "fine", 1)
    assert names(stream, 1) == ["fine"]
    assert manager.get_stats()["active_streams"] == 1


def test_a_stream_that_ends_in_any_way_leaves_nothing(app: Flask, manager: SSEManager) -> None:
    for end in ("close", "throw"):
        parts = manager._local.stream("gone", None, remembered=False)
        next(parts)
        if end == "close":
            parts.close()  # type: ignore[attr-defined]
        else:
            with pytest.raises(ConnectionResetError):
                parts.throw(ConnectionResetError())  # type: ignore[attr-defined]
        stats = manager.get_stats()
        assert (stats["active_clients"], stats["active_streams"]) == (0, 0)


def test_heartbeats_come_while_events_do_and_an_idle_stream_wakes_only_for_them() -> None:
    manager = SSEManager(heartbeat_interval=0.2)
    stream = started(manager, "a")
    blocks = []
    waits: list[float | None] = []
    (inside,) = manager._local._clients["a"].streams
    plain = inside.stirred.wait

    def wait(timeout: float | None = None) -> bool:
        waits.append(timeout)
        return plain(timeout)

    inside.stirred.wait = wait  # type: ignore[method-assign]
    assert next(stream) == ": heartbeat\n\n"
    assert len(waits) == 1
    while blocks.count(": heartbeat\n\n") < 3:
        manager.send_event("a", "busy", 1)
        blocks.append(next(stream))
    assert len(blocks) > 3


@pytest.mark.parametrize("bad", [{"max_queue_size": 0}, {"heartbeat_interval": 0}])
def test_settings_that_make_no_sense_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        SSEManager(**bad)


def test_many_threads_lose_and_double_nothing() -> None:
    manager = SSEManager(max_queue_size=10_000)
    streams = [started(manager, f"c{number % 4}") for number in range(8)]

    def send(number: int) -> None:
        for at in range(100):
            manager.broadcast("n", f"{number}-{at}")

    senders = [threading.Thread(target=send, args=(number,)) for number in range(4)]
    seen: list[list[str]] = [[] for _ in streams]

    def read(at: int) -> None:
        while len(seen[at]) < 400:
            seen[at] += [line[6:] for line in next(streams[at]).split("\n") if line.startswith("data: ")]

    readers = [threading.Thread(target=read, args=(at,), daemon=True) for at in range(len(streams))]
    for thread in senders + readers:
        thread.start()
    for thread in senders + readers:
        thread.join(30)
    assert all(found == seen[0] for found in seen)
    assert len(set(seen[0])) == 400


# ---- the endpoints


def test_the_endpoints_work_alone(app: Flask, manager: SSEManager) -> None:
    web = app.test_client()
    assert web.post("/stream/send", json={"client_id": "nobody", "event": "e", "data": 1}).status_code == 404
    manager.register_client("somebody")
    assert web.post("/stream/send", json={"client_id": "somebody", "event": "e", "data": 1}).status_code == 200
    assert web.post("/stream/broadcast", json={"event": "e", "data": 1}).get_json() == {"status": "sent", "clients": 1}
    stats = web.get("/stream/stats").get_json()
    assert (stats["total_events_sent"], stats["total_queued"], stats["active_clients"]) == (2, 2, 1)
    answer = web.get("/stream/events?subscribe=e")
    assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["X-Accel-Buffering"] == "no"
    answer.close()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/stream/send", {"event": "e", "data": 1}),
        ("/stream/send", []),
        ("/stream/broadcast", "text"),
        ("/stream/broadcast", {"event": "a\nb"}),
        ("/stream/broadcast", {"event": "e", "exclude": [1]}),
    ],
)
def test_bad_bodies_are_refused_in_json(app: Flask, path: str, body: Any) -> None:
    answer = app.test_client().post(path, json=body)
    assert answer.status_code == 400
    assert answer.get_json()["code"]
