"""`/metrics` of a running server: each figure moves by what was done, over any number of workers; and its forms."""

from __future__ import annotations

import contextlib
import http.client
import os
import platform
import re
import secrets
import signal
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from bus import __version__
from bus.families import ALIASES, FAMILIES, UNMATCHED, build_info, http_requests
from bus.testing import HOST, BusServer, eventually, free_port
from tests.calls import call, claim, send, send_all, settle
from tests.conftest import require
from tests.counting import EXTENSION
from tests.event_source import EventSource
from tests.rawws import RawWebSocket
from tests.scraped import Scraped, assert_nothing_fell, moved, scrape, settled
from tests.stored import rows, side_folder
from tests.workers import wait_until_known

pytestmark = pytest.mark.one_node("each counts for itself")

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()

UPGRADE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "A" * 22 + "==",
}


def name() -> str:
    return f"m-{secrets.token_hex(4)}"


# ---- each moved by one act


def test_a_send_is_counted_where_it_is_stored(each_server: BusServer) -> None:
    moved(
        each_server,
        lambda: [send(each_server, name()) for _ in range(7)],
        {
            "bus_messages_published_total": 7,
            'bus_sends_total{transport="http"}': 7,
            'bus_http_requests_total{route="/api/send",status="2xx"}': 7,
            "messages_sent": 7,
        },
    )


def test_a_batch_counts_its_messages(each_server: BusServer) -> None:
    moved(
        each_server,
        lambda: send_all(each_server, [{"to": name()}] * 250),
        {"bus_messages_published_total": 250, 'bus_sends_total{transport="http"}': 250},
    )


def test_a_conversation_over_websockets(each_server: BusServer) -> None:
    alice, bob = name(), name()

    def talk() -> None:
        with RawWebSocket(each_server.port, f"/ws/{alice}") as one, RawWebSocket(each_server.port, f"/ws/{bob}") as two:
            one.read_json(), two.read_json()
            wait_until_known(each_server, [alice, bob])
            for number in range(5):
                one.send_json({"type": "send", "to": bob, "payload": number, "ref": number})
            for _ in range(5):
                two.read_until("message")
            one.send_json({"type": "send", "to": bob, "ephemeral": True})
            two.read_until("message")
            for socket in (one, two):
                socket.send_close()
                socket.read_close()

    moved(
        each_server,
        talk,
        {
            'bus_sends_total{transport="websocket"}': 6,
            "bus_messages_published_total": 5,
            "bus_messages_ephemeral_total": 1,
            'bus_messages_delivered_total{transport="websocket"}': 6,
            'bus_connections_opened_total{transport="websocket"}': 2,
            'bus_disconnects_total{code="1000",transport="websocket"}': 2,
            'bus_connections{transport="websocket"}': 0,
            'bus_resume_total{result="ok"}': 2,
        },
    )


def test_an_event_stream_and_what_its_filter_leaves_out(each_server: BusServer) -> None:
    listener = name()

    def listen() -> None:
        with EventSource(each_server, f"client_id={listener}&subscribe=wanted") as stream:
            stream.read_until("connected")
            for event in ("wanted", "unwanted", "wanted"):
                body = {"client_id": listener, "event": event, "data": {}}
                call(each_server, "POST", "/stream/send", body)
            stream.take(2)

    moved(
        each_server,
        listen,
        {
            'bus_messages_delivered_total{transport="sse"}': 2,
            'bus_connections_opened_total{transport="sse"}': 1,
            'bus_connections{transport="sse"}': 0,
            'bus_sends_total{transport="http"}': 3,
        },
    )


