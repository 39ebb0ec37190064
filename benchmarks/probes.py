"""What a probe waits for its answer while the bus runs at full load, and while it idles, in turn.

    python -m benchmarks.probes [--rounds 3] [--seconds 5] [--workers 1]

The load is LOADERS processes that each send batches of 100 messages, one after the other, over one connection, to a topic
that SUBSCRIBERS sockets listen to: the event loop never rests. A probe is a GET on a connection of its own, as kubelet's is;
50 a second. p50 and p99 in ms; what counts is the ratio. The load is `nice`, since elsewhere it has machines of its own.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack

from benchmarks.slow_readers import upgrade
from bus.testing import HOST, BusServer

LOADERS = 2
SUBSCRIBERS = 20
PROBES_A_SECOND = 50
PATHS = ("/health/live", "/health/ready", "/health/status")


def load(port: int) -> None:
    """Send batches until the process is ended."""
    message = {"from": "load", "to": "topic:load", "payload": "x" * 200}
    body = json.dumps({"messages": [message] * 100})
    connection = http.client.HTTPConnection(HOST, port)
    while True:
        connection.request("POST", "/api/send/batch", body, {"Content-Type": "application/json"})
        connection.getresponse().read()


def listen(port: int) -> None:
    """Read what comes for SUBSCRIBERS sockets, and throw it away."""
    from selectors import EVENT_READ, DefaultSelector  # noqa: PLC0415  # in this process only

    server = BusServer(port=port)
    selector = DefaultSelector()
    for n in range(SUBSCRIBERS):
        selector.register(upgrade(server, f"listener-{n}?topics=load"), EVENT_READ)
    while True:
        for entry, _ in selector.select():
            entry.fileobj.recv(262144)  # type: ignore[union-attr]


def probe(port: int, seconds: float) -> dict[str, list[float]]:
    """The latencies by path, in ms. A probe that is late still counts from when it was due."""
    took: dict[str, list[float]] = {path: [] for path in PATHS}
    began = time.monotonic()
    for n in range(int(seconds * PROBES_A_SECOND)):
        due = began + n / PROBES_A_SECOND
        time.sleep(max(0.0, due - time.monotonic()))
        path = PATHS[n % len(PATHS)]
        connection = http.client.HTTPConnection(HOST, port, timeout=30)
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        connection.close()
        if answer.status != 200:
            raise SystemExit(f"{path} answered {answer.status}.")
        took[path].append(1000 * (time.monotonic() - due))
    return took


def measure(seconds: float, workers: int, *, loaded: bool) -> tuple[dict[str, list[float]], float]:
    """The latencies, and how many messages a second were stored meanwhile."""
    with BusServer(workers=workers, env={"LOG_LEVEL": "ERROR"}) as server, ExitStack() as stack:
        for what in ("--listen", *("--load",) * LOADERS) if loaded else ():
            process = subprocess.Popen(["nice", sys.executable, "-m", "benchmarks.probes", what, str(server.port)])
            stack.callback(process.wait)
            stack.callback(process.kill)
        probe(server.port, 2.0)
        before = server.call("GET", "/api/status").body["metrics"]["total_messages"]
        took = probe(server.port, seconds)
        after = server.call("GET", "/api/status").body["metrics"]["total_messages"]
        return took, (after - before) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--load", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--listen", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        load(options.load)
    if options.listen:
        listen(options.listen)
    p99: dict[tuple[str, bool], list[float]] = {}
    print("| round | load | messages/s | path | p50 ms | p99 ms |\n|---|---|---|---|---|---|")
    for number in range(1, options.rounds + 1):
        for loaded in (False, True):
            took, rate = measure(options.seconds, options.workers, loaded=loaded)
            for path, latencies in took.items():
                cuts = statistics.quantiles(latencies, n=100)
                p99.setdefault((path, loaded), []).append(cuts[98])
                row = (number, "full" if loaded else "none", f"{rate:,.0f}", path, f"{cuts[49]:.2f}", f"{cuts[98]:.2f}")
                print(f"| {' | '.join(map(str, row))} |", flush=True)
    for path in PATHS:
        full, idle = (statistics.median(p99[path, loaded]) for loaded in (True, False))
        print(f"\n{path}: p99 under full load {full:.1f} ms, {full / idle:.1f} times that of an idle bus")


if __name__ == "__main__":
    main()
