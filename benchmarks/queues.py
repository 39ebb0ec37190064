"""What a claim costs, however many queues there are and however much waits in them; and how fast a backlog is drained.

    python -m benchmarks.queues [--rounds 3] [--claims 300]

Claims are timed over one keep-alive connection, for each size in turn, several rounds: (queues, items waiting in all). A
claimed item is acked, outside the timing. Then one client with 10,000 waiting messages that need an ack, and one consumer
of a queue with 10,000 items, ack what they get as fast as they can; the order of what they got is checked.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from http.client import HTTPConnection
from typing import Any

from websockets.sync.client import ClientConnection, connect

from bus.testing import BusServer

SIZES = ((1, 100), (1, 100_000), (1000, 1000), (1000, 100_000))
BACKLOG = 10_000
BATCH = 1000
PRIORITIES = ("critical", "high", "normal", "low", "bulk")


class Rest:
    """One keep-alive connection."""

    def __init__(self, port: int) -> None:
        self._http = HTTPConnection("127.0.0.1", port, timeout=60)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        self._http.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = self._http.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{path}: {answer.status} {text.decode()}")
        return json.loads(text)  # type: ignore[no-any-return]


def fill(rest: Rest, addresses: list[str], count: int) -> None:
    """Send `count` messages in turn to the addresses, with all priorities."""
    for first in range(0, count, BATCH):
        messages = [
            {"from": "filler", "to": addresses[n % len(addresses)], "payload": n, "require_ack": True}
            | {"priority": PRIORITIES[n % len(PRIORITIES)]}
            for n in range(first, min(first + BATCH, count))
        ]
        rest.post("/api/send/batch", {"messages": messages})


def claim_latencies(queues: int, items: int, claims: int) -> list[float]:
    """Milliseconds of each of `claims` claims, from queues in turn, with `items` waiting in all of them together."""
    with BusServer(env={"LOG_LEVEL": "ERROR", "QUEUE_LIMIT": "1000000"}) as server:
        rest = Rest(server.port)
        names = [f"q{n}" for n in range(queues)]
        fill(rest, [f"queue:{name}" for name in names], items)
        took = []
        for n in range(claims):
            began = time.perf_counter_ns()
            answer = rest.post(f"/api/queues/{names[n % queues]}/claim", {"client": "worker"})
            took.append((time.perf_counter_ns() - began) / 1e6)
            for message in answer["messages"]:
                rest.post(f"/api/messages/{message['id']}/ack", {"client": "worker"})
        return took


def drain(to: str) -> tuple[float, bool]:
    """(messages a second, whether they came by priority and then by seq) of a backlog drained over one socket."""
    with BusServer(env={"LOG_LEVEL": "ERROR"}) as server:
        fill(Rest(server.port), [to], BACKLOG)
        began = time.perf_counter()
        with connect(f"ws://127.0.0.1:{server.port}/ws/drainer", max_queue=None, legacy=True) as socket:
            if to.startswith("queue:"):
                socket.send(json.dumps({"type": "subscribe", "queues": [to[6:]], "max_in_flight": 100}))
            ranks = [_ack_next(socket) for _ in range(BACKLOG)]
        return BACKLOG / (time.perf_counter() - began), ranks == sorted(ranks)


def _ack_next(socket: ClientConnection) -> tuple[int, int]:
    while (frame := json.loads(socket.recv(timeout=30)))["type"] != "message":
        continue
    message = frame["message"]
    socket.send(json.dumps({"type": "ack", "message_id": message["id"]}))
    return PRIORITIES.index(message.get("priority", "normal")), message["seq"]


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--claims", type=int, default=300)
    given = options.parse_args()
    found: dict[tuple[int, int], list[float]] = {size: [] for size in SIZES}
    for _ in range(given.rounds):
        for size in SIZES:
            found[size] += claim_latencies(*size, given.claims)
    print(
        f"{'queues':>8} {'waiting':>8} {'claim p50':>10} {'p99':>8}   (ms, {given.claims * given.rounds} claims each)"
    )
    for (queues, items), took in found.items():
        cuts = statistics.quantiles(took, n=100)
        print(f"{queues:>8} {items:>8} {cuts[49]:>10.2f} {cuts[98]:>8.2f}")
    for to in ("drainer", "queue:work"):
        runs = [drain(to) for _ in range(given.rounds)]
        rate = statistics.median(rate for rate, _ in runs)
        print(f"{BACKLOG} waiting for {to}: {rate:.0f} a second acked, in order: {all(order for _, order in runs)}")


if __name__ == "__main__":
    main()