def test_acks_dead_letters_and_redeliveries(each_server: BusServer) -> None:
    queue = name()

    def work() -> None:
        for _ in range(3):
            send(each_server, f"queue:{queue}")
        first, second, third = claim(each_server, queue, "worker", limit=3)
        settle(each_server, "ack", first, "worker")
        settle(each_server, "reject", second, "worker", reason="no")
        settle(each_server, "nack", third, "worker", delay=0)
        eventually(lambda: claim(each_server, queue, "worker", wait=1))

    moved(
        each_server,
        work,
        {
            'bus_messages_dead_lettered_total{reason="rejected"}': 1,
            "bus_messages_redelivered_total": 1,
            'bus_messages_delivered_total{transport="http"}': 4,
            'bus_deliveries_leased{owner="queue"}': 1,
            'bus_deliveries_waiting{owner="queue"}': 0,
            "bus_dead_letters": 1,
        },
    )


def test_a_slow_reader_and_what_is_held_for_it(server: BusServer) -> None:
    slow = name()
    before = settled(server)
    with RawWebSocket(server.port, f"/ws/{slow}", receive_buffer_bytes=4096) as socket:
        socket.read_json()
        send_all(server, [{"to": slow, "payload": "x" * 10_000}] * 1500)

        def is_seen() -> bool:
            after = scrape(server)
            held = after.value("bus_send_queue_bytes_count") - before.value("bus_send_queue_bytes_count")
            return held > 0 and after.value("bus_slow_consumers_total") > before.value("bus_slow_consumers_total")

        eventually(is_seen, what="a slow reader")


def test_refusals_by_reason(each_server: BusServer) -> None:
    key = name()

    def be_refused() -> None:
        body = {"from": "giver", "to": name(), "idempotency_key": key}
        assert each_server.call("POST", "/api/send", {**body, "payload": 1}).status == 200
        assert each_server.call("POST", "/api/send", {**body, "payload": 2}).status == 422
        assert each_server.call("GET", "/api/messages?to=x&since=nonsense").status == 400

    moved(
        each_server,
        be_refused,
        {
            'bus_messages_refused_total{reason="idempotency_key_reused"}': 1,
            'bus_resume_total{result="denied"}': 1,
            "bus_errors_total": 2,
            'bus_http_requests_total{route="/api/messages",status="4xx"}': 1,
        },
    )


def test_strangers_are_counted_by_what_was_wrong(locked_server: BusServer) -> None:
    moved(
        locked_server,
        lambda: [
            locked_server.call("GET", "/api/status"),
            locked_server.call("GET", "/api/status", headers={"X-API-Key": "wrong"}),
            locked_server.call("GET", "/ws/somebody", headers={"X-API-Key": "wrong", **UPGRADE}),
        ],
        {
            'bus_auth_failures_total{reason="unauthenticated"}': 1,
            'bus_auth_failures_total{reason="bad_credential"}': 2,
            'bus_connections_refused_total{status="401",transport="websocket"}': 1,
        },
    )


def test_durations_are_taken_of_sends_commits_and_deliveries(each_server: BusServer) -> None:
    listener = name()
    before = settled(each_server)
    with RawWebSocket(each_server.port, f"/ws/{listener}") as socket:
        socket.read_json()
        wait_until_known(each_server, [listener])
        send(each_server, listener, "x" * 150)
        socket.read_until("message")

    def measured() -> list[float]:
        after = scrape(each_server)
        return [
            after.value(family + "_count", **labels) - before.value(family + "_count", **labels)
            for family, labels in (
                ("bus_publish_duration_seconds", {"transport": "http"}),
                ("bus_end_to_end_seconds", {"transport": "websocket"}),
                ("bus_commit_duration_seconds", {}),
                ("bus_commit_batch_size", {}),
                ("bus_message_size_bytes", {}),
            )
        ]

    eventually(lambda: min(measured()) >= 1, what="durations")
    after = scrape(each_server)
    assert after.value("bus_event_loop_lag_seconds_count") > 0
    assert 0 < after.value("bus_publish_duration_seconds_sum", transport="http") < 60


# ---- whatever happens


