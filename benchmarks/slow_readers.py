"""What 100 clients that stop reading cost 100 healthy ones: the healthy p50 and p99, with and without them, in turn.

    python -m benchmarks.slow_readers [--rounds 3] [--seconds 10]

One sender sends RATE messages a second to `all`; every healthy client gets each. A latency runs from the moment a message
was due to the moment its bytes were read. The stuck clients have connected and never read; the first WARM_SECONDS, in which
what is held for them fills up, are not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import selectors
import socket
import statistics
import threading
import time

from websockets.sync.client import ClientConnection, connect

from bus.testing import BusServer

HEALTHY = STUCK = 100
RATE = 500
WARM_SECONDS = 4
PAD = "x" * 1000
_DUE = re.compile(rb'"due": (\d+)')


def upgrade(server: BusServer, client: str, receive_buffer: int | None = None) -> socket.socket:
    """A WebSocket after its handshake, as a plain socket: what is read of it is only counted."""
    plain = socket.socket()
    if receive_buffer is not None:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    plain.connect(("127.0.0.1", server.port))
    key = "dGhlIHNhbXBsZSBub25jZQ=="
    plain.sendall(
        f"GET /ws/{client} HTTP/1.1\r\nHost: localhost:{server.port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
    )
    return plain


def produce(sender: ClientConnection, seconds: float) -> None:
    """Send on schedule: a late one still counts from when it was due."""
    began = time.monotonic_ns()
    for n in range(int(RATE * seconds)):
        due = began + n * 1_000_000_000 // RATE
        time.sleep(max(0.0, (due - time.monotonic_ns()) / 1e9))
        sender.send(json.dumps({"type": "send", "to": "all", "payload": {"due": due, "pad": PAD}}))


def measure(seconds: float, stuck: int) -> tuple[float, float, int, int]:
    """(p50 ms, p99 ms, messages that the healthy got, server memory in KiB at the end)."""
    with BusServer(env={"INBOX_LIMIT": "1000000", "LOG_LEVEL": "ERROR"}) as server:
        idle = [upgrade(server, f"stuck-{n}", receive_buffer=4096) for n in range(stuck)]
        selector = selectors.DefaultSelector()
        for n in range(HEALTHY):
            healthy = upgrade(server, f"healthy-{n}")
            healthy.setblocking(False)
            selector.register(healthy, selectors.EVENT_READ)
        with connect(f"{server.ws_url}/ws/sender") as sender:
            producer = threading.Thread(target=produce, args=(sender, seconds))
            producer.start()
            counted_from = time.monotonic_ns() + WARM_SECONDS * 1_000_000_000
            latencies = read_all(selector, counted_from, time.monotonic() + seconds + 1)
            producer.join()
            memory = resident_kib(server.worker_pids())
        for plain in idle:
            plain.close()
        for entry in list(selector.get_map().values()):
            entry.fileobj.close()  # type: ignore[union-attr]
    cuts = statistics.quantiles(latencies, n=100)
    return cuts[49] / 1e6, cuts[98] / 1e6, len(latencies), memory


def read_all(selector: selectors.BaseSelector, counted_from: int, until: float) -> list[int]:
    """The latencies, in nanoseconds, of what is due from one moment (ns) and arrives until another (s), monotonic."""
    latencies: list[int] = []
    while time.monotonic() < until:
        for entry, _ in selector.select(0.1):
            data = entry.fileobj.recv(262144)  # type: ignore[union-attr]
            now = time.monotonic_ns()
            latencies += [now - int(due) for due in _DUE.findall(data) if int(due) >= counted_from]
    return latencies


def resident_kib(pids: list[int]) -> int:
    """The resident memory of these processes."""
    pages = 0
    for pid in pids:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            pages += int(file.read().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    ratios = []
    print("| round | stuck | p50 ms | p99 ms | deliveries counted | server KiB |\n|---|---|---|---|---|---|")
    for number in range(1, options.rounds + 1):
        p99 = {}
        for stuck in (0, STUCK):
            p50, p99[stuck], received, memory = measure(options.seconds, stuck)
            print(f"| {number} | {stuck} | {p50:.2f} | {p99[stuck]:.2f} | {received} | {memory} |", flush=True)
        ratios.append(p99[STUCK] / p99[0])
    print(f"\np99 with {STUCK} stuck clients to p99 without: median {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
