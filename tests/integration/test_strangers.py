"""Who may come in over HTTP: names of this machine, pages of the bus's own origin, holders of the key."""

from __future__ import annotations

import pytest

from bus.testing import HOST, BusServer
from tests.refusals import GOOD, KEY, check, sending


@pytest.mark.parametrize(
    "host",
    [
        "bus.example.com",
        "127.example.com",
        "127.0.0.1.example.com",
        "localhost.example.com",
        "10.0.0.1",
        "",
        "[::1",
        "a b",
        "user@127.0.0.1",
        "127.0.0.1:port",
        "0",
        "[::ffff:10.0.0.1]",
    ],
)
def test_a_foreign_host_is_refused(untouched: BusServer, host: str) -> None:
    check(untouched.call("GET", "/api/status", headers={"Host": host}), 403, "host_not_allowed")
    check(untouched.call("POST", "/api/send", raw=sending(), headers={"Host": host}), 403, "host_not_allowed")
    assert (
        untouched.call("GET", "/health", headers={"Host": host}).status == 200
    )  # a probe comes under the pod's address


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:5001", "127.0.0.1", "127.0.0.2:80", "[::1]:5001"])
def test_a_host_of_this_machine_is_answered(untouched: BusServer, host: str) -> None:
    assert untouched.call("GET", "/api/status", headers={"Host": host}).status == 200


ORIGINS = ["https://example.com", "null", "", "file://", "http://[", "http://127.0.0.1", "http://127.0.0.1:1"]


@pytest.mark.parametrize("origin", [*ORIGINS, "http://me@{host}", "http://{host}.example.com", "{host}"])
@pytest.mark.parametrize("path", ["/api/send", "/api/send/batch", "/api/clear"])
def test_a_page_of_a_foreign_origin_changes_nothing(untouched: BusServer, path: str, origin: str) -> None:
    given = origin.format(host=f"{HOST}:{untouched.port}")
    check(untouched.call("POST", path, raw=sending(), headers={"Origin": given}), 403, "origin_not_allowed")


# ---- with auth on

WRONG_KEYS = [
    {"X-API-Key": "wrong"},
    {"Authorization": "Bearer wrong"},
    {"X-API-Key": "שלום".encode().decode("latin-1")},
]
NO_KEYS = [
    {},
    {"X-API-Key": ""},
    {"Authorization": f"Basic {KEY}"},
    {"Authorization": KEY},
    {"Authorization": "Bearer"},
]
GUARDED = ["POST /api/send", "POST /api/send/batch", "POST /api/clear", "GET /api/messages?to=asked", "GET /api/status"]


@pytest.mark.parametrize("call", [*GUARDED, "GET /api/log", "GET /api/clients", "GET /api/nothing", "DELETE /api/send"])
def test_without_a_valid_key_every_call_is_refused(locked: BusServer, call: str) -> None:
    method, path = call.split()
    for code, headers in [("bad_credential", h) for h in WRONG_KEYS] + [("unauthenticated", h) for h in NO_KEYS]:
        answer = locked.call(method, path, GOOD if method == "POST" else None, headers)
        check(answer, 401, code)
        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("headers", [{"X-API-Key": KEY}, {"Authorization": f"bearer  {KEY} "}])
def test_with_the_key_only_what_is_bad_is_refused(locked: BusServer, headers: dict[str, str]) -> None:
    check(locked.call("POST", "/api/send", {"to": "asked"}, headers), 400, "missing_field", "from")
    foreign = {**headers, "Origin": "https://example.com"}
    check(locked.call("POST", "/api/send", GOOD, foreign), 403, "origin_not_allowed")
    for origin in ("null", "nonsense", "file://"):  # which name no host, as this Host does not
        nowhere = {**headers, "Host": "no host", "Origin": origin}
        check(locked.call("POST", "/api/send", GOOD, nowhere), 403, "origin_not_allowed")
    assert locked.call("GET", "/api/status", headers={**headers, "Host": "bus.example.com"}).status == 200
