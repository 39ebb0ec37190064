"""Limits at work: how often a caller may ask and how many connections it may have, over all workers and every transport.

Each test calls from an address of its own, which a trusted proxy, the test, names in X-Forwarded-For.
"""

from __future__ import annotations

import http.client
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

from bus.testing import HOST, Answer, BusServer, eventually
from tests.calls import call
from tests.event_source import EventSource
from tests.ingress_calls import SECRET, fresh_body, headers_for, integrate
from tests.line import SEAMS, TO_FLASK, Line, post
from tests.rawws import RawWebSocket
from tests.refusals import GOOD, KEY, check, sending
from tests.sinks import Sink
from tests.stored import side_folder
from tests.webhook_calls import data_of, hook

pytestmark = pytest.mark.one_node("exact limits; a burst may pass once on each node")

Start = Callable[..., BusServer]

LIMIT, PER_HOUR, CONNECTIONS = 50, 120, 3
LIMITED = {
    **SEAMS,
    "RATE_LIMIT_REQUESTS_PER_MINUTE": str(LIMIT),
    "RATE_LIMIT_REQUESTS_PER_HOUR": str(PER_HOUR),
    "MAX_CONNECTIONS_PER_ADDRESS": str(CONNECTIONS),
    "TRUSTED_PROXIES": HOST,
    "WEBHOOK_ALLOWED_TARGETS": "127.0.0.0/8",
}
_numbers = itertools.count(1)


def somewhere() -> dict[str, str]:
    """The header that a proxy writes for a caller of its own address."""
    number = next(_numbers)
    return {"X-Forwarded-For": f"198.51.{100 + number // 250}.{1 + number % 250}"}


@pytest.fixture(scope="module")
def limited() -> Iterator[BusServer]:
    with BusServer(env=LIMITED) as running:
        yield running


@pytest.fixture(scope="module")
def limited4() -> Iterator[BusServer]:
    with BusServer(env=LIMITED, workers=4) as running:
        yield running


@pytest.fixture(scope="module", params=["limited", "limited4"], ids=["one worker", "four workers"])
def each_limited(request: pytest.FixtureRequest) -> BusServer:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, BusServer)
    return found


@pytest.fixture(scope="module")
def keyed4() -> Iterator[BusServer]:
    """Auth is on, and no limit is set."""
    env = {"API_KEY": KEY, "TRUSTED_PROXIES": HOST, "RATE_LIMIT_UNAUTHENTICATED_PER_MINUTE": ""}
    with BusServer(env=env, workers=4) as running:
        yield running


def spend(server: BusServer, at: dict[str, str], count: int) -> None:
    """Use up some of what an address may ask."""
    answer = server.call("POST", "/api/send/batch", {"messages": [GOOD] * count}, at)
    assert answer.status == 200, answer


# ---- requests


@pytest.mark.parametrize("way", [{}, TO_FLASK], ids=["lane", "flask"])
def test_the_limit_holds_over_all_workers(each_limited: BusServer, way: dict[str, str]) -> None:
    at = {**somewhere(), **way}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: each_limited.call("POST", "/api/send", GOOD, at), range(2 * LIMIT)))
    assert Counter(answer.status for answer in answers) == {200: LIMIT, 429: LIMIT}
    left = sorted(int(re.search(r'"minute";r=(\d+)', answer.headers["ratelimit"])[1]) for answer in answers)  # type: ignore[index]
    assert left == [0] * (LIMIT + 1) + list(range(1, LIMIT))
    assert each_limited.call("POST", "/api/send", GOOD, {**somewhere(), **way}).status == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "way"),
    [
        ("POST", "/api/send", GOOD, {}),
        ("POST", "/api/send", GOOD, TO_FLASK),
        ("POST", "/api/v1/send/batch", {"messages": [GOOD]}, {}),
        ("GET", "/api/status", None, {}),
        ("GET", "/stream/events", None, {}),
        ("GET", "/openapi.json", None, {}),
        ("GET", "/no-such-path", None, {}),
    ],
)
def test_a_refusal_says_when_to_come_back(
    limited: BusServer, method: str, path: str, body: object, way: dict[str, str]
) -> None:
    at = {**somewhere(), **way}
    spend(limited, at, LIMIT)
    answer = limited.call(method, path, body, at)
    sentence = check(answer, 429, "rate_limited")
    assert f"{LIMIT} requests a minute" in sentence
    assert 55 <= int(answer.headers["retry-after"]) <= 63
    assert answer.headers["ratelimit-policy"] == f'"minute";q={LIMIT};w=60'
    assert re.fullmatch(r'"minute";r=0;t=6[0-3]', answer.headers["ratelimit"])


