"""Pages as people write them, by EventSource and WebSocket alone, on the bus's own origin and on another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from bus.testing import BusServer, eventually
from tests.browser.pages import PageServer
from tests.calls import call, inbox, send

pytestmark = pytest.mark.full

HEAD = """<!doctype html><title>a page</title><ul id="log"></ul><script>
const log = (...words) => {
    const line = document.createElement("li");
    line.textContent = words.map((word) => typeof word === "string" ? word : JSON.stringify(word)).join(" ");
    document.querySelector("#log").append(line);
};
const showNotification = (what) => log("shown:", what instanceof Event ? what.data : what);
"""

STREAM = """
const eventSource = new EventSource('BUS/stream/events?client_id=browser-1');

// Listen for specific event types
eventSource.addEventListener('message_received', (e) => {
    const data = JSON.parse(e.data);
    log('Message:', data.text ?? data.payload);
});

eventSource.addEventListener('notification', (e) => {
    const data = JSON.parse(e.data);
    showNotification(data.message);
});

// Reconnection happens automatically
eventSource.onerror = (e) => {
    log('Connection lost, reconnecting...');
};
"""

FILTERED = """
const eventSource = new EventSource(
    'BUS/stream/events?subscribe=message_received,notification'
);
eventSource.addEventListener('notification', showNotification);
eventSource.addEventListener('message_received', (e) => log('Message:', JSON.parse(e.data).payload));
for (const name of ['noise', 'connected']) eventSource.addEventListener(name, (e) => log(name));
"""

STRANGER = """
const eventSource = new EventSource('BUS/stream/events');
eventSource.addEventListener('notification', showNotification);
eventSource.addEventListener('connected', () => log('connected'));
"""

SOCKET = """
const ws = new WebSocket('BUS/ws/browser-1'.replace('http', 'ws').replace(/^\\/ws/, `ws://${location.host}/ws`));
ws.onmessage = (event) => {
    const data = JSON.parse(event.data);
    if (data.type === 'connection_confirmed') {
        log('Connected as', data.client_id);
        ws.send(JSON.stringify({type: 'send', to: 'code', msg_type: 'status', payload: {ready: true}}));
        ws.send(JSON.stringify({type: 'ping'}));
    } else if (data.type === 'message') {
        log('Message:', data.message.payload);
        if (data.message.requires_ack) ws.send(JSON.stringify({type: 'ack', message_id: data.message.id}));
    } else {
        log(data.type);
    }
};
ws.onclose = () => log('Closed');
"""


@contextmanager
def shown(context: Any, start: Any, script: str, where: str) -> Iterator[tuple[BusServer, Any]]:
    """The bus, and a page with a script: served under the bus's own origin, or by another server that the bus allows."""
    with PageServer() as elsewhere:
        server: BusServer = start(env={"ALLOWED_ORIGINS": elsewhere.url})
        page = context.new_page()
        elsewhere.page = text = HEAD + script.replace("BUS", server.url if where == "elsewhere" else "") + "</script>"
        page.goto(elsewhere.url if where == "elsewhere" else f"{server.url}/health")
        if where == "here":
            page.set_content(text)
        yield server, page
        page.close()


def lines(page: Any, count: int) -> list[str]:
    """What the page shows, once it is so many lines."""
    found = page.locator("#log li")
    eventually(lambda: found.count() >= count, within_seconds=40, what=f"{count} lines; {found.all_text_contents()}")
    return list(found.all_text_contents())


@pytest.fixture(params=["here", "elsewhere"])
def where(request: pytest.FixtureRequest) -> str:
    """On which origin a page is."""
    return str(request.param)


def test_a_page_with_an_event_source_goes_on_after_a_restart(context: Any, fresh_server: Any, where: str) -> None:
    with shown(context, fresh_server, STREAM, where) as (server, page):
        eventually(lambda: call(server, "GET", "/stream/stats")["active_streams"] == 1, within_seconds=30)
        told = {"from": "code", "text": "Hello world"}
        call(server, "POST", "/stream/send", {"client_id": "browser-1", "event": "message_received", "data": told})
        call(
            server, "POST", "/stream/broadcast", {"event": "notification", "data": {"type": "info", "message": "soon"}}
        )
        send(server, "browser-1", {"a": "message of the bus"})
        first = ["Message: Hello world", "shown: soon", 'Message: {"a":"message of the bus"}']
        assert lines(page, 3) == first
        server.kill()
        assert lines(page, 4)[-1] == "Connection lost, reconnecting..."
        server.start()
        send(server, "browser-1", {"text": "שלום"})
        eventually(lambda: 'Message: {"text":"שלום"}' in lines(page, 4), within_seconds=40, what="the page is back")
        heard = [line for line in lines(page, 5) if not line.startswith("Connection lost")]
        assert heard == [*first, 'Message: {"text":"שלום"}']


def test_a_page_with_a_filter_hears_what_it_asked_for(context: Any, fresh_server: Any, where: str) -> None:
    with shown(context, fresh_server, FILTERED, where) as (server, page):
        assert lines(page, 1) == ["connected"]
        for event in ("noise", "notification"):
            call(server, "POST", "/stream/broadcast", {"event": event, "data": {"n": event}})
        send(server, "all", 7)
        assert lines(page, 3) == ["connected", 'shown: {"n":"notification"}', "Message: 7"]


def test_a_page_that_is_nobody_hears_broadcasts(context: Any, fresh_server: Any, where: str) -> None:
    with shown(context, fresh_server, STRANGER, where) as (server, page):
        lines(page, 1)
        call(server, "POST", "/stream/broadcast", {"event": "notification", "data": "a text"})
        assert lines(page, 2) == ["connected", "shown: a text"]


def test_a_page_with_a_websocket_talks(context: Any, fresh_server: Any, where: str) -> None:
    with shown(context, fresh_server, SOCKET, where) as (server, page):
        assert lines(page, 2) == ["Connected as browser-1", "pong"]
        receipt = send(server, "browser-1", {"n": 1}, require_ack=True)
        assert lines(page, 3)[-1] == 'Message: {"n":1}'
        path = f"/api/messages/{receipt['message_id']}"
        eventually(lambda: call(server, "GET", path)["recipients"][0]["state"] == "acked", what="the ack")
        (status,) = inbox(server, "code", since="earliest")["messages"]
        assert (status["from"], status["type"], status["payload"]) == ("browser-1", "status", {"ready": True})
        server.terminate()
        assert lines(page, 4)[-1] == "Closed"