def test_no_stranger_makes_series(each_server: BusServer) -> None:
    before = scrape(each_server)
    send_all(each_server, [{"to": f"client-{number}", "from": f"sender-{number}"} for number in range(10_000)])
    for number in range(150):
        token = secrets.token_hex(8)
        each_server.call("GET", f"/{token}/{number}?{token}={token}")
        each_server.call("GET", f"/api/messages/{token}")
        each_server.call("GET", f"/api/messages?to={token}&type={token}")
        each_server.call("POST", "/api/send", {"from": token, "to": f"topic:{token}", "type": token, "payload": token})
    after = scrape(each_server)
    assert len(after.series) - len(before.series) < 50
    assert len(after.series) <= 2000
    assert len(after.text) < 1_000_000
    assert after.value("bus_http_requests_total", route=UNMATCHED, status="4xx") >= 0
    assert token not in after.text


def test_every_scrape_is_valid_while_the_bus_works(each_server: BusServer) -> None:
    working = threading.Event()

    def load() -> None:
        number = 0
        while not working.is_set():
            number += 1
            send_all(each_server, [{"to": f"c{n % 50}", "payload": 'שלום\n"\\' * (n % 30)} for n in range(200)])
            each_server.call("GET", f"/%22%0a{number}")
            with RawWebSocket(each_server.port, f"/ws/{name()}") as socket:
                socket.read_json()

    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        former = scrape(each_server)
        for turn in range(20):
            found = scrape(each_server, openmetrics=turn % 2 == 1)
            assert_nothing_fell(former, found)
            former = found
    finally:
        working.set()
        for thread in threads:
            thread.join()


def test_counters_go_on_when_workers_are_killed(fresh_server: Callable[..., BusServer]) -> None:
    server = fresh_server(workers=4)
    killed(server, kills=3)


@pytest.mark.slow
def test_twenty_killed_workers_cost_no_published_message(fresh_server: Callable[..., BusServer]) -> None:
    server = fresh_server(workers=4)
    killed(server, kills=20)
    folder = side_folder(server)
    assert len(list(folder.glob("metrics-*"))) == 4


def killed(server: BusServer, *, kills: int) -> None:
    """Kill workers under load, one after another, and look at the counters all the while."""
    stop = threading.Event()
    answered: list[int] = []

    def load() -> None:
        while not stop.is_set():
            try:
                answered.append(server.call("POST", "/api/send", {"from": "giver", "to": "all"}).body["seq"])
            except (OSError, http.client.HTTPException):
                continue  # its worker was killed

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        former = patiently_scraped(server)
        for number in range(1, kills + 1):
            server.kill_worker(server.worker_pids()[0])
            found = patiently_scraped(server)
            assert_nothing_fell(former, found)
            former = found
            if number % 3 == 0:  # the others are killed while successors still begin
                found = settled(server)
                assert_nothing_fell(former, found)
                former = found
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    eventually(lambda: len(server.worker_pids()) == 4, within_seconds=30, what="four workers")
    seqs = {seq for (seq,) in rows(server, "SELECT seq FROM messages")}
    assert seqs >= set(answered)
    assert scrape(server).value("bus_messages_published_total") == len(seqs)
    eventually(lambda: scrape(server).value("bus_workers") == 4, what="four workers")
    eventually(lambda: len(workers_shown(server)) == 4, what="four workers' memory")
    assert scrape(server).value("bus_connections", transport="websocket") == 0


def patiently_scraped(server: BusServer) -> Scraped:
    """A scrape by a worker that lives to answer it."""
    while True:
        try:
            return scrape(server)
        except (OSError, http.client.HTTPException):
            continue


def workers_shown(server: BusServer) -> set[str]:
    return {dict(labels)["worker"] for metric, labels in scrape(server).series if metric.endswith("memory_bytes")}


@pytest.mark.slow
def test_connections_of_a_killed_worker_are_gone_from_the_gauge(fresh_server: Callable[..., BusServer]) -> None:
    server = fresh_server(workers=4)
    clients = [name() for _ in range(12)]
    sockets = [RawWebSocket(server.port, f"/ws/{client}") for client in clients]
    try:
        eventually(lambda: scrape(server).value("bus_connections", transport="websocket") == 12, what="12 connections")
        for pid in server.worker_pids():
            server.kill_worker(pid)
        eventually(lambda: len(server.worker_pids()) == 4, within_seconds=30, what="four workers")
        eventually(lambda: scrape(server).value("bus_connections", transport="websocket") == 0, what="no connections")
        assert scrape(server).value("active_connections") == 0
    finally:
        for socket in sockets:
            socket.close()