def test_every_answer_says_what_is_left(limited: BusServer) -> None:
    at = somewhere()
    for left, way in enumerate([{}, TO_FLASK, {}], start=1):
        headers = limited.call("POST", "/api/send", GOOD, {**at, **way}).headers
        assert headers["ratelimit-policy"] == f'"hour";q={PER_HOUR};w=3600, "minute";q={LIMIT};w=60'
        assert re.fullmatch(rf'"hour";r={PER_HOUR - left};t=\d+, "minute";r={LIMIT - left};t=\d+', headers["ratelimit"])


def test_a_batch_counts_its_messages(each_limited: BusServer) -> None:
    for way in ({}, TO_FLASK):
        at = {**somewhere(), **way}
        spend(each_limited, at, LIMIT - 10)
        refused = each_limited.call("POST", "/api/send/batch", {"messages": [GOOD] * 11}, at)
        check(refused, 429, "rate_limited")
        spend(each_limited, at, 9)  # the refused one was a request
        check(each_limited.call("POST", "/api/send", GOOD, at), 429, "rate_limited")


@pytest.mark.parametrize("way", [{}, TO_FLASK], ids=["lane", "flask"])
def test_a_batch_that_can_never_pass_is_told_so(limited: BusServer, way: dict[str, str]) -> None:
    answer = limited.call("POST", "/api/send/batch", {"messages": [GOOD] * (LIMIT + 2)}, {**somewhere(), **way})
    assert "send them in parts" in check(answer, 429, "rate_limited")


def test_what_is_refused_is_not_stored(limited: BusServer) -> None:
    at = somewhere()
    spend(limited, at, LIMIT)
    before = limited.call("GET", "/api/status", headers=somewhere()).body["metrics"]["total_messages"]
    with Line(limited) as line:
        for _ in range(3):  # the connection goes on
            assert line.ask(post(X_Forwarded_For=at["X-Forwarded-For"])).status == 429
    after = limited.call("GET", "/api/status", headers=somewhere()).body["metrics"]["total_messages"]
    assert after == before


def test_a_frame_is_a_request(each_limited: BusServer) -> None:
    at = somewhere()
    with RawWebSocket(each_limited.port, "/ws/framed", at) as ws:  # one
        ws.read_until("connection_confirmed")
        for ref in range(LIMIT + 9):
            ws.send_json({"type": "send", "to": "b", "ref": ref})
        heard = [ws.read_json() for _ in range(LIMIT + 9)]
        assert Counter(frame["type"] for frame in heard) == {"sent": LIMIT - 1, "error": 10}
        errors = [frame for frame in heard if frame["type"] == "error"]
        assert [frame["ref"] for frame in errors] == list(range(LIMIT - 1, LIMIT + 9))
        assert {frame["code"] for frame in errors} == {"rate_limited"}
        assert all(55 <= frame["retry_after_seconds"] <= 63 for frame in errors)
    check(each_limited.call("GET", "/api/status", headers=at), 429, "rate_limited")
    with RawWebSocket(each_limited.port, "/ws/framed", at) as refused:
        assert refused.status == 429
        assert "retry-after" in refused.headers


