"""The v1.1 client, unchanged: an app of `websocket-client` that knows four frames, and nothing of seqs or cursors."""

from __future__ import annotations

import json
import queue
import threading
from typing import Any

import pytest
import websocket

from bus.testing import BusServer, eventually


class V11Client:
    """What a v1.1 program does: `run_forever` in a thread, frames to a queue, `send`, `ack`, `ping`."""

    def __init__(self, server: BusServer, client_id: str) -> None:
        self.name = client_id
        self.confirmed: queue.Queue[dict[str, Any]] = queue.Queue()
        self.messages: queue.Queue[dict[str, Any]] = queue.Queue()
        self.others: queue.Queue[dict[str, Any]] = queue.Queue()
        self.app = websocket.WebSocketApp(f"{server.ws_url}/ws/{client_id}", on_message=self._on_message)
        self._thread = threading.Thread(target=self.app.run_forever, kwargs={"reconnect": 0.1}, daemon=True)
        self._thread.start()
        self.confirmed.get(timeout=10)

    def _on_message(self, app: websocket.WebSocketApp, text: str) -> None:
        frame = json.loads(text)
        if frame["type"] == "connection_confirmed":
            assert {"client_id", "timestamp", "server"} <= set(frame)
            self.confirmed.put(frame)
        elif frame["type"] == "message":
            message = frame["message"]
            assert {"id", "from", "to", "type", "payload", "timestamp", "requires_ack"} <= set(message)
            self.messages.put(message)
        else:
            self.others.put(frame)

    def send(self, to: str, payload: Any, msg_type: str = "message") -> None:
        self.app.send(
            json.dumps({"type": "send", "to": to, "msg_type": msg_type, "payload": payload, "require_ack": False})
        )

    def raw(self, frame: dict[str, Any]) -> None:
        self.app.send(json.dumps(frame))

    def close(self) -> None:
        self.app.close()
        self._thread.join(5)


@pytest.fixture
def pair(server: BusServer, request: pytest.FixtureRequest):
    """Two clients with names of this test alone."""
    name = request.node.name[-40:]
    code, browser = V11Client(server, f"code-{name}"), V11Client(server, f"browser-{name}")
    yield code, browser
    code.close()
    browser.close()


def test_it_sends_and_receives(pair) -> None:
    code, browser = pair
    code.send(browser.name, {"action": "run_prompt", "text": "שלום"}, "command")
    message = browser.messages.get(timeout=5)
    assert (message["from"], message["to"], message["type"]) == (code.name, browser.name, "command")
    assert message["payload"] == {"action": "run_prompt", "text": "שלום"}
    assert message["requires_ack"] is False


def test_a_broadcast_reaches_everybody_but_the_sender(pair) -> None:
    code, browser = pair
    code.send("all", {"n": 1})
    assert browser.messages.get(timeout=5)["to"] == "all"
    browser.send(code.name, "after")
    assert code.messages.get(timeout=5)["payload"] == "after"


def test_its_ping_subscribe_and_mistakes_are_answered(pair) -> None:
    code, _ = pair
    code.raw({"type": "ping"})
    assert code.others.get(timeout=5)["type"] == "pong"
    code.raw({"type": "subscribe"})
    assert code.others.get(timeout=5)["type"] == "subscribed"
    code.raw({"type": "send", "payload": {}})
    assert code.others.get(timeout=5)["type"] == "error"


def test_it_reconnects_after_a_crash_and_misses_nothing(fresh_server) -> None:
    server = fresh_server()
    browser = V11Client(server, "browser")
    server.call("POST", "/api/send", {"from": "code", "to": "browser", "payload": 1})
    assert browser.messages.get(timeout=5)["payload"] == 1
    server.kill()
    server.start()
    server.call("POST", "/api/send", {"from": "code", "to": "browser", "payload": 2})
    seen: list[Any] = []
    while 2 not in seen:
        seen.append(browser.messages.get(timeout=15)["payload"])
    assert [n for n in seen if n != 1] == [2]
    browser.close()


def test_mail_that_came_while_it_was_away_waits_for_it(server: BusServer) -> None:
    away = V11Client(server, "away")
    away.close()
    eventually(lambda: not server.call("GET", "/api/clients/away").body["online"], what="the disconnect")
    for n in range(3):
        answer = server.call("POST", "/api/send", {"from": "code", "to": "away", "payload": n})
        assert answer.body["recipients"] == [{"client": "away", "state": "queued"}]
    again = V11Client(server, "away")
    assert [again.messages.get(timeout=5)["payload"] for _ in range(3)] == [0, 1, 2]
    again.close()
