"""The JavaScript client in a real browser: over restarts, without WebSockets, signed in, frozen, on another origin."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bus.testing import BusServer, eventually
from tests.browser.pages import PageServer
from tests.calls import call, inbox, send, send_all
from tests.refusals import KEY

pytestmark = pytest.mark.full

ADMIN = {"X-API-Key": KEY}

OPEN = """async ([from, name, options]) => {
    const { Client } = await import(from);
    window.got = []; window.told = [];
    window.bus = new Client(name, options ?? {});
    for (const event of ["open", "close", "gap", "error", "failed"])
        window.bus.on(event, (what) => window.told.push([event, what.transport ?? what.reason ?? what.message]));
    window.bus.on("message", (message) => void window.got.push(message.payload));
    try { await window.bus.connect(); } catch (error) { return [error.code, error.status]; }
    return window.bus.transport;
}"""

NO_WEBSOCKET = "delete window.WebSocket"
BLOCKED = """window.WebSocket = class {
    constructor() { setTimeout(() => this.onclose({code: 1006, reason: ""}), 10); }
    close() {}
}"""
"""A browser without WebSockets, and a network that lets none through."""


@pytest.fixture
def tab(context: Any) -> Iterator[Callable[..., Tab]]:
    """A function that opens a tab with a client in it."""
    tabs: list[Tab] = []

    def open_tab(server: BusServer, name: str, *, at: str | None = None, before: str = "", **options: object) -> Tab:
        tabs.append(Tab(context.new_page(), server, name, at or f"{server.url}/health", before, options))
        return tabs[-1]

    context.clear_cookies()  # those of a host are shared by all of its ports
    yield open_tab
    for opened in tabs:
        opened.page.close()


class Tab:
    """One page with one client."""

    def __init__(
        self, page: Any, server: BusServer, name: str, at: str, before: str, options: dict[str, object]
    ) -> None:
        self.page = page
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.add_init_script(before)
        page.goto(at)
        self.outcome = page.evaluate(OPEN, [f"{server.url}/client.js", name, options])

    def told(self, event: str) -> list[str]:
        """What came of an event so far."""
        return [what for name, what in self.page.evaluate("window.told") if name == event]

    def payloads(self, count: int) -> list[Any]:
        """The payloads of all messages, once there are so many."""
        eventually(
            lambda: self.page.evaluate("window.got.length") >= count,
            within_seconds=60,
            every_seconds=0.2,
            what=f"{count} messages; {self.page.evaluate('[window.got.length, window.told]')}",
        )
        return list(self.page.evaluate("window.got"))

    def send(self, to: str, first: int, last: int) -> None:
        """Send numbers, and wait for nothing."""
        script = """([to, first, last]) => {
            const failed = (error) => window.told.push(["error", error.message]);
            for (let n = first; n < last; n++) window.bus.send(to, n).catch(failed);
        }"""
        self.page.evaluate(script, [to, first, last])

    def wait_until_sent(self) -> None:
        eventually(
            lambda: self.page.evaluate("window.bus.unsent") == 0, within_seconds=60, every_seconds=0.2, what="receipts"
        )


def numbers(server: BusServer, to: str, first: int, last: int) -> None:
    send_all(server, [{"to": to, "payload": number} for number in range(first, last)])


@pytest.mark.parametrize("before", ["", NO_WEBSOCKET], ids=["websocket", "event stream"])
@pytest.mark.parametrize("workers", [1, 4])
def test_nothing_is_lost_or_repeated_over_a_crash_and_a_restart(
    fresh_server: Any, tab: Any, workers: int, before: str
) -> None:
    server = fresh_server(workers=workers)
    page = tab(server, "page", before=before)
    assert page.outcome == ("sse" if before else "websocket")
    call(server, "GET", "/api/messages", to="reader")
    for round_, how in enumerate((server.kill, server.terminate, None)):
        numbers(server, "page", round_ * 500, round_ * 500 + 400)
        page.send("reader", round_ * 100, round_ * 100 + 100)
        if how is not None:
            how()
            server.kill()
            page.send("reader", round_ * 100 + 100, round_ * 100 + 100)
            server.start()
        numbers(server, "page", round_ * 500 + 400, round_ * 500 + 500)
    assert page.payloads(1500) == list(range(1500))
    page.wait_until_sent()
    read = inbox(server, "reader", since="earliest", limit=1000)["messages"]
    assert [message["payload"] for message in read] == list(range(300))
    assert page.told("gap") == page.told("error") == []
    assert page.errors == []


def test_where_websockets_are_blocked_it_takes_an_event_stream(fresh_server: Any, tab: Any) -> None:
    server = fresh_server()
    one, two = tab(server, "one", before=BLOCKED), tab(server, "two")
    assert (one.outcome, two.outcome) == ("sse", "websocket")
    one.send("two", 0, 50)
    two.send("one", 0, 50)
    assert one.payloads(50) == two.payloads(50) == list(range(50))
    reply = """async () => {
        window.bus.onRequest((message) => message.payload + 1, "add");
        return null;
    }"""
    two.page.evaluate(reply)
    asked = one.page.evaluate(
        "window.bus.request('two', 41, {type: 'add', wait: 10}).then((found) => found.replies[0].payload)"
    )
    assert asked == 42
    receipt = send(server, "one", "tracked", require_ack=True)
    path = f"/api/messages/{receipt['message_id']}"
    eventually(lambda: call(server, "GET", path)["recipients"][0]["state"] == "acked", what="an ack over REST")


def test_what_is_redelivered_over_a_crash_is_handled_once_and_can_be_acked(fresh_server: Any, tab: Any) -> None:
    server = fresh_server()
    page = tab(server, "page", autoAck=False)
    page.page.evaluate(
        "() => { window.kept = []; window.bus.on('message', (message) => void window.kept.push(message)); }"
    )
    paths = [f"/api/messages/{send(server, 'page', number, require_ack=True)['message_id']}" for number in range(10)]
    page.payloads(10)
    server.kill()
    said = page.page.evaluate(
        "() => { window.said = Promise.all(window.kept.map((message) => message.ack())); return window.kept.length; }"
    )
    assert said == 10
    server.start()
    assert page.page.evaluate("window.said.then((said) => said.map((each) => each.status))") == ["acked"] * 10
    assert page.payloads(10) == list(range(10))
    assert {call(server, "GET", path)["recipients"][0]["state"] for path in paths} == {"acked"}


def key(server: BusServer, *clients: str) -> str:
    return str(server.call("POST", "/api/keys", {"clients": list(clients)}, ADMIN).body["key"])


def test_it_shows_who_it_is(fresh_server: Any, tab: Any, context: Any) -> None:
    server = fresh_server(env={"API_KEY": KEY})
    alice = key(server, "alice")
    assert tab(server, "alice").outcome == ["unauthenticated", 401]
    assert tab(server, "alice", token="wrong").outcome[1] == 401
    assert tab(server, "alice", token=alice).outcome == "websocket"
    assert tab(server, "alice", token=alice, buyTickets=True).outcome == "websocket"
    assert tab(server, "alice", token=alice, before=NO_WEBSOCKET).outcome == "sse"
    assert tab(server, "bob", token=alice).outcome[1] in (401, 403)
    context.add_cookies([{"name": "bus_session", "value": "of-another-bus", "url": server.url}])
    page = tab(server, "alice", token=alice)
    assert page.outcome == "websocket"
    page.page.evaluate("(key) => fetch('/api/session', {method: 'POST', headers: {'X-API-Key': key}})", alice)
    for before, transport in (("", "websocket"), (NO_WEBSOCKET, "sse")):
        signed_in = tab(server, "alice", before=before)
        assert signed_in.outcome == transport, signed_in.page.evaluate("window.told")
        sent = signed_in.page.evaluate("window.bus.send('alice', 'hi').then((receipt) => receipt.recipients[0].state)")
        assert sent == "delivered"
        assert signed_in.payloads(1)[-1] == "hi"


def test_a_key_that_ends_ends_the_connection_for_good_unless_there_is_another(fresh_server: Any, tab: Any) -> None:
    server = fresh_server(env={"API_KEY": KEY})
    made = server.call("POST", "/api/keys", {"clients": ["alice"]}, ADMIN).body
    page = tab(server, "alice", token=made["key"])
    assert page.outcome == "websocket"
    other = tab(server, "alice", token=made["key"])
    other.page.evaluate("(key) => { window.bus.options.token = () => key; }", key(server, "alice"))
    assert server.call("DELETE", f"/api/keys/{made['id']}", None, ADMIN).status == 200
    eventually(lambda: page.told("close") != [], within_seconds=30, what="the end")
    refused = page.page.evaluate("window.bus.send('bob', 1).then(() => null, (error) => [error.name, error.status])")
    assert refused == ["BusError", 401]
    eventually(lambda: len(other.told("open")) == 2, within_seconds=30, what="the other key")


def test_a_tab_that_was_frozen_goes_on_where_it_was(fresh_server: Any, tab: Any) -> None:
    server = fresh_server()
    page = tab(server, "page")
    numbers(server, "page", 0, 100)
    page.payloads(100)
    devtools = page.page.context.new_cdp_session(page.page)
    devtools.send("Page.setWebLifecycleState", {"state": "frozen"})
    numbers(server, "page", 100, 200)
    server.restart()
    numbers(server, "page", 200, 300)
    devtools.send("Page.setWebLifecycleState", {"state": "active"})
    assert page.payloads(300) == list(range(300))


def test_a_log_that_begins_anew_is_told(fresh_server: Any, tab: Any) -> None:
    server = fresh_server()
    page = tab(server, "page")
    numbers(server, "page", 0, 3)
    page.payloads(3)
    server.kill()
    for file in server.data_dir.iterdir():
        if file.is_file():
            file.unlink()
    server.start()
    numbers(server, "page", 3, 6)
    assert page.payloads(6) == list(range(6))
    assert page.told("gap") == ["epoch_changed"]


STRANGER = """async ([from, token]) => {
    const { Client } = await import(from);
    const bus = new Client("alice", {token});
    let opened = 0;
    bus.on("open", () => opened++);
    const over = new Promise((resolve) => bus.on("close", resolve));
    const failed = bus.connect().catch((error) => error.code);
    await over;
    await bus.close();
    return [await failed, opened];
}"""


def test_a_page_of_another_origin_imports_it_and_connects(fresh_server: Any, tab: Any, context: Any) -> None:
    page = "<!doctype html><title>elsewhere</title>"
    with PageServer(page) as elsewhere, PageServer(page) as other:
        server = fresh_server(env={"API_KEY": KEY, "ALLOWED_ORIGINS": elsewhere.url})
        alice = key(server, "alice")
        for first, before, transport in ((0, "", "websocket"), (3, NO_WEBSOCKET, "sse")):
            named = tab(server, "alice", at=elsewhere.url, before=before, token=alice)
            assert named.outcome == transport
            named.send("alice", first, first + 3)
            eventually(
                lambda named=named, first=first: named.payloads(3)[-3:] == list(range(first, first + 3)),
                what="what was sent; the kept cursor may bring some of before",
            )
        stranger = context.new_page()
        stranger.goto(other.url)
        assert stranger.evaluate(STRANGER, [f"{server.url}/client.js", alice]) == ["closed", 0]
        stranger.close()
