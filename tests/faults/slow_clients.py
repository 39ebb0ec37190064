"""What slow clients cost the others: latency of sends and reads, beside thousands of connections that hardly move.

    python -m tests.faults.slow_clients [--clients 2000] [--seconds 10] [--workers 1]

One process opens the slow connections, all from 127.0.0.1, and has each send or take one byte a second; whom the server
ends comes back. They never finish a head, or a body (of the lane's and of Flask's), or leave an answer unread. Another
one, at 127.0.0.2, sends and reads a hundred times a second. The verdict compares its p99 with that on a quiet server,
each the best of its rounds: what the machine does besides is not the server's. Exit code 1: more than twice.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import http.client
import json
import multiprocessing
import socket
import statistics
import sys
import time
from dataclasses import dataclass, field
from multiprocessing.synchronize import Event

from bus.testing import HOST, BusServer

OTHER = "127.0.0.2"
RATE = 100
ROUNDS = 3
AT_MOST = 2.0
PAGE_MESSAGES, PAYLOAD_BYTES = 30, 10_000

HEAD = b"POST /api/send HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
BODY = HEAD + b"Content-Length: 100000\r\n\r\n{"
ATTACKS: dict[str, bytes] = {
    "heads": HEAD + b"X-Slow: ",
    "heads to Flask": b"GET /api/status HTTP/1.1\r\nHost: localhost\r\nX-Slow: ",
    "bodies": BODY,
    "bodies to Flask": BODY.replace(b"\r\n\r\n", b"\r\nCookie: a=b\r\n\r\n"),
    "reads": b"GET /api/messages?to=slow&since=earliest&limit=1000 HTTP/1.1\r\nHost: localhost\r\n\r\n",
}
"""What each slow connection begins with."""


@dataclass
class Crowd:
    """Connections that hardly move. `ended` counts those that the server ended, or refused."""

    port: int
    attack: str
    open: list[socket.socket] = field(default_factory=list)
    ended: int = 0

    def grow(self, size: int) -> None:
        """Open what is missing."""
        while len(self.open) < size:
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.settimeout(5)
            try:
                sock.connect((HOST, self.port))
                sock.sendall(ATTACKS[self.attack])
            except OSError:
                self.ended += 1
                sock.close()
                return
            sock.setblocking(False)
            self.open.append(sock)

    def move(self) -> None:
        """One byte of each; who was ended goes."""
        left = []
        for sock in self.open:
            if self._moves(sock):
                left.append(sock)
            else:
                self.ended += 1
                sock.close()
        self.open = left

    def _moves(self, sock: socket.socket) -> bool:
        try:
            if self.attack != "reads":
                sock.send(b"x")
            return sock.recv(1) != b"" and self.attack == "reads"  # an answer to the others is their end
        except OSError as error:
            return error.errno == errno.EAGAIN


def crowd(port: int, attack: str, size: int, grown: Event, over: Event) -> None:
    """Be slow until told that it is over."""
    slow = Crowd(port, attack)
    slow.grow(size)
    for sock in slow.open if attack == "reads" else ():
        sock.setblocking(True)
        sock.recv(1)  # now the server is through with it, but for what it can't send
        sock.setblocking(False)
    grown.set()
    while not over.wait(1.0):
        slow.move()
        slow.grow(size)
    for sock in slow.open:
        sock.close()
    print(f"  {slow.ended} of them were ended or refused meanwhile")


def latencies(port: int, seconds: float) -> list[float]:
    """Milliseconds of a send and a read in turn, RATE times a second, from another address."""
    connection = http.client.HTTPConnection(HOST, port, timeout=30, source_address=(OTHER, 0))
    body = json.dumps({"from": "other", "to": "reader", "payload": 1})
    taken = []
    begin = time.monotonic()
    for number in range(int(seconds * RATE)):
        time.sleep(max(begin + number / RATE - time.monotonic(), 0))
        at = time.perf_counter()
        if number % 2:
            connection.request("GET", "/api/messages?to=other&limit=10")
        else:
            connection.request("POST", "/api/send", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        taken.append((time.perf_counter() - at) * 1000)
        assert answer.status == 200, answer.status
    connection.close()
    return taken


def p99(port: int, seconds: float) -> float:
    """The best of some rounds' 99th percentiles."""
    return min(statistics.quantiles(latencies(port, seconds / ROUNDS), n=100)[98] for _ in range(ROUNDS))


def run(clients: int, seconds: float, workers: int, attacks: list[str]) -> dict[str, tuple[float, float]]:
    """For each attack, the p99 of others in milliseconds, on a quiet server and beside the crowd."""
    context = multiprocessing.get_context("spawn")
    found = {}
    with BusServer(workers=workers, env={"INBOX_LIMIT": "1000000"}) as server:
        messages = [{"from": "other", "to": "slow", "payload": "x" * PAYLOAD_BYTES}] * PAGE_MESSAGES
        assert server.call("POST", "/api/send/batch", {"messages": messages}).status == 200
        latencies(server.port, 2.0)
        for attack in attacks:
            quiet = p99(server.port, seconds)
            grown, over = context.Event(), context.Event()
            process = context.Process(target=crowd, args=(server.port, attack, clients, grown, over))
            process.start()
            try:
                assert grown.wait(120)
                found[attack] = quiet, p99(server.port, seconds)
            finally:
                over.set()
                process.join(60)
            print(
                f"{attack}: p99 {found[attack][0]:.1f} ms alone, {found[attack][1]:.1f} ms beside {clients}", flush=True
            )
        assert "Traceback" not in server.log
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--attack", choices=list(ATTACKS), action="append")
    given = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        found = run(given.clients, given.seconds, given.workers, given.attack or list(ATTACKS))
        worst = max(beside / quiet for quiet, beside in found.values())
        print(f"worst: {worst:.2f} times")
        sys.exit(worst > AT_MOST)


if __name__ == "__main__":
    main()
