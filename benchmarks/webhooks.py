"""How long an event takes from its publisher to a healthy receiver on this machine, beside the naive way: a queue, a thread,
and `requests.post`.

    python -m benchmarks.webhooks [--rounds 3] [--seconds 10] [--rate 200]

A latency runs from the moment an event was due to the moment the receiver, a process of its own, has its last byte. The bus
commits each event to disk with its delivery, and every attempt to its log; the naive way keeps nothing.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import queue
import re
import statistics
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from typing import ClassVar

import requests
from websockets.sync.client import connect

from bus.testing import HOST, BusServer

WARM_SECONDS = 2
_DUE = re.compile(rb'"due": ?(\d+)')


class Receiver(BaseHTTPRequestHandler):
    """Answers 200, and notes how late each event came."""

    protocol_version = "HTTP/1.1"
    late: ClassVar[list[tuple[int, int]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        now = time.monotonic_ns()
        found = _DUE.search(body)
        if found is not None:
            self.late.append((int(found[1]), now))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def receive(pipe: Connection) -> None:
    """The receiver's process: says its port, and on the word `end` what came: (due, received) in monotonic ns."""
    server = ThreadingHTTPServer((HOST, 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    pipe.send(server.server_port)
    pipe.recv()
    pipe.send(Receiver.late)


def paced(send: Callable[[int], None], rate: int, seconds: float) -> None:
    """Call `send(due)` on schedule: a late one still counts from when it was due."""
    began = time.monotonic_ns()
    for n in range(int(rate * seconds)):
        due = began + n * 1_000_000_000 // rate
        time.sleep(max(0.0, (due - time.monotonic_ns()) / 1e9))
        send(due)


def by_the_bus(url: str, rate: int, seconds: float) -> None:
    """Publish over a WebSocket that waits for no answer."""
    with BusServer(env={"WEBHOOK_ALLOWED_TARGETS": "127.0.0.0/8", "LOG_LEVEL": "ERROR"}) as server:
        hook = {"url": url, "events": ["message.sent"], "rate": {"count": 1000}}
        assert server.call("POST", "/api/webhooks", hook).status == 200
        with connect(f"{server.ws_url}/ws/publisher") as sender:

            def send(due: int) -> None:
                sender.send(json.dumps({"type": "send", "to": "nobody", "payload": {"due": due}}))

            paced(send, rate, seconds)
            time.sleep(1.0)


def naively(url: str, rate: int, seconds: float) -> None:
    """A queue, a thread, and `requests.post`."""
    waiting: queue.Queue[int | None] = queue.Queue()

    def work() -> None:
        while (due := waiting.get()) is not None:
            requests.post(url, json={"event": "message.sent", "data": {"payload": {"due": due}}}, timeout=10)

    thread = threading.Thread(target=work)
    thread.start()
    paced(waiting.put, rate, seconds)
    waiting.put(None)
    thread.join()


def measure(way: Callable[[str, int, float], None], rate: int, seconds: float) -> tuple[float, float, int]:
    """(p50 ms, p99 ms, events counted)."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=receive, args=(theirs,), daemon=True)
    process.start()
    way(f"http://{HOST}:{ours.recv()}/hook", rate, seconds + WARM_SECONDS)
    ours.send("end")
    came: list[tuple[int, int]] = ours.recv()
    process.join()
    first = min(due for due, _ in came) + WARM_SECONDS * 1_000_000_000
    late = [now - due for due, now in came if due >= first]
    cuts = statistics.quantiles(late, n=100)
    return cuts[49] / 1e6, cuts[98] / 1e6, len(late)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rate", type=int, default=200)
    options = parser.parse_args()
    print("| round | way | p50 ms | p99 ms | events counted |\n|---|---|---|---|---|")
    for number in range(1, options.rounds + 1):
        for name, way in (("bus", by_the_bus), ("requests.post in a thread", naively)):
            p50, p99, count = measure(way, options.rate, options.seconds)
            print(f"| {number} | {name} | {p50:.2f} | {p99:.2f} | {count} |", flush=True)


if __name__ == "__main__":
    main()
