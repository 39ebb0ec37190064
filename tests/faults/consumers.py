"""Consumers of a crash test: they ack, nack, release, reject and ask for more time; they forget, die and say goodbye.

While the stage is calm they only ack. What they are handed and what they say of it goes into the evidence.
"""

from __future__ import annotations

import heapq
import json
from itertools import count
from typing import Any

from websockets.sync.client import ClientConnection

from tests.faults.evidence import QUEUE, Said, Taken
from tests.faults.parties import Died, Party, Rest, SaidGoodbye, Stage, now
from tests.faults.producers import CLAIMED_QUEUE, QUEUES

POLL_SECONDS = 0.1
HOLD_SECONDS = 0.4
"""For how long a message is worked on at most, so that a kill meets some in everybody's hands."""

IN_FLIGHT = 8
CLAIMED_AT_ONCE = 3
NACK_DELAY_SECONDS = 0.05
CLAIM_WAITS = (0.5, 1.0, 2.0)
DEFAULT_LEASE_SECONDS = 30.0
DEATHS = 0.01
"""The part of the questions that are a responder's last."""

HABITS = {
    "ack": 58,
    "progress": 12,
    "nack": 8,
    "release": 6,
    "reject": 3,
    "forget": 4,
    "die": 1,
    "goodbye": 1.5,
}
"""What becomes of a message, by weight. `progress` is followed by an ack."""


class Consumer(Party):
    """Takes by WebSocket, and settles by it, or over REST if it `settles_by_rest`.

    `_plans`: (moment, count, habit, taken) of this connection, the next first. `_asked`: by ref, the verdicts that
    wait for an answer on it. Both are emptied when a connection begins.
    """

    def __init__(self, stage: Stage, name: str, *, settles_by_rest: bool = False) -> None:
        super().__init__(stage, name)
        self._rest = Rest(stage.server.port) if settles_by_rest else None
        self._plans: list[tuple[float, int, str, Taken]] = []
        self._asked: dict[str, Said] = {}
        self._count = count(1)
        self._holder = ""
        self._opened = 0.0

    def live(self) -> None:
        self._opened = now()
        self._holder = f"{self.name}/{self.evidence.next_number('socket', self.name)}"
        self._plans.clear()
        self._asked.clear()
        try:
            with self.socket() as socket:
                self.greet(socket)
                while not self.is_done:
                    self._read(socket)
                    while self._plans and self._plans[0][0] <= now():
                        _, _, habit, taken = heapq.heappop(self._plans)
                        self._act(socket, habit, taken)
        finally:
            if self._rest is not None:
                self._rest.close()

    def greet(self, socket: ClientConnection) -> None:
        """Say what a new connection is for."""

    # ---- taking

    def _read(self, socket: ClientConnection) -> None:
        patience = min(self._plans[0][0] - now(), POLL_SECONDS) if self._plans else POLL_SECONDS
        try:
            frame = json.loads(socket.recv(timeout=max(patience, 0.0)))
        except TimeoutError:
            return
        self.hear(socket, frame)

    def hear(self, socket: ClientConnection, frame: dict[str, Any]) -> None:
        """Take a frame of any kind."""
        if frame["type"] == "message":
            self.take(socket, frame["message"])
        else:
            self._hear_answer(frame)

    def leftover(self, frame: dict[str, Any]) -> None:
        if frame["type"] == "message":
            self.write_down(frame["message"])
        else:
            self._hear_answer(frame)

    def _hear_answer(self, frame: dict[str, Any]) -> None:
        said = self._asked.pop(frame.get("ref", ""), None)
        if said is not None:
            said.status, said.error, said.answered_at = frame.get("status"), frame.get("code"), now()

    def take(self, socket: ClientConnection, message: dict[str, Any]) -> None:
        """Write down what came, and decide what becomes of it."""
        taken = self.write_down(message)
        if taken is None:
            return
        habit = habit_of(self, message)
        hold = 0.0 if self.stage.calm.is_set() else self.chance.choice((0.0, 0.0, self.chance.uniform(0, HOLD_SECONDS)))
        heapq.heappush(self._plans, (now() + hold, next(self._count), habit, taken))

    def write_down(self, message: dict[str, Any]) -> Taken | None:
        """None for what asks for no ack: that is written down, and done with."""
        to = message["to"]
        taken = taken_of(self, message, to if isinstance(to, str) and to.startswith(QUEUE) else self.name)
        taken.holder, taken.opened = self._holder, self._opened
        return taken if message["requires_ack"] else None

    # ---- settling

    def _act(self, socket: ClientConnection, habit: str, taken: Taken) -> None:
        if habit == "die":
            raise Died
        if habit == "goodbye":
            self.evidence.left[self._holder] = now()
            raise SaidGoodbye
        for verb in verbs_of(habit):
            self.say(socket, verb, taken)

    def say(self, socket: ClientConnection, verb: str, taken: Taken) -> None:
        """Send a verdict."""
        if self._rest is not None:
            say_by_rest(self._rest, self.name, verb, taken)
            return
        ref = f"{self._holder}-{next(self._count)}"
        said = self._asked[ref] = Said(verb, now())
        taken.said.append(said)
        more = {"delay": NACK_DELAY_SECONDS} if verb == "nack" else {}
        frame = {"type": verb, "message_id": taken.message_id, "attempt": taken.attempt, "ref": ref, **more}
        socket.send(json.dumps(frame))


class QueueConsumer(Consumer):
    """Takes items of both queues."""

    def greet(self, socket: ClientConnection) -> None:
        wish = {"type": "subscribe", "queues": list(QUEUES), "max_in_flight": IN_FLIGHT}
        socket.send(json.dumps(wish))


