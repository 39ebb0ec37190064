"""What a message costs each node of a bus on several, and what follows for more nodes than there are here.

    python -m benchmarks.nodes [--clients 200] [--rate 100] [--seconds 8] [--channel redis|notify]

It measures processor time, not throughput: so it can be done with more nodes than the machine has cores, and beside other
work. One node, then two with all senders on the first, tell four costs apart; with those a simulation says what one, two and
four nodes with senders on all of them should cost, and real ones are measured for comparison. Then it goes on to what nobody
has here: more nodes, and more clients, each node a core that serves what comes in its turn.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import selectors
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import psutil
from websockets.sync.client import connect

from bus.testing import eventually
from tests.databases import PostgresServer
from tests.nodes import Nodes
from tests.rawws import RawWebSocket
from tests.redis_servers import RedisServer

BUSY = 0.7
"""The share of a core that a node is loaded to at most: beyond, what waits for it grows fast."""


@dataclass(frozen=True)
class Costs:
    """Processor seconds: to take and store a message, to tell other nodes, to hear of one, and for each client here."""

    accept: float
    tell: float
    hear: float
    write: float

    def of_node(self, nodes: int, clients: float, *, here: bool) -> float:
        """Of one message, on the node that it came to or on another; `clients` are the node's."""
        if not here:
            return self.hear + self.write * clients
        return self.accept + (self.tell if nodes > 1 else 0.0) + self.write * clients

    def mean(self, nodes: int, clients: int) -> float:
        """Of one message, on a node of several with as many clients each, whichever it came to."""
        mine, others = (self.of_node(nodes, clients / nodes, here=here) for here in (True, False))
        return (mine + (nodes - 1) * others) / nodes


def simulate(costs: Costs, nodes: int, clients: int, rate: float, seconds: float = 20.0) -> tuple[float, float]:
    """Messages come to nodes by chance, and each node works off what it has in turn. (share of a core, p99 in seconds)."""
    chance = random.Random(1)
    free_at, worked, delays = [0.0] * nodes, 0.0, []
    events: list[tuple[float, int, bool, float]] = []
    now = 0.0
    while (now := now + chance.expovariate(rate)) < seconds:
        heapq.heappush(events, (now, chance.randrange(nodes), True, now))
    while events:
        moment, node, is_here, began = heapq.heappop(events)
        cost = costs.of_node(nodes, clients / nodes, here=is_here)
        free_at[node] = max(moment, free_at[node]) + cost
        worked += cost
        delays.append(free_at[node] - began)
        if is_here:
            done = free_at[node] - costs.write * clients / nodes
            for other in set(range(nodes)) - {node}:
                heapq.heappush(events, (done, other, False, began))
    return worked / nodes / seconds, statistics.quantiles(delays, n=100)[98]


class Clients:
    """Sockets that are read and thrown away, by one thread."""

    def __init__(self, nodes: Nodes, count: int) -> None:
        self._selector = selectors.DefaultSelector()
        self._sockets = [RawWebSocket(nodes.port, f"/ws/client-{number}") for number in range(count)]
        for each in self._sockets:
            each.socket.setblocking(False)
            self._selector.register(each.socket, selectors.EVENT_READ)
        self.bytes = 0
        self._stopping = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while not self._stopping:
            for key, _ in self._selector.select(0.2):
                assert isinstance(key.fileobj, socket.socket)
                self.bytes += len(key.fileobj.recv(1 << 20))

    def close(self) -> None:
        """End all of them."""
        self._stopping = True
        self._thread.join()
        for each in self._sockets:
            each.close()


def processor_seconds(nodes: Nodes) -> list[float]:
    """What each node's workers have used so far."""
    return [sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in node.worker_pids()) for node in nodes.all]


@contextmanager
def running(options: argparse.Namespace, count: int, postgres: PostgresServer, redis: str) -> Iterator[Nodes]:
    """So many nodes on a log of their own."""
    env = {"DB_POOL_SIZE": "2", "LOG_LEVEL": "ERROR", **({"REDIS_URL": redis} if options.channel == "redis" else {})}
    with Nodes(postgres.make(), [{}] * count, env=env) as nodes:
        yield nodes