@pytest.mark.slow
def test_a_server_that_lost_all_workers_at_once_counts_on(fresh_server: Callable[..., BusServer]) -> None:
    server = fresh_server(workers=2)
    for _ in range(5):
        send(server, "taker")
    server.call("GET", "/nothing")
    before = settled(server)
    for pid in server.worker_pids():
        os.kill(pid, signal.SIGSTOP)  # so that neither is replaced before both are gone
    for pid in server.worker_pids():
        os.kill(pid, signal.SIGKILL)
    assert_nothing_fell(before, patiently_scraped(server))


@pytest.mark.slow
def test_a_worker_that_is_not_replaced_leaves_its_counts_and_takes_its_levels(
    fresh_server: Callable[..., BusServer],
) -> None:
    server = fresh_server(workers=3)
    for _ in range(30):
        send(server, "all")
    before = settled(server)
    os.kill(server.pid, signal.SIGTTOU)  # gunicorn's word for a worker less
    eventually(lambda: len(workers_shown(server)) == 2, within_seconds=30, what="two workers")
    fewer = scrape(server)
    assert_nothing_fell(before, fewer)
    assert fewer.value("bus_workers") == 2
    os.kill(server.pid, signal.SIGTTIN)  # and for one more
    eventually(lambda: len(workers_shown(server)) == 3, within_seconds=30, what="three workers")
    assert_nothing_fell(fewer, scrape(server))


def test_a_restarted_server_begins_at_zero_but_for_the_log(fresh_server: Callable[..., BusServer]) -> None:
    server = fresh_server()
    send(server, "taker")
    assert scrape(server).value("bus_sends_total", transport="http") == 1
    server.restart()
    found = scrape(server)
    assert found.value("bus_sends_total", transport="http") == 0
    assert found.value("bus_messages_published_total") == 1


# ---- forms, doors, switches


def test_the_summary_in_json_has_the_documented_keys(each_server: BusServer) -> None:
    found = call(each_server, "GET", "/metrics", format="json")
    documented = re.search(r"^### JSON\n\n(.*?)\n\n", PAGE, re.DOTALL | re.MULTILINE)
    assert documented is not None
    inner = {"count", "sum", "avg", "quantiles"}
    assert set(re.findall(r"`(\w+)`", documented[1])) - inner == set(found)
    assert set(found["request_duration_ms"]) == inner
    assert found["health_status"] == "healthy"


def test_times_in_the_summary_lie_between_the_least_and_the_most(server: BusServer) -> None:
    client = name()
    with RawWebSocket(server.port, f"/ws/{client}") as socket:
        socket.read_json()
        for _ in range(5):
            send(server, client)
            socket.read_until("message")
    found = call(server, "GET", "/metrics", format="json")
    assert 0 < found["average_delivery_time"] < 60
    assert 0 < found["p95_delivery_time"] <= found["p99_delivery_time"] <= 10


def test_details_are_told_on_demand_and_one_by_one(each_server: BusServer) -> None:
    client, queue = name(), name()
    with RawWebSocket(each_server.port, f"/ws/{client}") as socket:
        socket.read_json()
        wait_until_known(each_server, [client])
        for _ in range(2):
            send(each_server, f"queue:{queue}")
        text = call(each_server, "GET", "/metrics/detailed", family="client", client=client)
        assert f'bus_client_connections{{client="{client}"}} 1.0' in text
    text = call(each_server, "GET", "/metrics/detailed", family="queue", queue=queue)
    assert f'bus_queue_waiting_messages{{queue="{queue}"}} 2.0' in text
    assert text.count("{queue=") == 2
    page = call(each_server, "GET", "/metrics/detailed", family="client", limit=1)
    assert page.count("bus_client_connections{") == 1
    refused = each_server.call("GET", "/metrics/detailed?family=nothing")
    assert (refused.status, refused.body["code"]) == (404, "unknown_family")


