"""A million messages with mixed policies expire while others are sent: what that costs a sender, and what is left.

    python -m tests.faults.expire --messages 1000000

Time does not pass, it is set (tests.clock_seams). Prints the times of single sends during each sweep and, since the machine
may have other work, in the calm just before it; and fails if a message is readable after its time or gone before it, if the
counts of log, figures, metrics and archive differ, or if the file keeps its size.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import threading
import time
from collections import Counter
from typing import Any

from bus.testing import BusServer, eventually
from tests.calls import call
from tests.scraped import scrape

LIVES = {"brief": 60, "short": 3600, "day": 86400, "kept": 3600}
"""Seconds; `kept` is archived. Beside them there is `audit`, for ever."""

TYPES = ("brief", "short", "day", "kept", "audit")
PACE_SECONDS = 0.01
CALM_SECONDS = 10
PATIENCE_SECONDS = 1800
MESSAGE_BYTES = 111
"""Of a payload."""


class Sender:
    """Sends one message after the other, at a pace, and takes the time of each."""

    def __init__(self, server: BusServer) -> None:
        self._server = server
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.times: list[float] = []
        self.sent = 0

    def __enter__(self) -> Sender:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=60)
        body = json.dumps({"from": "pace", "to": "all", "type": "audit"})
        while not self._stopping.wait(PACE_SECONDS):
            began = time.perf_counter()
            connection.request("POST", "/api/send", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200, answer.status
            self.times.append(time.perf_counter() - began)
            self.sent += 1


def percentile(times: list[float], part: float) -> float:
    """In milliseconds."""
    return sorted(times)[min(int(len(times) * part), len(times) - 1)] * 1000


def fill(server: BusServer, count: int) -> Counter[str]:
    """Send so many to all, in batches; how many of each type."""
    sent: Counter[str] = Counter()
    payload = {"text": "x" * (MESSAGE_BYTES - len('{"text":""}'))}
    for start in range(0, count, 1000):
        types = [TYPES[n % len(TYPES)] for n in range(start, min(start + 1000, count))]
        batch = [{"from": "ann", "to": "all", "type": type_, "payload": payload} for type_ in types]
        call(server, "POST", "/api/send/batch", {"messages": batch})
        sent.update(types)
    return sent


def figures(server: BusServer) -> Any:
    return call(server, "GET", "/api/ttl/stats")


def pass_time(server: BusServer, seconds: float, expired: int) -> tuple[Sender, float]:
    """Set the clocks on, and wait for the sweep; what a sender saw meanwhile, and how long that took."""
    call(server, "PUT", f"/seams/clock?bus={seconds}")
    began = time.monotonic()
    with Sender(server) as sender:
        call(server, "POST", "/api/ttl/sweep")
        swept = lambda: figures(server)["expired"] == expired  # noqa: E731
        eventually(swept, within_seconds=PATIENCE_SECONDS, every_seconds=0.5, what="the sweep")
    return sender, time.monotonic() - began


def readable(server: BusServer, type_: str) -> int:
    """How many messages of a type the log shows."""
    found, cursor, more = 0, "earliest", True
    while more:
        page = call(server, "GET", f"/api/log?limit=1000&type={type_}&since={cursor}")
        found, cursor, more = found + page["count"], page["cursor"], page["more"]
    return found


def run(count: int, workers: int) -> None:
    """The whole of it."""
    with BusServer(workers=workers, env={"BUS_EXTENSIONS": "tests.clock_seams", "TTL_SWEEP_INTERVAL": "1"}) as server:
        for type_, seconds in LIVES.items():
            policy = {"ttl_seconds": seconds, "archive_before_delete": type_ == "kept"}
            call(server, "PUT", f"/api/ttl/policies/{type_}", policy)
        began = time.monotonic()
        sent = fill(server, count)
        print(f"{count:,} sent in {time.monotonic() - began:.0f} s")
        file = server.data_dir / "bus.db"
        payloads = count * MESSAGE_BYTES
        eventually(lambda: file.stat().st_size > payloads, within_seconds=60, every_seconds=0.5, what="a checkpoint")
        full = file.stat().st_size
        audits = 0
        gone: list[str] = []
        for seconds in (61, 3700, 90_000):
            with Sender(server) as calm:
                time.sleep(CALM_SECONDS)
            audits += calm.sent
            _print("calm", calm, CALM_SECONDS)
            over = [type_ for type_, life in LIVES.items() if life < seconds]
            sender, took = pass_time(server, seconds, sum(sent[type_] for type_ in over))
            audits += sender.sent
            _print(f"{sum(sent[t] for t in set(over) - set(gone)):,} expire", sender, took)
            print(
                f"p99 of sends: {percentile(sender.times, 0.99) / percentile(calm.times, 0.99):.2f} times that of the calm"
            )
            gone = over
            for type_ in LIVES:
                assert readable(server, type_) == (0 if type_ in over else sent[type_]), type_
        found = figures(server)
        assert found["archived"] == found["archive"]["messages"] == sent["kept"], found
        assert found["total_messages"] == count + audits
        assert readable(server, "audit") == sent["audit"] + audits
        assert scrape(server).total("bus_retention_deleted_total") == found["expired"]
        assert scrape(server).total("bus_retention_archived_total") == found["archived"]
        _wait_for_space(server, full, count)


def _wait_for_space(server: BusServer, full: int, count: int) -> None:
    file = server.data_dir / "bus.db"
    wanted = full * 0.3 + 8 * 1024 * 1024
    began = time.monotonic()
    eventually(lambda: file.stat().st_size < wanted, within_seconds=3600, every_seconds=0.5, what="the space")
    print(
        f"the file: {full / 1e6:.0f} MB, then {file.stat().st_size / 1e6:.0f} MB, {time.monotonic() - began:.0f} s later"
    )


def _print(what: str, sender: Sender, took: float) -> None:
    p50, p99 = percentile(sender.times, 0.5), percentile(sender.times, 0.99)
    print(f"{what:22} {took:6.1f} s  send p50 {p50:6.2f} ms  p99 {p99:6.2f} ms  max {max(sender.times) * 1000:6.1f} ms")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    run(given.messages, given.workers)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
