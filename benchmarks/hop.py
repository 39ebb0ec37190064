"""What a message pays to cross from one worker to another: ping-pong within a worker and across two, in turn.

    python -m benchmarks.hop --port PORT --pids MASTER,WORKER,…

Which worker took a connection is read from /proc: the server's end of a socket is a file of that process. The client is
Python and the same for both, so only the difference means something. Prints a line of JSON; ephemeral messages.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from contextlib import suppress
from pathlib import Path

from websockets.sync.client import ClientConnection, connect

CONNECTIONS_AT_MOST = 200
TURN_MESSAGES = 50


def owners(server_port: int, pids: list[int]) -> dict[int, int]:
    """Of each connection, by the client's port, the process that holds the server's end."""
    inode_of_client = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        local, remote = (int(fields[column].split(":")[1], 16) for column in (1, 2))
        if local == server_port:
            inode_of_client[fields[9]] = remote
    found = {}
    for pid in pids:
        for file in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                inode = os.readlink(file).removeprefix("socket:[").removesuffix("]")
                if inode in inode_of_client:
                    found[inode_of_client[inode]] = pid
    return found


def cast_of(port: int, pids: list[int]) -> tuple[ClientConnection, ClientConnection, ClientConnection]:
    """A publisher, a subscriber on the same worker (id `near`), and one on another (id `far`)."""
    url = f"ws://127.0.0.1:{port}/ws/"
    publisher = connect(url + "publisher", compression=None)
    publisher.recv()
    near: ClientConnection | None = None
    far: ClientConnection | None = None
    spare = []
    for _ in range(CONNECTIONS_AT_MOST):
        missing = "near" if near is None else "far"
        candidate = connect(url + missing, compression=None)
        candidate.recv()
        of = owners(port, pids)
        same = of[candidate.local_address[1]] == of[publisher.local_address[1]]
        if near is None and same:
            near = candidate
        elif near is not None and far is None and not same:
            far = candidate
        else:
            spare.append(candidate)
            candidate.close()
        if near is not None and far is not None:
            return publisher, near, far
    raise SystemExit("All connections came to one worker; a hop needs two workers that take some each.")


def ping(publisher: ClientConnection, subscriber: ClientConnection, to: str) -> list[float]:
    """Milliseconds from send to receipt, TURN_MESSAGES times."""
    took = []
    for n in range(TURN_MESSAGES):
        text = json.dumps({"type": "send", "to": to, "ephemeral": True, "payload": n})
        began = time.perf_counter_ns()
        publisher.send(text)
        answer = subscriber.recv(timeout=5)
        took.append((time.perf_counter_ns() - began) / 1e6)
        if json.loads(answer)["message"]["payload"] != n:
            raise SystemExit(f"Message {n} did not come in its turn: {answer!r}")
    return took


def main() -> None:
    """Ping in turns until the time is up."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--pids", type=lambda text: [int(pid) for pid in text.split(",")], required=True)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--warm-seconds", type=float, default=0.5)
    given = parser.parse_args()
    publisher, near, far = cast_of(given.port, given.pids)
    within: list[float] = []
    across: list[float] = []
    counts_from = time.monotonic() + given.warm_seconds
    while time.monotonic() < counts_from + given.seconds or not across:
        turn = ping(publisher, near, "near"), ping(publisher, far, "far")
        if time.monotonic() >= counts_from:
            within += turn[0]
            across += turn[1]
    figures = {
        "within_p50_ms": statistics.median(within),
        "across_p50_ms": statistics.median(across),
        "within_p99_ms": statistics.quantiles(within, n=100)[98],
        "across_p99_ms": statistics.quantiles(across, n=100)[98],
        "hop_ms": statistics.median(across) - statistics.median(within),
    }
    print(json.dumps({name: round(figure, 4) for name, figure in figures.items()}))
    for socket in (publisher, near, far):
        socket.close()


if __name__ == "__main__":
    main()
