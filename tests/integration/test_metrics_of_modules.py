"""What the modules count at `/metrics`: webhooks, retention, health, the size cap. Each figure moves by what was done."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import pytest

from bus.testing import BusServer, eventually
from tests.calls import call, send, send_all
from tests.scraped import moved, scrape
from tests.sinks import Sink, answer, in_turn
from tests.webhook_calls import ENV, drop, hook, settled, stats

pytestmark = pytest.mark.one_node("each counts for itself")

LEVERS = "tests.faults.health_levers"
HOUR = 3600.0


SERVER_ENV = {**ENV, "BUS_EXTENSIONS": LEVERS}


@pytest.fixture
def type_() -> str:
    """A type of messages that this test alone sends."""
    return f"t-{secrets.token_hex(4)}"


# ---- webhooks


def test_attempts_are_counted_by_kind_and_by_what_came_of_them(each_server: BusServer, type_: str) -> None:
    with Sink(in_turn(answer(500), answer(429), answer(204))) as sink, Sink(answer(200)) as chat:

        def deliver() -> None:
            made = hook(each_server, sink, types=[type_]), hook(each_server, chat, types=[type_], kind="slack")
            send(each_server, "anybody", type=type_)
            for endpoint in made:
                settled(each_server, endpoint)
            drop(each_server, *made)

        moved(
            each_server,
            deliver,
            {
                'bus_webhook_attempts_total{kind="standard",class="5xx"}': 1,
                'bus_webhook_attempts_total{kind="standard",class="429"}': 1,
                'bus_webhook_attempts_total{kind="standard",class="2xx"}': 1,
                'bus_webhook_attempts_total{kind="slack",class="2xx"}': 1,
                'bus_webhook_attempt_duration_seconds_count{kind="standard"}': 3,
                'bus_webhook_delivery_lag_seconds_count{kind="standard"}': 1,
                'bus_webhook_delivery_lag_seconds_count{kind="slack"}': 1,
                "bus_webhook_pending": 0,
                'bus_webhook_endpoints{state="enabled"}': 0,
            },
        )


def test_what_waits_by_its_schedule_is_pending_and_not_overdue(each_server: BusServer, type_: str) -> None:
    with Sink(answer(500)) as sink:
        made: list[dict[str, Any]] = []

        def fail() -> None:
            made.append(hook(each_server, sink, types=[type_], schedule_seconds=[0, HOUR]))
            send(each_server, "anybody", type=type_)
            eventually(lambda: stats(each_server, made[0])["attempts"] == 1, what="an attempt")

        moved(
            each_server,
            fail,
            {
                "bus_webhook_pending": 1,
                'bus_webhook_endpoints{state="enabled"}': 1,
                "bus_webhook_oldest_pending_seconds": 0,
            },
        )
        assert told(each_server, made[0]) == {
            "enabled": 1,
            "pending": 1,
            "overdue_seconds": 0,
            "breaker_open": 0,
            "flagged": 0,
        }
        drop(each_server, *made)


def test_what_is_due_and_not_sent_is_overdue(each_server: BusServer, type_: str) -> None:
    with Sink() as sink:
        made = hook(each_server, sink, types=[type_], rate={"count": 1, "seconds": HOUR})
        send_all(each_server, [{"to": "anybody", "type": type_}] * 3)
        sink.wait_for(1)
        longest = eventually(lambda: scrape(each_server).value("bus_webhook_oldest_pending_seconds"), what="a wait")
        figures = told(each_server, made)
        assert 0 < longest <= figures["overdue_seconds"] < 60
        assert figures["pending"] == scrape(each_server).value("bus_webhook_pending") == 2
        call(each_server, "POST", f"/api/webhooks/{made['id']}/pause")
        eventually(
            lambda: scrape(each_server).value("bus_webhook_oldest_pending_seconds") == 0, what="the end of the wait"
        )
        assert scrape(each_server).value("bus_webhook_endpoints", state="paused") == 1
        drop(each_server, made)


def test_endpoints_that_fail_are_cut_off_and_those_that_refuse_are_flagged(each_server: BusServer, type_: str) -> None:
    with Sink(answer(503)) as failing, Sink(answer(404)) as refusing:
        cut_off = hook(each_server, failing, types=[type_], schedule_seconds=[0] * 20)
        flagged = hook(each_server, refusing, types=[type_])
        send_all(each_server, [{"to": "anybody", "type": type_}] * 3)
        eventually(lambda: told(each_server, cut_off)["breaker_open"], what="an open breaker")
        eventually(lambda: told(each_server, flagged)["flagged"], what="a flag")
        found = scrape(each_server)
        assert found.value("bus_webhook_breaker_open") == 1
        assert found.value("bus_webhook_endpoints", state="flagged") == 1
        assert found.value("bus_webhook_oldest_pending_seconds") == 0, (
            "What waits for one that is cut off waits by design."
        )
        drop(each_server, cut_off, flagged)


@pytest.mark.slow
def test_a_target_that_is_no_longer_allowed_is_counted_by_its_sort(fresh_server: Callable[..., BusServer]) -> None:
    with Sink() as sink:
        before = fresh_server(env=ENV)
        made = hook(before, sink, schedule_seconds=[0, HOUR])
        assert before.terminate() == 0
        server = fresh_server(data_dir=before.data_dir, database_url=before.database_url)
        send(server, "anybody")
        eventually(lambda: stats(server, made)["attempts"] == 1, what="an attempt")
        found = eventually(
            lambda: seen if (seen := scrape(server)).total("bus_webhook_attempts_total") else None, what="its figure"
        )
        assert not sink.hits
    assert found.value("bus_webhook_attempts_total", kind="standard", class_="blocked") == 1
    assert found.value("bus_webhook_blocked_targets_total", reason="loopback") == 1


def test_details_go_from_one_endpoint_to_the_next(server: BusServer) -> None:
    with Sink() as sink:
        made = [hook(server, sink, types=["never"]) for _ in range(3)]
    page = call(server, "GET", "/metrics/detailed", family="webhook", limit=2, cursor=made[0]["id"])
    assert [each["id"] in page for each in made] == [False, True, True]
    assert sink.url not in page
    assert call(server, "GET", "/metrics/detailed", family="webhook", endpoint="we-none") == ""
    drop(server, *made)


@pytest.mark.parametrize(("workers", "count"), [(1, 100), pytest.param(4, 1000, marks=pytest.mark.slow)])
def test_endpoints_make_no_series(fresh_server: Callable[..., BusServer], workers: int, count: int) -> None:
    server = fresh_server(env=ENV, workers=workers)
    eventually(lambda: scrape(server).total("bus_process_start_time_seconds"), what="a worker")
    before = scrape(server)
    with Sink() as sink:
        for _ in range(count):
            hook(server, sink, types=["told"])
        send(server, "anybody", type="told")
        sink.wait_for(count, seconds=60)
    after = scrape(server)
    assert after.value("bus_webhook_endpoints", state="enabled") == count
    assert len(after.series) - len(before.series) < 50


def told(server: BusServer, made: dict[str, Any]) -> dict[str, float]:
    """What `/metrics/detailed` says of one endpoint."""
    text = call(server, "GET", "/metrics/detailed", family="webhook", endpoint=made["id"])
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(f'{{endpoint="{made["id"]}"}} ' in line for line in lines)
    return {
        line.partition("{")[0].removeprefix("bus_webhook_endpoint_"): float(line.rpartition(" ")[2]) for line in lines
    }


# ---- retention


def test_what_leaves_the_log_is_counted_by_its_policy(each_server: BusServer, type_: str) -> None:
    policy = {"ttl_seconds": 1, "archive_before_delete": True}
    call(each_server, "PUT", f"/api/ttl/policies/{type_}", policy)
    read = f"r-{type_}"

    def expire() -> None:
        send_all(each_server, [{"to": "anybody", "type": type_}] * 5)
        ids = [send(each_server, read, type="notification", require_ack=True)["message_id"] for _ in range(2)]
        for message_id in ids:
            call(each_server, "POST", f"/api/messages/{message_id}/ack", {"client": read})
        eventually(
            lambda: call(each_server, "POST", "/api/ttl/sweep") and left(each_server, type_) == 0,
            within_seconds=20,
            what="the end of all",
        )

    moved(
        each_server,
        expire,
        {
            'bus_retention_deleted_total{policy="custom"}': 5,
            'bus_retention_deleted_total{policy="immediate"}': 2,
            "bus_retention_archived_total": 5,
        },
    )


def left(server: BusServer, type_: str) -> int:
    return len(call(server, "GET", "/api/log", type=type_, limit=1000)["messages"])


@pytest.mark.slow
def test_what_a_size_cap_takes_is_counted(fresh_server: Callable[..., BusServer]) -> None:
    server = fresh_server(env={"MAX_LOG_BYTES": str(1024 * 1024)})
    sent = 200
    send_all(server, [{"to": "anybody", "payload": "x" * 10_000}] * sent)
    found = eventually(
        lambda: seen if (seen := scrape(server)).value("bus_log_evicted_total") else None,
        within_seconds=20,
        what="an eviction",
    )
    assert found.value("bus_log_bytes") <= 1024 * 1024
    assert found.value("bus_log_evicted_total") == sent - left(server, "message")


# ---- health


def test_probes_and_canaries_are_shown_and_follow_what_breaks(each_server: BusServer) -> None:
    def is_up(probe: str) -> float:
        return scrape(each_server).value("bus_health_check_up", probe=probe)

    def arrivals() -> list[float]:
        name = "bus_canary_last_success_timestamp_seconds"
        return [value for (found, _), value in scrape(each_server).series.items() if found == name and value]

    eventually(lambda: len(arrivals()) == each_server.workers, what="a canary of each worker")
    first = max(arrivals())
    eventually(lambda: max(arrivals()) > first, what="the next canary")
    assert (is_up("live"), is_up("startup")) == (1, 1)
    eventually(lambda: is_up("ready"), what="a server that is ready")
    assert call(each_server, "GET", "/metrics", format="json")["health_status"] == "healthy"
