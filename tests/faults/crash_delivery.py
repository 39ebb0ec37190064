"""The crash test of acks, queues, delays and requests: `kill -9` of workers and servers while everything is in hands.

    python -m tests.faults.crash_delivery --rounds 300 [--seed N]

Producers send plain, delayed, tracked and queued messages under idempotency keys, and ask questions, over REST and
WebSocket; consumers ack, nack, release, reject, ask for more time, forget, die and say goodbye, with leases of 0.5 to
2 s; responders answer. Each round a worker, or the whole server, is killed at a random moment and comes back. In the
end everything drains. Then (tests.faults.judgement):

* lost: an acknowledged message that is not in the log, that a recipient neither acked nor has as a dead letter for a
  reason that somebody gave, or that comes again after its ack was answered; a reply that can't be fetched;
* doubled: one key, and two ids; one attempt at an item, given twice; an item in two hands within one lease;
* early: a delayed message before its time; stuck: a lease, or anything else, that is still open when all is over;
* of plain messages, disorder.

Rests after a failure are shortened (tests.faults.short_backoff): 5 s, 30 s and 2 min would make the rounds wait.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import random
import sqlite3
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from bus.testing import BusServer, ServerFailed, eventually, gunicorn
from tests.faults.consumers import Claimer, Consumer, QueueConsumer, Reader, Responder
from tests.faults.crash import whole_log
from tests.faults.judgement import Judgement, Remains, shortened
from tests.faults.parties import Party, Rest, Stage, now
from tests.faults.producers import INBOXES, READERS, RESPONDERS, RestAsker, RestProducer, SocketAsker, SocketProducer

ROUNDS_A_LIFE = 10
JOIN_SECONDS = 30.0
PATIENCE_SECONDS = 15.0
"""How long the bus may take to drain, when everybody acks: the longest lease is 2 s, and so is the longest delay."""


@dataclass
class Verdict:
    """What the rounds found. `faults` are sentences; an empty list is a pass. `dead`: dead letters by reason."""

    rounds: int = 0
    acknowledged: int = 0
    unknown: int = 0
    taken: int = 0
    acked: int = 0
    replied: int = 0
    drained_seconds: float = 0.0
    dead: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.dead.items())) or "none"
        return (
            f"{self.rounds} rounds: {self.acknowledged} acknowledged, {self.unknown} unknown, {self.taken} handed over,"
            f" {self.acked} acks answered, {self.replied} replies, dead letters: {reasons},"
            f" drained in {self.drained_seconds:.1f} s; {len(self.faults) or 'no'} FAULTS"
        )


def cast_of(stage: Stage) -> tuple[list[Party], list[Party]]:
    """Producers, and consumers. inbox-1 has two connections, inbox-2 settles over REST."""
    producers: list[Party] = [
        RestProducer(stage, "sender-0"),
        RestProducer(stage, "sender-1"),
        SocketProducer(stage, "sender-2"),
        SocketProducer(stage, "sender-3"),
        RestAsker(stage, "asker-0"),
        SocketAsker(stage, "asker-1"),
    ]
    consumers: list[Party] = [
        Consumer(stage, READERS[0]),
        Consumer(stage, READERS[1]),
        Reader(stage, READERS[2]),
        Consumer(stage, INBOXES[0]),
        Consumer(stage, INBOXES[1]),
        Consumer(stage, INBOXES[1]),
        Consumer(stage, INBOXES[2], settles_by_rest=True),
        QueueConsumer(stage, "worker-0"),
        QueueConsumer(stage, "worker-1"),
        Claimer(stage, "claimer-0"),
        Claimer(stage, "claimer-1"),
        *(Responder(stage, name) for name in RESPONDERS),
    ]
    return producers, consumers


def run(
    rounds: int,
    *,
    workers: int,
    extensions: str = "",
    seed: int | None = None,
    patience_seconds: float = PATIENCE_SECONDS,
) -> Verdict:
    """`rounds` kills on one server life with `workers`; then the verdict. `extensions` are loaded besides."""
    chance = random.Random(seed)
    loaded = ",".join(filter(None, ("tests.faults.short_backoff", extensions)))
    settings = {"INBOX_LIMIT": "100000000", "LOG_LEVEL": "ERROR", "BUS_EXTENSIONS": loaded}
    with BusServer(command=gunicorn(workers), env=settings) as server:
        stage = Stage(server)
        producers, consumers = cast_of(stage)
        for party in (*producers, *consumers):
            party.thread.start()
        try:
            for _ in range(rounds):
                _round(stage, workers, chance)
            stage.over.wait(chance.uniform(0.1, 0.5))
            verdict = Verdict(rounds)
            _drain(stage, producers, verdict, patience_seconds)
        finally:
            stage.over.set()
            for party in (*producers, *consumers):
                party.thread.join(JOIN_SECONDS)
        _judge(stage, verdict)
    return verdict


def _round(stage: Stage, workers: int, chance: random.Random) -> None:
    stage.over.wait(chance.uniform(0.1, 1.2))
    server = stage.server
    pids = server.worker_pids()
    if workers > 1 and pids and chance.random() < 0.6:
        server.kill_worker(chance.choice(pids))
    else:
        server.kill()
        server.start()


def _drain(stage: Stage, producers: list[Party], verdict: Verdict, patience_seconds: float) -> None:
    """Let everything come to its end. What does not is a fault: of a lease that is not given up, above all."""
    stage.enough.set()
    for party in producers:
        party.thread.join(JOIN_SECONDS)
        if party.thread.is_alive():
            verdict.faults.append(f"{party.name} got no answer within {JOIN_SECONDS:.0f} s")
    stage.calm.set()
    began = now()
    try:
        eventually(lambda: _is_drained(stage), within_seconds=patience_seconds, what="that all is delivered and acked")
    except TimeoutError:
        _, status, _ = stage.server.call("GET", "/api/status")
        queues = [(queue["queue"], queue["depth"], queue["in_flight"]) for queue in _queues(stage.server)]
        verdict.faults.append(f"STUCK: {status['pending_acks']} pending acks, queues (depth, in flight): {queues}")
    verdict.drained_seconds = now() - began


def _is_drained(stage: Stage) -> bool:
    if _scheduled(stage.server):
        return False
    sent = stage.evidence.acknowledged()
    taken = {taken.key for taken in list(stage.evidence.taken)}
    if any(not one.is_tracked and one.key not in taken for one in sent):
        return False
    if any(queue["in_flight"] or queue["depth"] for queue in _queues(stage.server)):
        return False
    pending: int = stage.server.call("GET", "/api/status").body["pending_acks"]
    return pending == 0


def _scheduled(server: BusServer) -> int:
    """How many messages wait for their time: no call tells it, so the store is asked."""
    with contextlib.closing(sqlite3.connect(f"file:{server.data_dir}/bus.db?mode=ro", uri=True)) as store:
        count: int = store.execute("SELECT count(*) FROM scheduled").fetchone()[0]
    return count


def _queues(server: BusServer) -> list[dict[str, Any]]:
    queues: list[dict[str, Any]] = server.call("GET", "/api/queues").body["queues"]
    return queues


def _judge(stage: Stage, verdict: Verdict) -> None:
    evidence = stage.evidence
    judgement = Judgement(evidence, _remains(stage))
    verdict.faults += judgement.faults
    verdict.dead = judgement.reasons
    verdict.acknowledged = len(evidence.acknowledged())
    verdict.unknown = sum(sent.message_id is None and sent.refusal is None for sent in evidence.sent.values())
    verdict.taken = len(evidence.taken)
    verdict.acked = sum(said.status == "acked" for taken in evidence.taken for said in taken.said)
    verdict.replied = len(evidence.replied)


def _remains(stage: Stage) -> Remains:
    """Ask the bus for all that it knows."""
    rest = Rest(stage.server.port)
    try:
        log = whole_log(stage.server)
        letters = {(letter["id"], letter["owner"]): letter for letter in _letters(rest)}
        states = {}
        for message_id in {message["id"] for message in log if message["requires_ack"]}:
            _, body = rest.call("GET", f"/api/messages/{message_id}")
            for recipient in body.get("recipients", []):
                states[message_id, recipient["client"]] = recipient["state"]
        asked = list(stage.evidence.replied)
        requests = {request_id: rest.call("GET", f"/api/requests/{request_id}")[1] for request_id in asked}
        return Remains(log, letters, states, requests)
    finally:
        rest.close()


def _letters(rest: Rest) -> list[dict[str, Any]]:
    letters: list[dict[str, Any]] = []
    cursor, more = "", True
    while more:
        _, page = rest.call("GET", f"/api/dead-letters?limit=1000&cursor={cursor}")
        letters += page["dead_letters"]
        cursor, more = page["cursor"], page["more"]
    return letters


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    logging.getLogger("websockets").setLevel(logging.CRITICAL)  # it complains of sockets that are cut on purpose
    began, bad, done, acknowledged = time.monotonic(), 0, 0, 0
    while done < options.rounds:
        workers = 4 if done // ROUNDS_A_LIFE % 2 else 1
        rounds = min(ROUNDS_A_LIFE, options.rounds - done)
        done += rounds
        try:
            verdict = run(rounds, workers=workers, seed=None if options.seed is None else options.seed + done)
        except ServerFailed as failure:
            print(f"{workers} workers: the server did not come back: {failure}", flush=True)
            return 1
        print(f"{workers} worker{'s' if workers > 1 else ''}: {verdict}", flush=True)
        for fault in shortened(verdict.faults):
            print(f"    {fault}", flush=True)
        bad += len(verdict.faults)
        acknowledged += verdict.acknowledged
    seconds = time.monotonic() - began
    print(f"{done} rounds in {seconds:.0f} s, {acknowledged} acknowledged, {bad} faults of delivery")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