def test_a_token_closes_the_door(fresh_server: Callable[..., BusServer]) -> None:
    token = "s3cret-of-a-scraper"
    server = fresh_server(env={"METRICS_TOKEN": token})
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": token},
        {"X-API-Key": token},
    ):
        for path in ("/metrics", "/metrics?format=json", "/metrics/detailed?family=client"):
            assert server.call("GET", path, headers=headers).status == 401
    good = {"Authorization": f"Bearer {token}"}
    assert server.call("GET", "/metrics", headers=good).status == 200
    assert server.call("GET", "/metrics/detailed?family=client", headers=good).status == 200


def test_with_auth_figures_are_open_and_details_need_the_key(locked_server: BusServer) -> None:
    assert locked_server.call("GET", "/metrics").status == 200
    assert locked_server.call("GET", "/metrics/detailed?family=client").status == 401


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 4])
def test_a_port_of_its_own_is_served_by_one_worker_after_another(
    fresh_server: Callable[..., BusServer], workers: int
) -> None:
    port = free_port()
    server = fresh_server(workers=workers, env={"METRICS_PORT": str(port)})

    def fetch(path: str) -> str | None:
        try:
            with urllib.request.urlopen(f"http://{HOST}:{port}{path}", timeout=5) as answer:
                return answer.read().decode()
        except OSError:
            return None

    assert "bus_build_info" in eventually(lambda: fetch("/metrics"), what="metrics on a port of their own")
    assert fetch("/api/status") is None
    assert fetch("/metrics/detailed?family=client") is not None
    assert scrape(server).value("bus_workers") == workers
    for pid in server.worker_pids():
        server.kill_worker(pid)
    assert "bus_build_info" in eventually(lambda: fetch("/metrics"), within_seconds=30, what="a successor on the port")


@pytest.mark.slow
def test_a_port_that_is_taken_is_served_when_it_is_free(fresh_server: Callable[..., BusServer]) -> None:
    with socket.create_server((HOST, 0)) as other:
        port = other.getsockname()[1]
        server = fresh_server(env={"METRICS_PORT": str(port)})
        eventually(lambda: "can't be listened on (Address already in use" in server.log, what="a word in the log")
        assert scrape(server).value("bus_workers") == 1

    def is_served() -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{HOST}:{port}/metrics", timeout=5) as answer:
            return bool(answer.status == 200)
        return False

    eventually(is_served, what="metrics on a port of their own")


def test_switched_off_there_is_nothing(fresh_server: Callable[..., BusServer]) -> None:
    server = fresh_server(env={"ENABLE_METRICS": "false"}, workers=2)
    send(server, "taker")
    assert server.call("GET", "/metrics").status == 404
    assert server.call("GET", "/metrics/detailed?family=client").status == 404
    folder = side_folder(server)
    assert not list(folder.glob("metrics-*"))
    assert "/metrics" not in server.call("GET", "/openapi.json").body["paths"]


def test_the_lane_is_open_with_metrics(server: BusServer) -> None:
    assert "Flask serves every send" not in server.log


# ---- what extensions count


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_what_an_extension_counts_is_shown_for_all_workers(
    fresh_server: Callable[..., BusServer], workers: int
) -> None:
    server = fresh_server(workers=workers, env={"BUS_EXTENSIONS": EXTENSION})
    for number in range(40):
        send(server, f"taker-{number % 2}", "x" * 20, type="large" if number % 4 == 0 else "odd")
    found = settled(server)
    assert found.value("test_parcels_total", kind="large") == 10
    assert found.value("test_parcels_total", kind="other") == 30
    assert found.value("test_parcel_bytes_count") == 40
    assert found.value("test_shelves") == 7
    assert found.value("own_parcels_total", to="taker-0") == found.value("own_parcels_total", to="taker-1") == 20
    assert found.value("own_level") == 40
    assert found.value("own_bytes_bucket", le="100.0") == 40
    assert found.value("own_times_count") == found.value("own_times_sum") == 40
    told = call(server, "GET", "/metrics/detailed", family="parcel", id="p1", limit=3)
    assert 'test_parcel_weight{parcel="p1"} 3.0' in told