def test_probes_and_scrapers_are_not_counted(each_limited: BusServer) -> None:
    at = somewhere()
    for path in ("/health", "/health/live", "/health/ready", "/ready", "/metrics"):
        for _ in range(LIMIT // 4):
            answer = each_limited.call("GET", path, headers=at)
            assert (answer.status, answer.headers.get("ratelimit")) == (200, None)
    spend(each_limited, at, LIMIT)
    assert each_limited.call("GET", "/health", headers=at).status == 200


def test_a_limit_that_was_hit_is_counted_and_told_once_a_minute(limited: BusServer) -> None:
    at = somewhere()
    with Sink() as sink:
        made = hook(limited, sink, "rate_limit.hit")
        spend(limited, at, LIMIT)
        for _ in range(5):
            assert limited.call("POST", "/api/send", GOOD, at).status == 429
        (hit,) = sink.wait_for(1)
        told = data_of(hit)
        assert (told["scope"], told["caller"]) == ("address", at["X-Forwarded-For"])
        assert 55 <= told["retry_after_seconds"] <= 63
        assert len(sink.hits) == 1
        call(limited, "DELETE", f"/api/webhooks/{made['id']}")
    counted = re.search(r'bus_rate_limited_total\{scope="address"\} (\d+)', limited.call("GET", "/metrics").body)
    assert counted is not None
    assert int(counted[1]) >= 5


# ---- whose address


def forged(server: BusServer, number: int, source: str = "127.0.0.2") -> int:
    """The status of a send from another address of this machine, which claims to come from everywhere."""
    connection = http.client.HTTPConnection(HOST, server.port, timeout=10, source_address=(source, 0))
    lies = {"X-Forwarded-For": f"203.0.113.{number}", "X-Real-IP": f"203.0.113.{number}", "X-Client-ID": f"c{number}"}
    headers = {"Content-Type": "application/json", "Forwarded": f"for=203.0.113.{number}", **lies}
    try:
        connection.request("POST", "/api/send", sending(), headers)
        return connection.getresponse().status
    finally:
        connection.close()


def test_what_a_client_claims_to_be_changes_nothing(each_limited: BusServer) -> None:
    statuses = Counter(forged(each_limited, number) for number in range(LIMIT + 20))
    assert statuses == {200: LIMIT, 429: 20}


def test_a_trusted_proxy_is_believed_as_far_as_its_own_word_goes(limited: BusServer) -> None:
    at = somewhere()["X-Forwarded-For"]
    spend(limited, {"X-Forwarded-For": at}, LIMIT)
    for claimed in (f"203.0.113.1, {at}", f"{at}, {HOST}", f"nonsense, {at}"):
        assert limited.call("POST", "/api/send", GOOD, {"X-Forwarded-For": claimed}).status == 429
    assert limited.call("POST", "/api/send", GOOD, {"X-Forwarded-For": f"{at}, 203.0.113.77"}).status == 200


# ---- what lasts


@pytest.mark.slow
def test_neither_a_workers_end_nor_a_restart_forgets(fresh_server: Start) -> None:
    server = fresh_server(env=LIMITED)
    at = somewhere()
    spend(server, at, LIMIT)
    server.kill_worker(*server.worker_pids())
    eventually(lambda: is_well(server), what="a new worker")
    check(server.call("POST", "/api/send", GOOD, at), 429, "rate_limited")
    server.restart()
    check(server.call("POST", "/api/send", GOOD, at), 429, "rate_limited")
    assert server.call("POST", "/api/send", GOOD, somewhere()).status == 200


def is_well(server: BusServer) -> bool:
    try:
        return server.call("GET", "/health").status == 200
    except OSError:
        return False


# ---- with auth on


@pytest.mark.parametrize("credential", [{}, {"X-API-Key": "wrong" * 5}, {"X-API-Key": "bus_dev_wrong"}])
def test_strangers_may_try_sixty_times_a_minute_and_keys_are_not_held(
    keyed4: BusServer, credential: dict[str, str]
) -> None:
    at = somewhere()
    refused = [keyed4.call("POST", "/api/send", GOOD, {**at, **credential}) for _ in range(70)]
    assert [answer.status for answer in refused] == [401] * 60 + [429] * 10
    check(refused[-1], 429, "rate_limited")
    assert "retry-after" in refused[-1].headers
    assert keyed4.call("GET", "/openapi.json", headers=at).status == 429
    assert keyed4.call("GET", "/health", headers=at).status == 200
    good = [keyed4.call("POST", "/api/send", GOOD, {**at, "X-API-Key": KEY}) for _ in range(70)]
    assert {(answer.status, answer.headers.get("ratelimit")) for answer in good} == {(200, None)}
    assert keyed4.call("POST", "/api/send", GOOD, {**somewhere(), **credential}).status == 401


def test_a_key_has_the_rate_that_it_was_given_wherever_it_calls_from(keyed4: BusServer) -> None:
    asked = {"label": "slow", "clients": ["slow"], "rate_per_minute": 20}
    made = keyed4.call("POST", "/api/keys", asked, {"X-API-Key": KEY})
    assert made.status in (200, 201), made
    key = {"X-API-Key": made.body["key"]}
    eventually(lambda: keyed4.call("GET", "/api/status", headers=key).status != 401, what="a key that all know")
    statuses: Counter[int] = Counter()
    for _ in range(30):
        statuses[keyed4.call("POST", "/api/send", {"from": "slow", "to": "b"}, {**key, **somewhere()}).status] += 1
    assert statuses[200] <= 19
    assert statuses[429] >= 11
    with RawWebSocket(keyed4.port, "/ws/slow", {**key, **somewhere()}) as ws:
        assert ws.status == 429
    assert keyed4.call("POST", "/api/send", GOOD, {"X-API-Key": KEY}).status == 200


def test_wrong_first_frames_count_and_then_the_door_stays_shut(keyed4: BusServer) -> None:
    at = somewhere()
    for _ in range(60):
        with RawWebSocket(keyed4.port, "/ws/guesser", at) as ws:
            ws.send_json({"type": "auth", "token": "a guess"})
            assert ws.read_close().close_code == 4401
    with RawWebSocket(keyed4.port, "/ws/guesser", at) as ws:
        assert ws.status == 429
    with RawWebSocket(keyed4.port, "/ws/owner", {**at, "X-API-Key": KEY}) as ws:
        assert ws.read_until("connection_confirmed")


def test_a_hundred_sockets_of_an_address_may_wait_for_their_credential(keyed4: BusServer) -> None:
    at = somewhere()
    with ExitStack() as stack:
        waiting = [stack.enter_context(RawWebSocket(keyed4.port, "/ws/late", at)) for _ in range(100)]
        assert {ws.status for ws in waiting} == {101}
        late = stack.enter_context(RawWebSocket(keyed4.port, "/ws/late", at))
        assert (late.status, b"too_many_connections" in late.body) == (429, True)
        assert stack.enter_context(RawWebSocket(keyed4.port, "/ws/late", somewhere())).status == 101
        assert stack.enter_context(RawWebSocket(keyed4.port, "/ws/known", {**at, "X-API-Key": KEY})).status == 101
        waiting[0].send_json({"type": "auth", "token": KEY})
        waiting[0].read_until("connection_confirmed")
        assert stack.enter_context(RawWebSocket(keyed4.port, "/ws/late", at)).status == 101
        assert stack.enter_context(RawWebSocket(keyed4.port, "/ws/late", at)).status == 429


# ---- signed ingress


def test_an_integration_sees_the_address_that_the_trusted_proxy_names(limited: BusServer) -> None:
    at = somewhere()
    made = integrate(limited, allowed_ips=[at["X-Forwarded-For"]])
    body = fresh_body()
    check(signed(limited, made, body, somewhere()), 403, "address_not_allowed")
    assert signed(limited, made, body, at).status == 202


def test_wrong_signatures_are_a_strangers_tries_and_right_ones_are_not(fresh_server: Start) -> None:
    env = {"ENABLE_AUTH": "true", "API_KEY": KEY, "TRUSTED_PROXIES": HOST, "RATE_LIMIT_UNAUTHENTICATED_PER_MINUTE": "5"}
    server = fresh_server(env=env)
    body = {"scheme": "botlyne", "to": "desk", "secret": SECRET}
    made = server.call("POST", "/api/integrations", body, {"X-API-Key": KEY}).body
    at = somewhere()
    assert {signed(server, made, fresh_body(), at).status for _ in range(10)} == {202}
    wrong = [signed(server, made, fresh_body(), at, secret="another secret") for _ in range(7)]
    assert [answer.status for answer in wrong] == [401] * 5 + [429] * 2
    assert signed(server, made, fresh_body(), somewhere()).status == 202


def signed(server: BusServer, made: dict[str, Any], body: bytes, at: dict[str, str], **how: Any) -> Answer:
    """Post a signed webhook from an address; `how` as of `headers_for`."""
    return server.call("POST", made["path"], raw=body, headers={**headers_for(made, body, **how), **at})


# ---- connections


def opened(server: BusServer, at: dict[str, str], stack: ExitStack, number: int) -> int:
    """Open a socket or a stream, in turn; the status."""
    if number % 2:
        return stack.enter_context(EventSource(server, f"client_id=s{number}", at)).status
    return stack.enter_context(RawWebSocket(server.port, f"/ws/w{number}", at)).status


def test_an_address_has_so_many_connections_over_all_workers(each_limited: BusServer) -> None:
    at = somewhere()
    with ExitStack() as stack:
        assert [opened(each_limited, at, stack, n) for n in range(6)] == [200 if n % 2 else 101 for n in range(3)] + [
            429
        ] * 3
        refused = each_limited.call("GET", "/stream/events", headers=at)
        check(refused, 429, "too_many_connections")
        assert int(refused.headers["retry-after"]) > 0
        assert opened(each_limited, somewhere(), stack, 0) == 101
    with ExitStack() as stack:  # those that ended give their places back

        def has_room() -> bool:
            return opened(each_limited, at, stack, 0) == 101

        eventually(has_room, what="a free place")


@pytest.mark.slow
def test_the_connections_of_a_worker_that_died_count_no_more(fresh_server: Start) -> None:
    server = fresh_server(workers=2, env=LIMITED)
    at = somewhere()
    with ExitStack() as stack:
        assert [opened(server, at, stack, 0) for _ in range(4)] == [101, 101, 101, 429]
        for pid in server.worker_pids():
            server.kill_worker(pid)
        eventually(lambda: is_well(server) and opened(server, at, stack, 0) == 101, what="a free place")


def test_a_credential_has_so_many_connections_wherever_it_connects_from(fresh_server: Start) -> None:
    server = fresh_server(env={"API_KEY": KEY, "MAX_CONNECTIONS_PER_KEY": "2", "TRUSTED_PROXIES": HOST})
    key = {"X-API-Key": KEY}
    with ExitStack() as stack:
        assert [opened(server, {**key, **somewhere()}, stack, n) for n in (0, 1, 2)] == [101, 200, 429]
        late = stack.enter_context(RawWebSocket(server.port, "/ws/first-frame", somewhere()))
        late.send_json({"type": "auth", "token": KEY})
        assert late.read_close().close_code == 1013


def test_without_settings_nothing_is_counted(server: BusServer) -> None:
    assert not list(side_folder(server).glob("rate-limits"))
    assert not list(side_folder(server).glob("places"))
    assert "ratelimit" not in server.call("POST", "/api/send", GOOD).headers