def measured(nodes: Nodes, options: argparse.Namespace, *, clients: int, everywhere: bool) -> list[float]:
    """Processor seconds of one message to all clients, on each node; what an idle node uses is left out."""
    listeners = Clients(nodes, clients)
    try:
        eventually(lambda: len(_online(nodes)) >= clients, within_seconds=30, what="all clients")
        before = processor_seconds(nodes)
        time.sleep(3.0)
        idle = [(after - start) / 3.0 for start, after in zip(before, processor_seconds(nodes), strict=True)]
        ports = [node.port for node in nodes.all] if everywhere else [nodes[0].port]
        with ExitStack() as stack:
            senders = [
                stack.enter_context(connect(f"ws://127.0.0.1:{port}/ws/sender-{port}", max_queue=None))
                for port in ports
            ]
            start, began, sent = processor_seconds(nodes), time.monotonic(), 0
            while (elapsed := time.monotonic() - began) < options.seconds:
                while sent < elapsed * options.rate:
                    body = {"type": "send", "to": "all", "payload": {"text": "x" * 100}}
                    senders[sent % len(senders)].send(json.dumps(body))
                    sent += 1
                time.sleep(0.002)
            _settle(nodes, idle)
            lasted = time.monotonic() - began
            end = processor_seconds(nodes)
    finally:
        listeners.close()
    return [(b - a - i * lasted) / sent for a, b, i in zip(start, end, idle, strict=True)]


def _settle(nodes: Nodes, idle: list[float]) -> None:
    """Wait until all that was sent is worked off: no node does more than when it idles, and a little."""
    while True:
        before = processor_seconds(nodes)
        time.sleep(1.0)
        used = [after - start for start, after in zip(before, processor_seconds(nodes), strict=True)]
        if all(now < 1.5 * quiet + 0.03 for now, quiet in zip(used, idle, strict=True)):
            return


def _online(nodes: Nodes) -> dict[str, Any]:
    found: dict[str, Any] = nodes.call("GET", "/api/status").body["connections"]["by_client"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--rate", type=float, default=100.0, help="messages a second, in all")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--channel", choices=["redis", "notify"], default="redis")
    options = parser.parse_args()
    clients = options.clients
    with ExitStack() as stack:
        postgres = PostgresServer()
        stack.callback(postgres.close)
        postgres.start()
        redis = stack.enter_context(RedisServer()).url if options.channel == "redis" else ""

        def of(count: int, *, clients: int, everywhere: bool) -> list[float]:
            with running(options, count, postgres, redis) as nodes:
                return measured(nodes, options, clients=clients, everywhere=everywhere)

        (few,) = of(1, clients=2, everywhere=True)
        (many,) = of(1, clients=clients, everywhere=True)
        write = (many - few) / (clients - 2)
        first, second = of(2, clients=2, everywhere=False)
        accept = few - 2 * write
        costs = Costs(accept, max(first - accept - write, 0.0), max(second - write, 0.0), write)
        print(
            f"{options.channel}: microseconds of a core for a message: accept {1e6 * costs.accept:.0f},"
            f" tell {1e6 * costs.tell:.0f}, hear {1e6 * costs.hear:.0f}, each client {1e6 * costs.write:.2f}"
        )
        print("\n| nodes | predicted | measured | off by |\n|---|---|---|---|")
        for count in (1, 2, 4):
            found = statistics.fmean(of(count, clients=clients, everywhere=True))
            foretold = costs.mean(count, clients)
            print(
                f"| {count} | {1e6 * foretold:.0f} us | {1e6 * found:.0f} us | {100 * (foretold / found - 1):+.0f} % |",
                flush=True,
            )
    print(f"\n| clients | nodes | messages a second at {BUSY:.0%} | p99 |\n|---|---|---|---|")
    for total in (1_000, 10_000, 100_000):
        for count in (1, 2, 4, 8, 16):
            rate = BUSY / costs.mean(count, total)
            busy, late = simulate(costs, count, total, rate, seconds=min(20.0, 4000 / rate / count + 1))
            print(f"| {total} | {count} | {rate:.0f} | {1000 * late:.0f} ms at {busy:.0%} |")


if __name__ == "__main__":
    main()
