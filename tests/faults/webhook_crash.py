"""The crash test of webhooks: a worker kills itself at a named point, again and again, and every event must still arrive.

    python -m tests.faults.webhook_crash --rounds 50 [--point after-claim] [--workers 4]

While two producers send numbered messages, the point (tests.faults.fail_points) is armed; a worker dies in it and is
replaced; that is a round. Then nothing fails any more, and:

* lost: a message that was acknowledged, and neither reached the receiver nor is in the list of dead deliveries;
* forged: a request whose signature the reference library does not verify over the bytes that came;
* unstable: one message under two webhook-ids, or one id with two bodies;
* turned back: a webhook-timestamp below that of an earlier request with the same id.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path

from standardwebhooks import Webhook, WebhookVerificationError

from bus.testing import HOST, BusServer, eventually
from tests.calls import call
from tests.faults.fail_points import POINTS
from tests.sinks import Sink, Visit, answer

ENV = {
    "WEBHOOK_ALLOWED_TARGETS": "127.0.0.0/8",
    "BUS_EXTENSIONS": "tests.faults.fail_points",
}
ROUND_SECONDS = 60.0
DRAIN_SECONDS = 60.0


@dataclass
class Verdict:
    """What the rounds found. `faults` are sentences; an empty list is a pass."""

    point: str
    rounds: int = 0
    acknowledged: int = 0
    hits: int = 0
    repeated: int = 0
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        end = (
            "nothing lost, forged or turned back"
            if not self.faults
            else f"{len(self.faults)} FAULTS: {self.faults[:5]}"
        )
        return (
            f"{self.point}: {self.rounds} kills, {self.acknowledged} acknowledged, {self.hits} requests,"
            f" {self.repeated} repeats; {end}"
        )


class Producers:
    """Two threads that send numbered messages, and note which were acknowledged."""

    def __init__(self, server: BusServer) -> None:
        self._server = server
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._next = 0
        self.acknowledged: set[int] = set()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(2)]

    def __enter__(self) -> Producers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        connection = http.client.HTTPConnection(HOST, self._server.port, timeout=10)
        while not self._stop.wait(0.005):
            with self._lock:
                self._next += 1
                number = self._next
            body = json.dumps({"from": "p", "to": "c", "payload": {"n": number}})
            try:
                connection.request("POST", "/api/send", body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException):
                connection.close()  # the next request opens another
                self._stop.wait(0.05)
                continue
            if answer.status == 200:
                with self._lock:
                    self.acknowledged.add(number)
        connection.close()


class Receiver:
    """Answers 200, and has the reference library look at each request as it comes: it refuses stamps of five minutes ago."""

    def __init__(self) -> None:
        self.reference: Webhook | None = None
        self.forged: list[str] = []

    def __call__(self, visit: Visit) -> bool | None:
        assert self.reference is not None
        try:
            self.reference.verify(visit.hit.body, visit.hit.headers)
        except WebhookVerificationError as error:
            self.forged.append(f"FORGED: {visit.hit.headers['webhook-id']}: {error}")
        return answer()(visit)


def run(point: str, rounds: int, *, workers: int = 1, seed: int | None = None, broken_by: str | None = None) -> Verdict:
    """Kill a worker at a point so many times, and judge. `broken_by`: an extension that should be found out."""
    verdict = Verdict(point)
    chance = random.Random(seed)
    receiver = Receiver()
    with tempfile.TemporaryDirectory() as folder, Sink(receiver) as sink:
        mark = Path(folder) / "mark"
        mark.touch()
        env = {**ENV, "BUS_FAILPOINT": f"{point}:{chance.randint(1, 20)}", "BUS_FAILPOINT_MARK": str(mark)}
        if broken_by is not None:
            env["BUS_EXTENSIONS"] = f"{broken_by},{env['BUS_EXTENSIONS']}"
        with BusServer(workers=workers, env=env) as server:
            made = call(server, "POST", "/api/webhooks", {"url": sink.url, "events": ["message.sent"],
                                                         "rate": {"count": 1000}})  # fmt: skip
            receiver.reference = Webhook(made["secret"])
            with Producers(server) as producers:
                for _ in range(rounds):
                    mark.unlink()  # armed
                    eventually(mark.exists, within_seconds=ROUND_SECONDS, what=f"a death at {point}")
                    eventually(lambda: _alive(server), within_seconds=ROUND_SECONDS, what="a new worker")
                    verdict.rounds += 1
            _drain(server)
            dead = {_number(server, delivery["id"]) for delivery in _dead(server)}
        verdict.faults += receiver.forged
        _judge(verdict, producers.acknowledged, sink, dead)
    return verdict


def _alive(server: BusServer) -> bool:
    try:
        return server.call("GET", "/api/status", timeout_seconds=5).body["workers"] == server.workers
    except (OSError, http.client.HTTPException, KeyError, TypeError):
        return False


def _drain(server: BusServer) -> None:
    def settled() -> bool:
        hooks = call(server, "GET", "/api/webhooks")["webhooks"]
        return call(server, "GET", f"/api/webhooks/{hooks[0]['id']}/stats")["pending"] == 0

    eventually(settled, within_seconds=DRAIN_SECONDS, what="the end of all deliveries")


def _dead(server: BusServer) -> list[dict[str, str]]:
    return list(call(server, "GET", "/api/webhooks/deliveries", state="dead", limit=1000)["deliveries"])


def _number(server: BusServer, delivery_id: str) -> int:
    return int(call(server, "GET", f"/api/webhooks/deliveries/{delivery_id}")["data"]["payload"]["n"])


def _judge(verdict: Verdict, acknowledged: set[int], sink: Sink, dead: set[int]) -> None:
    numbers: dict[str, tuple[int, bytes]] = {}
    ids: dict[int, str] = {}
    stamps: dict[str, int] = {}
    hits = list(sink.hits)
    for hit in hits:
        event_id, stamp = hit.headers["webhook-id"], int(hit.headers["webhook-timestamp"])
        number = json.loads(hit.body)["data"]["payload"]["n"]
        if numbers.setdefault(event_id, (number, hit.body)) != (number, hit.body):
            verdict.faults.append(f"UNSTABLE: {event_id} came with two bodies.")
        if ids.setdefault(number, event_id) != event_id:
            verdict.faults.append(f"UNSTABLE: message {number} came as {ids[number]} and as {event_id}.")
        if stamp < stamps.get(event_id, 0):
            verdict.faults.append(f"TURNED BACK: {event_id} from {stamps[event_id]} to {stamp}.")
        stamps[event_id] = stamp
    lost = acknowledged - set(ids) - dead
    if lost:
        verdict.faults.append(f"LOST: {len(lost)} acknowledged, among them {sorted(lost)[:10]}.")
    verdict.acknowledged, verdict.hits = len(acknowledged), len(hits)
    verdict.repeated = len(hits) - len(ids)


def main() -> None:
    """Run the rounds, and say what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--point", choices=sorted(POINTS), help="one point; else all, one after another")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int)
    given = parser.parse_args()
    verdicts = []
    for point in [given.point] if given.point else POINTS:
        verdicts.append(run(point, given.rounds, workers=given.workers, seed=given.seed))
        print(verdicts[-1], flush=True)
    sys.exit(any(verdict.faults for verdict in verdicts))


if __name__ == "__main__":
    main()
