"""Event streams in a real browser: what Chromium's EventSource makes of them, over restarts and in several tabs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bus.testing import BusServer, eventually
from tests.calls import call, send

pytestmark = pytest.mark.full

LISTEN = """([query, names]) => {
    window.got = [];
    window.failures = 0;
    window.source = new EventSource("/stream/events" + query);
    for (const name of ["connected", "gap", ...names])
        window.source.addEventListener(name, (e) => window.got.push([name, e.data, e.lastEventId]));
    window.source.onerror = () => window.failures++;
}"""


@pytest.fixture
def tab(context: Any) -> Iterator[Callable[..., Tab]]:
    """A function that opens a tab on a page of a server, and listens to a stream there."""
    tabs: list[Tab] = []

    def open_tab(server: BusServer, query: str, *names: str) -> Tab:
        tabs.append(Tab(context.new_page(), server, query, names or ("message_received",)))
        return tabs[-1]

    yield open_tab
    for opened in tabs:
        opened.page.close()


class Tab:
    """One page with one EventSource."""

    def __init__(self, page: Any, server: BusServer, query: str, names: tuple[str, ...]) -> None:
        self.page = page
        page.goto(f"{server.url}/health")
        page.evaluate(LISTEN, [query, list(names)])
        self.wait_for("connected", 1)

    def got(self, name: str) -> list[tuple[str, str]]:
        """(data, last event id) of the events of a name that came so far."""
        return [(data, id_) for event, data, id_ in self.page.evaluate("window.got") if event == name]

    def wait_for(self, name: str, count: int, within_seconds: float = 30) -> list[str]:
        """The data of the first events of a name, when there are so many."""
        eventually(
            lambda: len(self.got(name)) >= count,
            within_seconds=within_seconds,
            what=f"{name} number {count}; {self.page.evaluate('window.got')}",
        )
        return [data for data, _ in self.got(name)]

    def payloads(self, count: int) -> list[Any]:
        return [json.loads(data)["payload"] for data in self.wait_for("message_received", count)]


def test_a_page_hears_messages_and_events_and_newlines_arrive(fresh_server: Any, tab: Any) -> None:
    server = fresh_server()
    page = tab(server, "?client_id=page", "message_received", "notification")
    send(server, "page", {"text": "שלום\n<b>"})
    call(server, "POST", "/stream/broadcast", {"event": "notification", "data": "two\nlines 🌍"})
    assert page.payloads(1) == [{"text": "שלום\n<b>"}]
    assert page.wait_for("notification", 1) == ["two\nlines 🌍"]
    assert page.page.evaluate("window.failures") == 0


PRINTED = """() => {
    window.shown = [];
    const showNotification = (text) => window.shown.push(text);
    const eventSource = new EventSource('/stream/events?client_id=browser-1');

    eventSource.addEventListener('message_received', (e) => {
        const data = JSON.parse(e.data);
        window.shown.push(data.text ?? data.payload.text);
    });

    eventSource.addEventListener('notification', (e) => {
        const data = JSON.parse(e.data);
        showNotification(data.message);
    });
}"""
"""The documented page, which shows what it would log."""


def test_the_documented_page_works(fresh_server: Any, context: Any) -> None:
    server = fresh_server()
    page = context.new_page()
    page.goto(f"{server.url}/health")
    page.evaluate(PRINTED)
    told = {"from": "code", "text": "Hello world"}
    call(server, "POST", "/stream/send", {"client_id": "browser-1", "event": "message_received", "data": told})
    call(server, "POST", "/stream/broadcast", {"event": "notification", "data": {"type": "info", "message": "soon"}})
    send(server, "browser-1", {"text": "a message of the bus"})
    eventually(lambda: len(page.evaluate("window.shown")) == 3, what="three lines")
    assert page.evaluate("window.shown") == ["Hello world", "soon", "a message of the bus"]
    page.close()


def test_the_documented_filter_and_a_stranger(fresh_server: Any, tab: Any) -> None:
    server = fresh_server(workers=2)
    page = tab(server, "?subscribe=message_received,notification", "message_received", "notification", "noise")
    for event in ("noise", "notification"):
        call(server, "POST", "/stream/broadcast", {"event": event, "data": {"n": 1}})
    send(server, "all", 1)
    assert page.payloads(1) == [1]
    assert page.got("noise") == []
    assert len(page.got("notification")) == 1


@pytest.mark.parametrize("how", ["stop", "kill"])
@pytest.mark.parametrize("workers", [1, 4])
def test_a_page_goes_on_over_a_restart_without_a_gap(fresh_server: Any, tab: Any, workers: int, how: str) -> None:
    server = fresh_server(workers=workers)
    one, two = tab(server, "?client_id=tab"), tab(server, "?client_id=tab")
    stranger = tab(server, "", "notice")
    sent = []
    for round_ in range(2):
        for number in range(5):
            sent.append(f"{round_}-{number}")
            send(server, "tab", sent[-1])
            call(server, "POST", "/stream/broadcast", {"event": "notice", "data": sent[-1]})
        if round_ == 0:
            assert one.payloads(5) == sent
            assert stranger.wait_for("notice", 5) == sent
            server.terminate() if how == "stop" else server.kill()
            server.kill()
            server.start()  # the pages wait some seconds before they come back: the second round is over by then
    assert one.payloads(10) == sent
    assert two.payloads(10) == sent
    assert stranger.wait_for("notice", 10) == sent
    for page in (one, two, stranger):
        page.wait_for("connected", 2)
        assert page.got("gap") == []


def test_a_log_that_begins_anew_is_told_once(fresh_server: Any, tab: Any) -> None:
    server = fresh_server()
    page = tab(server, "?client_id=anew")
    send(server, "anew", "before")
    page.payloads(1)
    server.kill()
    for file in server.data_dir.iterdir():
        if file.is_file():
            file.unlink()
    server.start()
    send(server, "anew", "after")
    assert page.payloads(2) == ["before", "after"]
    ((data, id_),) = page.got("gap")
    assert json.loads(data)["resumed_from"] == id_
    server.restart()
    page.wait_for("connected", 3)
    assert len(page.got("gap")) == 1


def test_a_closed_tab_leaves_the_other(fresh_server: Any, tab: Any) -> None:
    server = fresh_server()
    one, two = tab(server, "?client_id=pair"), tab(server, "?client_id=pair")
    one.page.evaluate("window.source.close()")
    eventually(lambda: call(server, "GET", "/stream/stats")["active_streams"] == 1, what="one stream")
    send(server, "pair", 1)
    assert two.payloads(1) == [1]
