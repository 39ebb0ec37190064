"""Sessions and tickets in a real browser: a page logs in, hears its stream, opens its socket, sends, and logs out."""

from __future__ import annotations

from typing import Any

import pytest

from bus.testing import BusServer, eventually
from tests.calls import call
from tests.refusals import KEY

pytestmark = pytest.mark.full

ADMIN = {"X-API-Key": KEY}

LOG_IN = """async ([key]) => {
    const answer = await fetch("/api/session", {method: "POST", headers: {"X-API-Key": key}});
    return [answer.status, document.cookie];
}"""

LISTEN = """() => {
    window.got = [];
    const stream = new EventSource("/stream/events?client_id=alice");
    stream.addEventListener("message_received", (e) => window.got.push("stream " + JSON.parse(e.data).payload));
    stream.onerror = () => window.got.push("stream over");
    const socket = new WebSocket(`ws://${location.host}/ws/alice`);
    socket.onmessage = (e) => {
        const frame = JSON.parse(e.data);
        window.got.push(frame.type === "message" ? "socket " + frame.message.payload : frame.type);
    };
    socket.onclose = (e) => window.got.push("socket " + e.code);
}"""

SEND = """async () => {
    const body = JSON.stringify({to: "alice", payload: "hi"});
    const send = (headers) => fetch("/api/send", {method: "POST", headers, body});
    const answers = [await send({"Content-Type": "application/json"}), await send({"Content-Type": "text/plain"})];
    return answers.map((answer) => answer.status);
}"""

TICKET = """async ([key, url]) => {
    const answer = await fetch(`${url}/api/tickets`, {
        method: "POST", headers: {"X-API-Key": key, "Content-Type": "application/json"}, body: "{}",
    });
    const ticket = (await answer.json()).ticket;
    const open = (...how) => new Promise((done) => {
        const socket = new WebSocket(...how);
        socket.onmessage = (e) => done(JSON.parse(e.data).type + " " + socket.protocol);
        socket.onclose = (e) => done("closed " + e.code);
    });
    const to = url.replace("http", "ws") + "/ws/alice";
    return [await open(to, ["bus", "ticket." + ticket]), await open(`${to}?ticket=${ticket}`)];
}"""

LOG_OUT = """async () => {
    const answer = await fetch("/api/session", {method: "DELETE", headers: {"X-Requested-With": "fetch"}});
    return [answer.status, (await fetch("/api/auth/me")).status];
}"""

READ = """async ([url]) => {
    try { return (await fetch(url + "/api/auth/me", {credentials: "include"})).status; } catch (error) { return "refused"; }
}"""


def alice(server: BusServer) -> str:
    return str(server.call("POST", "/api/keys", {"clients": ["alice"]}, ADMIN).body["key"])


@pytest.mark.parametrize("workers", [1, 4])
def test_a_page_logs_in_listens_sends_and_logs_out(fresh_server: Any, context: Any, workers: int) -> None:
    server = fresh_server(workers=workers, env={"API_KEY": KEY})
    page = context.new_page()
    page.goto(f"{server.url}/health")
    assert page.evaluate(LOG_IN, [alice(server)]) == [200, ""]  # the page itself can't read its cookie
    page.evaluate(LISTEN)
    eventually(lambda: "connection_confirmed" in page.evaluate("window.got"), what="the socket")
    assert page.evaluate(SEND) == [200, 403]
    eventually(lambda: {"stream hi", "socket hi"} <= set(page.evaluate("window.got")), what="what was sent")
    assert page.evaluate(LOG_OUT) == [200, 401]
    eventually(lambda: {"stream over", "socket 4401"} <= set(page.evaluate("window.got")), what="the end")
    page.close()


def test_a_page_of_another_origin_reads_and_opens_only_where_it_is_named(fresh_server: Any, context: Any) -> None:
    home = fresh_server()
    named, other = fresh_server(env={"API_KEY": KEY, "ALLOWED_ORIGINS": home.url}), fresh_server(env={"API_KEY": KEY})
    page = context.new_page()
    page.goto(f"{home.url}/health")
    assert page.evaluate(READ, [named.url]) == 401  # it may read that it is not known
    assert page.evaluate(READ, [other.url]) == "refused"
    opened, again = page.evaluate(TICKET, [alice(named), named.url])
    assert (opened, again) == ("connection_confirmed bus", "closed 1006")
    page.close()
    assert call(home, "GET", "/api/clients")["clients"] == []
