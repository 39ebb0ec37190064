"""One random history against a running server, with workers and servers killed under it, and what must hold at its end.

Everything goes over REST, by one thread, so the order of what was said is known. An answer that a kill took away leaves
a send to be repeated under its key, and a verdict in doubt.
"""

from __future__ import annotations

import http.client
import random
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from bus.testing import BusServer, eventually

BROKEN = (OSError, http.client.HTTPException, ValueError)
CONSUMERS = ("ann", "bob")
VERDICTS = ("ack", "ack", "nack", "release", "reject", "forget", "forget")
PATIENCE_SECONDS = 40.0
LEASES = (0.3, 0.6, 1.0)


@dataclass
class ServerHistory:
    """`given`: (id, attempt) of everything put into hands, in order. `doubted`: ids of which a verdict was not answered."""

    server: BusServer
    name: str
    chance: random.Random
    sent: set[str] = field(default_factory=set)
    acked: set[str] = field(default_factory=set)
    rejected: set[str] = field(default_factory=set)
    doubted: set[str] = field(default_factory=set)
    given: list[tuple[str, int]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    keys: int = 0

    @property
    def queue(self) -> str:
        return f"jobs-{self.name}"

    def run(self, steps: int, kills: int) -> None:
        """Do random steps, kill now and then, drain, and judge."""
        moments = set(self.chance.sample(range(steps), kills))
        for step in range(steps):
            if step in moments:
                self.kill()
            if self.chance.random() < 0.5:
                self.send()
            else:
                self.work(self.chance.choice(VERDICTS))
        eventually(self.is_drained, within_seconds=PATIENCE_SECONDS, what=f"the end of {self.queue}")
        self.judge()

    def kill(self) -> None:
        """Kill one worker, or all there is; a killed server is started again, a worker by its master."""
        if self.chance.random() < 0.6:
            self.server.kill_worker(self.chance.choice(self.server.worker_pids()))
        else:
            self.server.kill()
            self.server.start()

    def send(self) -> None:
        """Send one item; repeat it under its key until it is answered."""
        self.keys += 1
        body = {
            "from": "giver",
            "to": f"queue:{self.queue}",
            "payload": self.keys,
            "priority": self.chance.choice(("high", "normal", "bulk")),
            "ack_wait": self.chance.choice(LEASES),
            "idempotency_key": f"{self.name}-{self.keys}",
        }
        if self.chance.random() < 0.2:
            body["delay"] = 0.3
        receipt = eventually(lambda: self.call("POST", "/api/send", body), what="the answer to a send")
        self.sent.add(receipt["message_id"])

    def work(self, verdict: str) -> None:
        """Take an item, if one waits, and say something of it, or nothing."""
        client = self.chance.choice(CONSUMERS)
        claimed = self.call("POST", f"/api/queues/{self.queue}/claim", {"client": client})
        for message in claimed["messages"] if claimed else ():
            attempt = message.get("attempt", 1)
            if message["id"] in self.acked:
                self.faults.append(f"{message['id']} came again after its ack was answered")
            self.given.append((message["id"], attempt))
            if verdict != "forget":
                self.settle(verdict, message["id"], client, attempt)

    def settle(self, verb: str, message_id: str, client: str, attempt: int) -> None:
        said = {"client": client, "attempt": attempt, **({"delay": 0.1} if verb == "nack" else {})}
        answer = self.call("POST", f"/api/messages/{message_id}/{verb}", said)
        if answer is None:
            self.doubted.add(message_id)
        elif answer["status"] == "acked":
            self.acked.add(message_id)
        elif answer["status"] == "rejected":
            self.rejected.add(message_id)

    def is_drained(self) -> bool:
        """Work what is left, until nothing is."""
        self.work("ack")
        state = self.call("GET", f"/api/queues/{self.queue}")
        due = all(self.standing(message_id) not in ("scheduled", None) for message_id in self.sent)
        return state is not None and due and state["depth"] == state["in_flight"] == 0

    def standing(self, message_id: str) -> str | None:
        found = self.call("GET", f"/api/messages/{message_id}")
        return None if found is None else str(found["recipients"][0]["state"])

    def judge(self) -> None:
        """The model's invariants, by what the server shows when all is over."""
        letters = self.call("GET", f"/api/dead-letters?owner=queue:{self.queue}&limit=1000")
        dead = {letter["id"]: letter for letter in letters["dead_letters"]}
        states = {message_id: self.standing(message_id) for message_id in self.sent}
        for message_id, state in states.items():
            ends = (state == "acked") + (message_id in dead)
            if ends != 1:
                self.faults.append(f"{message_id} is {state}, with {ends} ends")
        self.faults += [f"{item} was acked, and is dead" for item in self.acked & set(dead)]
        self.faults += [f"{item} was rejected, and is no dead letter" for item in self.rejected - set(dead)]
        self.faults += [f"{item} was never sent" for item in ({item for item, _ in self.given} | set(dead)) - self.sent]
        unsaid = {item for item, state in states.items() if state == "acked"} - self.acked - self.doubted
        self.faults += [f"{item} is acked, and nobody said so" for item in unsaid]
        attempts: dict[str, list[int]] = defaultdict(list)
        for message_id, attempt in self.given:
            attempts[message_id].append(attempt)
        self.faults += [f"{item}: attempts {n} do not rise" for item, n in attempts.items() if n != sorted(set(n))]
        self.faults += [fault for letter in dead.values() for fault in self.faults_of(letter)]

    def faults_of(self, letter: dict[str, Any]) -> list[str]:
        counted = [line for line in letter["attempts"] if line["outcome"] in ("nacked", "lease_expired")]
        if letter["reason"] == "max_attempts" and len(counted) != 5:
            return [f"{letter['id']} died after {len(counted)} failures"]
        if letter["reason"] == "rejected" and letter["attempts"][-1]["outcome"] != "rejected":
            return [f"{letter['id']} was rejected, and its history does not say so"]
        return [] if letter["reason"] in ("max_attempts", "rejected") else [f"{letter['id']}: {letter['reason']}"]

    def call(self, method: str, path: str, body: object = None) -> Any:
        """The body of the answer; None when a kill took it away. A refusal is a fault."""
        try:
            answer = self.server.call(method, path, body, timeout_seconds=10)
        except BROKEN:
            return None
        if answer.status != 200 and answer.status < 500:
            self.faults.append(f"{method} {path}: {answer.status} {answer.body}")
        return answer.body if answer.status == 200 else None
