"""Which pages may call, by every transport, and what they may read: origins are compared exactly, before anything else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bus.testing import HOST, BusServer
from tests.event_source import EventSource
from tests.rawws import RawWebSocket
from tests.refusals import KEY, check, sending

PAGE, EXTENSION = "https://app.example.com", "chrome-extension://abcdefgh"
KEYED = {"X-API-Key": KEY}

STRANGERS = [
    "https://evil.example",
    "null",
    "",
    "*",
    "file://",
    "https://",
    "http://[",
    "https://app.example.com.evil.example",
    "https://evil-app.example.com",
    "https://evil.example/https://app.example.com",
    "https://app.example.com@evil.example",
    "https://app.example.comevil",
    "https://app.example.co",
    "https://example.com",
    "https://sub.app.example.com",
    "https://app.example.com:8443",
    "https://app.example.com/",
    "https://app.example.com?",
    "https://app.example.com#",
    "https://app.example.com, https://evil.example",
    "https://app.example.com https://evil.example",
    "http://app.example.com",
    "ws://app.example.com",
    "app.example.com",
    "//app.example.com",
    "chrome-extension://abcdefg",
    "https://{host}",
    "http://{name}",
    "http://{name}:1",
    "http://{host}0",
    "http://{host}.evil.example",
    "http://evil@{host}",
    "{host}",
]
"""Of strangers, of nobody, and of pages that look like ours: a prefix, a suffix, another port, another scheme."""

FRIENDS = [PAGE, PAGE.upper(), f"{PAGE}:443", EXTENSION, "http://{host}", "HTTP://{host}"]


@pytest.fixture(scope="module", params=["off", "on"], ids=["auth off", "auth on"])
def bus(request: pytest.FixtureRequest) -> Iterator[BusServer]:
    """A server that names two origins."""
    env = {"ALLOWED_ORIGINS": f"{PAGE}/, {EXTENSION}", **({"API_KEY": KEY} if request.param == "on" else {})}
    with BusServer(env=env) as server:
        yield server


def written(bus: BusServer, origin: str) -> str:
    return origin.format(host=f"{HOST}:{bus.port}", name=HOST)


@pytest.mark.parametrize("origin", STRANGERS)
def test_a_page_of_a_stranger_gets_nothing_by_any_transport(bus: BusServer, origin: str) -> None:
    headers = {**KEYED, "Origin": written(bus, origin)}
    for answer in (
        bus.call("POST", "/api/send", raw=sending(), headers=headers),
        bus.call("GET", "/api/messages?to=asked", headers=headers),
        bus.call("GET", "/stream/events?client_id=asked", headers=headers),
        bus.call("POST", "/stream/broadcast", {"event": "e"}, headers),
        bus.call("GET", "/api/nothing", headers=headers),
        bus.call("OPTIONS", "/api/send", headers={**headers, "Access-Control-Request-Method": "POST"}),
    ):
        check(answer, 403, "origin_not_allowed")
        assert "Origin" in answer.headers["vary"]
        assert not {name for name in answer.headers if name.startswith("access-control")}
    with RawWebSocket(bus.port, "/ws/asked", headers) as socket:
        assert socket.status == 403
    probe = bus.call("GET", "/health", headers=headers)  # is for everybody, but not for a page to read
    assert (probe.status, "access-control-allow-origin" in probe.headers) == (200, False)


@pytest.mark.parametrize("origin", FRIENDS)
def test_an_allowed_page_may_call_and_read_by_every_transport(bus: BusServer, origin: str) -> None:
    given = written(bus, origin)
    headers = {**KEYED, "Origin": given}
    answers = [
        bus.call("POST", "/api/send", raw=sending(), headers=headers),
        bus.call("GET", "/api/messages?to=asked", headers=headers),
    ]
    with EventSource(bus, "client_id=asked", headers=headers) as source:
        found = [(answer.status, answer.headers) for answer in answers] + [(source.status, source.headers)]
    for status, got in found:
        assert (status, got["access-control-allow-origin"]) == (200, given)
        assert (got["vary"], got["access-control-allow-credentials"]) == ("Origin", "true")
        assert "X-Request-ID" in got["access-control-expose-headers"]
    with RawWebSocket(bus.port, "/ws/asked", headers) as socket:
        assert socket.read_json()["type"] == "connection_confirmed"
    refused = bus.call("GET", "/api/messages", headers=headers)
    assert (refused.status, refused.headers["access-control-allow-origin"]) == (400, given)


@pytest.mark.parametrize("method", ["POST", "DELETE", "PATCH"])
@pytest.mark.parametrize("path", ["/api/send", "/api/v1/keys", "/stream/events", "/api/nothing"])
def test_what_a_browser_asks_in_advance_is_answered_without_a_key(bus: BusServer, path: str, method: str) -> None:
    asked = {"Origin": PAGE, "Access-Control-Request-Method": method, "Access-Control-Request-Headers": "x-api-key"}
    answer = bus.call("OPTIONS", path, headers=asked)
    assert (answer.status, answer.body) == (204, "")
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert method in answer.headers["access-control-allow-methods"].split(", ")
    assert {"X-API-Key", "Authorization", "Content-Type"} <= set(
        answer.headers["access-control-allow-headers"].split(", ")
    )
    assert "*" not in str(answer.headers)
    assert answer.headers["vary"] == "Origin"


def test_without_an_origin_there_is_no_page_and_nothing_for_one_to_read(bus: BusServer) -> None:
    answer = bus.call("GET", "/api/messages?to=asked", headers=KEYED)
    assert (answer.status, answer.headers["vary"]) == (200, "Origin")
    assert not {name for name in answer.headers if name.startswith("access-control")}
    with RawWebSocket(bus.port, "/ws/asked", KEYED) as socket:
        assert socket.read_json()["type"] == "connection_confirmed"


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
@pytest.mark.parametrize("path", ["/api/messages?to=asked", "/stream/events?client_id=asked", "/api/status"])
def test_an_image_or_a_link_of_a_stranger_takes_nothing(bus: BusServer, path: str, site: str) -> None:
    check(bus.call("GET", path, headers={**KEYED, "Sec-Fetch-Site": site}), 403, "origin_not_allowed")


@pytest.mark.one_node("an origin of its own")
def test_behind_a_proxy_with_tls_the_own_origin_is_https(bus: BusServer) -> None:
    proxied = {**KEYED, "X-Forwarded-Proto": "https"}
    other = f"http://{HOST}:{bus.port}"
    for host in (f"{HOST}:{bus.port}", HOST, f"{HOST}:443"):
        own = f"https://{host}"
        assert bus.call("GET", "/api/status", headers={**proxied, "Host": host, "Origin": own}).status == 200
    check(bus.call("GET", "/api/status", headers={**proxied, "Origin": other}), 403, "origin_not_allowed")
