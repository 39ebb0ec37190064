"""The crash test: `kill -9` of workers and of the whole server under load, and a verdict on what was acknowledged.

    python -m tests.faults.crash --rounds 300 [--seed N] [--store postgresql]

Each round four producers (two over WebSocket, two over REST) send numbered messages to four consumers (two over
WebSocket, resuming by the cursor that the bus keeps; two polling REST by cursor), on 1 or 4 workers, while a worker
or the whole server is killed at a random moment and comes back; on PostgreSQL, mostly that (`immediate`). Then:

* lost: a message that was acknowledged to its producer and reached the log or its consumer never; told apart as
  prefix (before everything that arrived of that producer and recipient), middle, or postfix;
* disordered: of one producer and one recipient, a first delivery with a lower number than the one before it;
* doubled: one message twice in the log, or twice with different ids at a consumer;
* a seq that does not rise.

A producer never sends a number twice: what was under way at a kill may be in the log or not, but only once.
Acks, queues, delays and requests have a crash test of their own, tests.faults.crash_delivery.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import sys
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from bus.testing import BusServer, ServerFailed, eventually, gunicorn
from tests.databases import PostgresServer

CONSUMERS = ("c-ws-0", "c-ws-1", "c-rest-0", "c-rest-1")
WINDOW = 32
"""Sends that a WebSocket producer has under way."""

BROKEN = (OSError, WebSocketException, http.client.HTTPException, EOFError, TimeoutError, ValueError)
Pair = tuple[str, str]


@dataclass
class Verdict:
    """What the rounds found. `faults` are sentences; an empty list is a pass."""

    rounds: int = 0
    acknowledged: int = 0
    delivered: int = 0
    repeated: int = 0
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        head = (
            f"{self.rounds} rounds: {self.acknowledged} acknowledged, {self.delivered} delivered,"
            f" {self.repeated} repeats dropped by id; "
        )
        return head + ("nothing lost, disordered or doubled" if not self.faults else f"{len(self.faults)} FAULTS")


class Load:
    """The producers and consumers of one server life, over all its rounds."""

    def __init__(self, server: BusServer) -> None:
        self.server = server
        self.stop_producing = threading.Event()
        self.stop = threading.Event()
        self.acknowledged: dict[Pair, list[int]] = defaultdict(list)
        self.received: dict[str, list[dict[str, Any]]] = {name: [] for name in CONSUMERS}
        self.repeated = 0
        self._counters: dict[Pair, int] = defaultdict(int)
        self._threads = [
            threading.Thread(target=self._persist, args=(work, name), daemon=True)
            for work, name in (
                *((self._produce_ws, f"p-ws-{i}") for i in range(2)),
                *((self._produce_rest, f"p-rest-{i}") for i in range(2)),
                *((self._consume_ws, f"c-ws-{i}") for i in range(2)),
                *((self._consume_rest, f"c-rest-{i}") for i in range(2)),
            )
        ]
        self._seen: dict[str, set[str]] = {name: set() for name in CONSUMERS}
        self._cursors: dict[str, str] = dict.fromkeys(CONSUMERS, "earliest")

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def finish(self, patience_seconds: float) -> None:
        """Stop producing, let the consumers catch up with the log, stop them."""
        self.stop_producing.set()
        for thread in self._threads[:4]:
            thread.join(30)
        deadline = time.monotonic() + patience_seconds
        missing = True
        while missing and time.monotonic() < deadline:
            missing = any(self._missing(pair) for pair in list(self.acknowledged))
            self.stop.wait(0.05)
        self.stop.set()
        for thread in self._threads[4:]:
            thread.join(30)

    def _missing(self, pair: Pair) -> set[int]:
        producer, consumer = pair
        got = {m["payload"]["n"] for m in list(self.received[consumer]) if m["from"] == producer}
        return set(self.acknowledged[pair]) - got

    def _persist(self, work: Any, name: str) -> None:
        """Run `work` again whenever the server broke it."""
        over = self.stop_producing if name.startswith("p-") else self.stop
        while not over.is_set():
            try:
                work(name)
            except BROKEN:
                over.wait(0.02)

    def _next(self, producer: str) -> tuple[str, dict[str, Any]]:
        consumer = random.choice(CONSUMERS)
        self._counters[producer, consumer] += 1
        return consumer, {"n": self._counters[producer, consumer], "pad": "x" * random.choice((10, 200, 2000))}

    # ---- producers

    def _produce_ws(self, name: str) -> None:
        with connect(f"{self.server.ws_url}/ws/{name}", open_timeout=5, close_timeout=1) as socket:
            socket.recv(timeout=5)
            under_way: dict[int, tuple[str, int]] = {}
            ref = 0
            while not self.stop_producing.is_set() or under_way:
                while len(under_way) < WINDOW and not self.stop_producing.is_set():
                    consumer, payload = self._next(name)
                    ref += 1
                    under_way[ref] = (consumer, payload["n"])
                    socket.send(json.dumps({"type": "send", "to": consumer, "payload": payload, "ref": ref}))
                frame = json.loads(socket.recv(timeout=5))
                if frame["type"] == "sent":
                    consumer, number = under_way.pop(frame["ref"])
                    self.acknowledged[name, consumer].append(number)
                elif frame["type"] == "error":
                    under_way.pop(frame["ref"])

    def _produce_rest(self, name: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=10)
        try:
            while not self.stop_producing.is_set():
                consumer, payload = self._next(name)
                body = json.dumps({"from": name, "to": consumer, "payload": payload})
                connection.request("POST", "/api/send", body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                answer.read()
                if answer.status == 200:
                    self.acknowledged[name, consumer].append(payload["n"])
        finally:
            connection.close()

    # ---- consumers

    def _consume_ws(self, name: str) -> None:
        with connect(f"{self.server.ws_url}/ws/{name}", open_timeout=5, close_timeout=1) as socket:
            while not self.stop.is_set():
                try:
                    frame = json.loads(socket.recv(timeout=0.2))
                except TimeoutError:
                    continue
                if frame["type"] == "message":
                    self._take(name, frame["message"])

    def _consume_rest(self, name: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=10)
        try:
            while not self.stop.is_set():
                connection.request("GET", f"/api/messages?to={name}&since={self._cursors[name]}&limit=500&wait=0.2")
                answer = connection.getresponse()
                page = json.loads(answer.read())
                if answer.status != 200:
                    raise ValueError(page)
                for message in page["messages"]:
                    self._take(name, message)
                self._cursors[name] = page["cursor"]
        finally:
            connection.close()

    def _take(self, name: str, message: dict[str, Any]) -> None:
        if message["id"] in self._seen[name]:
            self.repeated += 1
            return
        self._seen[name].add(message["id"])
        self.received[name].append(message)


def judge(load: Load, log: list[dict[str, Any]]) -> list[str]:
    """The faults of one server life; `log` is its whole log."""
    faults: list[str] = []
    seqs = [message["seq"] for message in log]
    if any(later <= earlier for earlier, later in pairwise(seqs)):
        faults.append("the log's seqs do not rise")
    in_log: dict[Pair, list[int]] = defaultdict(list)
    for message in log:
        in_log[message["from"], message["to"]].append(message["payload"]["n"])
    for consumer, messages in load.received.items():
        if any(b["seq"] <= a["seq"] for a, b in pairwise(messages)):
            faults.append(f"{consumer}: a first delivery with a seq that does not rise")
    for pair, acknowledged in load.acknowledged.items():
        producer, consumer = pair
        got = [m["payload"]["n"] for m in load.received[consumer] if m["from"] == producer]
        for where, numbers in (("the log", in_log[pair]), (f"{consumer}", got)):
            faults += _compare(f"{producer} -> {where}", acknowledged, numbers)
    return faults


def _compare(what: str, acknowledged: list[int], numbers: list[int]) -> list[str]:
    faults = []
    if len(set(numbers)) != len(numbers):
        faults.append(f"{what}: doubled")
    if numbers != sorted(numbers):
        faults.append(f"{what}: disordered")
    lost = sorted(set(acknowledged) - set(numbers))
    if lost:
        first, last = (min(numbers), max(numbers)) if numbers else (0, 0)
        kind = "prefix" if lost[-1] < first else "postfix" if lost[0] > last else "middle"
        faults.append(f"{what}: LOST {len(lost)} acknowledged ({kind}), the first is {lost[0]}")
    return faults


def whole_log(server: BusServer) -> list[dict[str, Any]]:
    """Every message of the log, page by page. A worker whose database is just back may refuse for a moment."""
    messages: list[dict[str, Any]] = []
    cursor, more = "earliest", True

    def page_behind(cursor: str) -> dict[str, Any] | None:
        answer = server.call("GET", f"/api/log?limit=1000&since={cursor}")
        return answer.body if answer.status == 200 else None

    while more:
        page = eventually(partial(page_behind, cursor), what="a page of the log")
        messages += page["messages"]
        cursor, more = page["cursor"], page["more"]
    return messages


def run(
    rounds: int,
    *,
    workers: int,
    env: dict[str, str] | None = None,
    seed: int | None = None,
    patience_seconds: float = 30.0,
    postgresql: PostgresServer | None = None,
) -> Verdict:
    """`rounds` kills on one server life with `workers`; then the verdict. With `postgresql`, most of the kills are its."""
    chance = random.Random(seed)
    verdict = Verdict(rounds)
    settings = {"INBOX_LIMIT": "100000000", "LOG_LEVEL": "ERROR", **(env or {})}
    url = postgresql.make() if postgresql is not None else None
    with BusServer(command=gunicorn(workers), env=settings, database_url=url) as server:
        load = Load(server)
        load.start()
        for _ in range(rounds):
            load.stop.wait(chance.uniform(0.2, 0.7))
            pids = server.worker_pids()
            if postgresql is not None and chance.random() < 0.7:
                postgresql.stop("immediate")
                load.stop.wait(chance.uniform(0.0, 1.0))
                postgresql.start()
                _wait_for_a_send(server)
            elif workers > 1 and pids and chance.random() < 0.6:
                server.kill_worker(chance.choice(pids))
            else:
                server.kill()
                server.start()
        load.stop.wait(0.3)
        load.finish(patience_seconds)
        verdict.faults = judge(load, whole_log(server))
        verdict.acknowledged = sum(map(len, load.acknowledged.values()))
        verdict.delivered = sum(map(len, load.received.values()))
        verdict.repeated = load.repeated
    return verdict


def _wait_for_a_send(server: BusServer) -> None:
    """The bus works again within 5 s after its database. Raises ServerFailed."""
    body = {"from": "p-probe", "to": "c-probe", "payload": {"n": 0}}

    def is_taken() -> bool:
        try:
            return server.call("POST", "/api/send", body).status == 200
        except BROKEN:  # a worker that was killed in the round before had taken the connection
            return False

    try:
        eventually(is_taken, within_seconds=5, what="a send's 200")
    except TimeoutError as error:
        raise ServerFailed(f"{error}\n{server.log[-2000:]}") from None


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--store", choices=["sqlite", "postgresql"], default="sqlite")
    options = parser.parse_args()
    postgresql = PostgresServer(durable=True).start() if options.store == "postgresql" else None
    bad = 0
    done = 0
    while done < options.rounds:
        for workers in (1, 4):
            rounds = min(10, options.rounds - done)
            if rounds <= 0:
                break
            done += rounds
            try:
                seed = None if options.seed is None else options.seed + done
                verdict = run(rounds, workers=workers, seed=seed, postgresql=postgresql)
            except ServerFailed as failure:
                print(f"{workers} workers: the server did not come back: {failure}", flush=True)
                return 1
            print(f"{workers} worker{'s' if workers > 1 else ''}: {verdict}", flush=True)
            for fault in verdict.faults:
                print(f"    {fault}", flush=True)
            bad += len(verdict.faults)
    print(f"{done} rounds, {bad} faults")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