class Claimer(Party):
    """Claims items of one queue after the other over REST. Where only claims take, it says how long it holds them."""

    def live(self) -> None:
        rest = Rest(self.stage.server.port)
        try:
            while not self.is_done:
                calm = self.stage.calm.is_set()  # then sockets empty the other queues
                self._claim(rest, CLAIMED_QUEUE if calm else self.chance.choice((*QUEUES, CLAIMED_QUEUE)))
        finally:
            rest.close()

    def _claim(self, rest: Rest, queue: str) -> None:
        opened = now()
        lease = self.chance.choice(CLAIM_WAITS) if queue == CLAIMED_QUEUE else None
        wish = {"client": self.name, "limit": self.chance.randint(1, CLAIMED_AT_ONCE), "wait": 0.2, "ack_wait": lease}
        status, body = rest.call("POST", f"/api/queues/{queue}/claim", wish)
        if status != 200:
            raise ValueError(body)
        claimed = []
        for message in body["messages"]:
            taken = taken_of(self, message, message["to"])
            taken.opened = opened
            taken.lease_seconds = lease or taken.lease_seconds
            claimed.append((habit_of(self, message), taken))
        for habit, taken in claimed:
            if habit in ("die", "goodbye"):
                raise Died
            self.stage.calm.wait(self.chance.choice((0.0, 0.0, self.chance.uniform(0, HOLD_SECONDS / 4))))
            for verb in verbs_of(habit):
                say_by_rest(rest, self.name, verb, taken)


class Reader(Consumer):
    """Polls its inbox over REST, by cursor. `_cursor`: where it has come to, over all its connections."""

    def __init__(self, stage: Stage, name: str) -> None:
        super().__init__(stage, name)
        self._cursor = "earliest"

    def live(self) -> None:
        rest = Rest(self.stage.server.port)
        try:
            while not self.is_done:
                _, page = rest.call("GET", f"/api/messages?to={self.name}&since={self._cursor}&limit=500&wait=0.2")
                for message in page["messages"]:
                    self.write_down(message)
                self._cursor = page["cursor"]
        except KeyError as missing:
            raise ValueError("The inbox could not be read.") from missing
        finally:
            rest.close()


class Responder(Consumer):
    """Answers what it is asked, and acks a question once the bus has its reply.

    `_replies`: by the request's id, the reply that is under way, sent again after a break; None once the bus has it.
    `_owed`: by the same, what has to be acked then.
    """

    def __init__(self, stage: Stage, name: str) -> None:
        super().__init__(stage, name)
        self._replies: dict[str, dict[str, Any] | None] = {}
        self._owed: dict[str, Taken] = {}

    def greet(self, socket: ClientConnection) -> None:
        self._owed.clear()
        for reply in self._replies.values():
            if reply is not None:
                socket.send(json.dumps(reply))

    def hear(self, socket: ClientConnection, frame: dict[str, Any]) -> None:
        if frame["type"] != "sent":
            super().hear(socket, frame)
            return
        request_id = frame["ref"]
        reply = self._replies[request_id]
        if reply is not None:
            self._replies[request_id] = None
            self.evidence.replied[request_id] = reply["payload"]["answers"]
        if request_id in self._owed:
            self.say(socket, "ack", self._owed.pop(request_id))

    def take(self, socket: ClientConnection, message: dict[str, Any]) -> None:
        request_id = message["id"]
        taken = self.write_down(message)
        if self.chance.random() < DEATHS and not self.stage.calm.is_set():
            raise Died
        if request_id not in self._replies:
            self._replies[request_id] = _reply_to(message)
            socket.send(json.dumps(self._replies[request_id]))
        if taken is None:
            return
        if self._replies[request_id] is None:
            self.say(socket, "ack", taken)
        else:
            self._owed[request_id] = taken


# ---- what they do alike


def taken_of(party: Party, message: dict[str, Any], owner: str) -> Taken:
    """Write down a message that was put into a party's hands."""
    payload = message["payload"]
    sent = party.evidence.sent.get(payload["key"])
    lease = float(sent.body.get("ack_wait", DEFAULT_LEASE_SECONDS)) if sent is not None else DEFAULT_LEASE_SECONDS
    attempt = message.get("attempt", 1)
    moment = now()
    taken = Taken(owner, party.name, message["id"], payload["key"], attempt, moment, moment, lease, message["seq"])
    party.evidence.taken.append(taken)
    return taken


def habit_of(party: Party, message: dict[str, Any]) -> str:
    """What becomes of a message: a stubborn one always fails, until the stage is calm."""
    if party.stage.calm.is_set():
        return "ack"
    if message["payload"]["stubborn"]:
        return "nack"
    return party.chance.choices(list(HABITS), list(HABITS.values()))[0]


def verbs_of(habit: str) -> tuple[str, ...]:
    """What is said of a message, in order."""
    return () if habit == "forget" else ("progress", "ack") if habit == "progress" else (habit,)


def say_by_rest(rest: Rest, client: str, verb: str, taken: Taken) -> None:
    """Send a verdict, and write down its answer."""
    said = Said(verb, now())
    taken.said.append(said)
    body: dict[str, Any] = {"client": client, "attempt": taken.attempt}
    if verb == "nack":
        body["delay"] = NACK_DELAY_SECONDS
    status, answer = rest.call("POST", f"/api/messages/{taken.message_id}/{verb}", body)
    said.status, said.error, said.answered_at = answer.get("status"), answer.get("code"), now()
    if status == 503:
        raise ValueError(answer)


def _reply_to(question: dict[str, Any]) -> dict[str, Any]:
    key = f"reply-{question['id']}"
    return {
        "type": "send",
        "ref": question["id"],
        "to": question["from"],
        "correlation_id": question["correlation_id"],
        "idempotency_key": key,
        "payload": {"key": key, "answers": question["payload"]["key"]},
    }