# ---- what is written of them


def test_the_page_tells_of_every_metric_and_of_no_other(server: BusServer) -> None:
    found = scrape(server)
    rows = re.findall(
        r"^\| `(bus_\w+)` \| (\w+) \| ([^|]+) \| ([^|]+) \| (\w+) \| ([^|]+) \| ([^|]+) \|$", PAGE, re.MULTILINE
    )
    across = {"sum": "sum", "max": "largest", "worker": "worker", "once": "one"}
    declared = (*FAMILIES, http_requests(("…",)), build_info("…", "…"))
    assert rows == [
        (
            family.name,
            family.kind,
            family.unit or "—",
            "; ".join(f"{label}: {' '.join(values)}" for label, values in family.labels.items()) or "—",
            across[family.across],
            family.help,
            family.filled_by,
        )
        for family in declared
    ]
    shown = {f"{stem}_total" if kind == "counter" else stem: kind for stem, kind in found.types.items()}
    assert {metric for metric in shown if metric.startswith("bus_")} == {family.name for family in declared}
    assert {metric for metric in shown if not metric.startswith("bus_")} == set(ALIASES)
    for family in declared:
        assert shown[family.name] == family.kind
        assert (
            found.help[family.name.removesuffix("_total") if family.kind == "counter" else family.name] == family.help
        )


def test_the_pages_queries_name_series_that_there_are(server: BusServer) -> None:
    names = {metric for metric, _ in scrape(server).series}
    queries = re.findall(
        r"^\| [^|]+ \| `(.*)` \|$", PAGE[PAGE.index("## Queries") :].partition("\n## ")[0], re.MULTILINE
    )
    assert len(queries) > 8
    for query in queries:
        for metric in re.findall(r"bus_\w+", query):
            assert metric in names, f"{query} asks for {metric}, which is not there."
        assert "histogram_quantile" not in query or re.search(r"rate\(bus_\w+_bucket\[", query)


def test_what_runs_is_told(server: BusServer) -> None:
    found = scrape(server)
    assert found.value("bus_build_info", version=__version__, python=platform.python_version()) == 1
    assert found.value("bus_durability_info", mode="full") == 1
    assert found.value("bus_durability_info", mode="relaxed") == 0
    assert found.value("bus_disk_free_bytes") > 0
    assert found.value("bus_process_open_fds", worker="0") < found.value("bus_process_max_fds", worker="0")


HOSTILE = [
    'a"b\\c',
    "new\nline\r\n",
    "{}",
    '"} 1\n# EOF',
    "\\",
    "\u2028 שלום \U0001f30d",
    "\x00\x7f",
    "bus_build_info 2",
    "x" * 300,
]


@pytest.mark.slow
def test_labels_that_strangers_wrote_can_be_read_in_every_form(fresh_server: Callable[..., BusServer]) -> None:
    hostile_words(fresh_server(env={"BUS_EXTENSIONS": EXTENSION}))


@pytest.mark.full
def test_promtool_takes_what_is_shown(fresh_server: Callable[..., BusServer]) -> None:
    text = hostile_words(fresh_server(workers=4, env={"BUS_EXTENSIONS": EXTENSION}))
    checked = subprocess.run([require("promtool"), "check", "metrics"], input=text, capture_output=True, text=True)
    complaints = [line for line in checked.stderr.splitlines() if not line.startswith("request_duration_ms ")]
    assert not complaints, complaints  # the alias is what version 1.2 called it


def hostile_words(server: BusServer) -> str:
    """Have an extension count words of strangers, and find them again in both formats. Returns the classic one."""
    for words in HOSTILE:
        send(server, "taker", words)
    settled(server)
    found = scrape(server)
    for each in (found, scrape(server, openmetrics=True)):
        assert [each.value("own_words_total", said=words[:256]) for words in HOSTILE] == [1] * len(HOSTILE)
    return found.text
