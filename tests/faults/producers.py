"""Producers of a crash test: they send whatever must not get lost, under idempotency keys, until they have an answer.

Most of what was under way when the server broke is sent once more under its key, so its outcome is known in the end.
"""

from __future__ import annotations

import json
import time
from typing import Any

from tests.faults.evidence import QUEUE, Sent
from tests.faults.parties import Party, Rest, Stage, now

READERS = ("reader-0", "reader-1", "reader-2")
INBOXES = ("inbox-0", "inbox-1", "inbox-2")
QUEUES = ("jobs", "chores")
"""Sockets take from them, and claims."""

CLAIMED_QUEUE = "errands"
"""Claims alone take from it."""

RESPONDERS = ("responder-0", "responder-1")

WINDOW = 4
"""Sends that a WebSocket producer has under way."""

PAUSE_SECONDS = 0.02
"""Between two sends of a producer, on average, so that the consumers keep up on two cores."""

PATIENCE_SECONDS = 5.0
GIVEN_UP = 0.2
"""The part of what was under way at a break that is not tried again."""

REPEATS = 0.1
"""The part of answered sends that is sent once more: the answer must name the same id."""

PRIORITIES = ("critical", "high", "normal", "low", "bulk")
ACK_WAITS = (0.5, 1.0, 2.0)
TTLS = (0.2, 0.8, 3.0)


class Producer(Party):
    """Composes sends. `unanswered`: by key, in the order of the first tries; they are tried again after a break."""

    def __init__(self, stage: Stage, name: str) -> None:
        super().__init__(stage, name)
        self.unanswered: dict[str, Sent] = {}

    @property
    def is_done(self) -> bool:
        return self.stage.over.is_set() or (self.stage.enough.is_set() and not self.unanswered)

    def compose(self) -> Sent:
        """Something to send, by chance."""
        kind = self.chance.choices(("plain", "later", "tracked", "item"), (30, 5, 30, 35))[0]
        owners: tuple[str, ...]
        if kind in ("plain", "later"):
            owners = (self.chance.choice(READERS),)
            body: dict[str, Any] = {} if kind == "plain" else {"delay": self._delay()}
            return self.sent(kind, owners, owners[0], body)
        body = {"ack_wait": self.chance.choice(ACK_WAITS)}
        trouble = self.chance.random()
        if trouble < 0.12:
            body["delay"] = self._delay()
        if 0.08 < trouble < 0.2:
            body["ttl"] = self.chance.choice(TTLS)
        if self.chance.random() < 0.5:
            body["priority"] = self.chance.choice(PRIORITIES)
        if kind == "item":
            to = QUEUE + self.chance.choice((*QUEUES, CLAIMED_QUEUE))
            return self.sent(kind, (to,), to, body)
        owners = tuple(self.chance.sample(INBOXES, self.chance.choice((1, 1, 1, 2, 3))))
        return self.sent(kind, owners, list(owners), {**body, "require_ack": True})

    def sent(self, kind: str, owners: tuple[str, ...], to: str | list[str], more: dict[str, Any]) -> Sent:
        """Write down, as begun now, what is about to be sent."""
        number = self.evidence.next_number(kind, self.name, *owners)
        key = f"{kind}-{self.name}-{'-'.join(owners)}-{number}"
        payload = {"key": key, "n": number, "stubborn": self.chance.random() < 0.01, "pad": "x" * 100}
        body = {"from": self.name, "to": to, "payload": payload, "idempotency_key": key, **more}
        sent = Sent(key, kind, self.name, owners, number, body, now(), time.time())
        self.evidence.sent[key] = self.unanswered[key] = sent
        return sent

    def answered(self, key: str, message_id: str) -> None:
        """The bus says that it has it."""
        sent = self.unanswered.pop(key)
        sent.message_id = message_id

    def refused(self, key: str, code: str) -> None:
        """The bus says that it does not have it."""
        self.unanswered.pop(key).refusal = code

    def give_some_up(self) -> None:
        """After a break: what is not tried again stays unknown, and may be in the log or not."""
        for key in [key for key in self.unanswered if self.chance.random() < GIVEN_UP]:
            del self.unanswered[key]

    def pause(self) -> None:
        self.stage.enough.wait(self.chance.uniform(0, 2 * PAUSE_SECONDS))

    def _delay(self) -> float:
        return round(self.chance.uniform(0.0, 2.0), 3)


class RestProducer(Producer):
    """One send at a time."""

    def live(self) -> None:
        self.give_some_up()
        rest = Rest(self.stage.server.port)
        try:
            while not self.is_done:
                sent = next(iter(self.unanswered.values()), None) or self.compose()
                status, body = rest.call("POST", "/api/send", sent.body)
                if status != 200:
                    self.refused(sent.key, body["code"])
                    continue
                self.answered(sent.key, body["message_id"])
                if self.chance.random() < REPEATS:
                    status, again = rest.call("POST", "/api/send", sent.body)
                    if status == 200:
                        self.evidence.repeats.append((sent.key, again["message_id"]))
                self.pause()
        finally:
            rest.close()


class SocketProducer(Producer):
    """A few sends under way at once, in order."""

    def live(self) -> None:
        self.give_some_up()
        with self.socket() as socket:
            for sent in self.unanswered.values():
                socket.send(_frame(sent))
            while not self.is_done:
                while len(self.unanswered) < WINDOW and not self.stage.enough.is_set():
                    socket.send(_frame(self.compose()))
                    self.pause()
                frame = json.loads(socket.recv(timeout=PATIENCE_SECONDS))
                if frame["type"] == "sent":
                    self.answered(frame["ref"], frame["message_id"])
                elif frame["type"] == "error":
                    self.refused(frame["ref"], frame["code"])


def _frame(sent: Sent) -> str:
    return json.dumps({**sent.body, "type": "send", "ref": sent.key})


class RestAsker(Producer):
    """Asks over REST, one question at a time."""

    def live(self) -> None:
        self.give_some_up()
        rest = Rest(self.stage.server.port)
        try:
            while not self.is_done:
                sent = next(iter(self.unanswered.values()), None) or question(self)
                status, body = rest.call("POST", "/api/request", sent.body)
                if status in (200, 202):
                    self.answered(sent.key, body["request_id"])
                    self.evidence.answered.append((sent.key, body))
                elif status != 409:  # 409: an earlier try is still waiting for its answer
                    self.refused(sent.key, body["code"])
                self.pause()
        finally:
            rest.close()


class SocketAsker(Producer):
    """Asks over a WebSocket. Replies come to its inbox, too, and are passed over there."""

    def live(self) -> None:
        self.give_some_up()
        with self.socket() as socket:
            while not self.is_done:
                sent = next(iter(self.unanswered.values()), None) or question(self)
                socket.send(json.dumps({**sent.body, "type": "request", "ref": sent.key}))
                frame = {"type": ""}
                while frame["type"] not in ("reply", "error"):
                    frame = json.loads(socket.recv(timeout=PATIENCE_SECONDS))
                if frame["type"] == "reply":
                    self.answered(sent.key, frame["request_id"])
                    self.evidence.answered.append((sent.key, frame))
                elif frame["code"] != "in_flight":
                    self.refused(sent.key, frame["code"])
                self.pause()


def question(asker: Producer) -> Sent:
    """A question to one responder; half of them ask for an ack besides."""
    chance = asker.chance
    responder = chance.choice(RESPONDERS)
    more: dict[str, Any] = {"wait": chance.choice((0.1, 0.5, 1.0))}
    if chance.random() < 0.5:
        more |= {"require_ack": True, "ack_wait": 1.0}
    return asker.sent("request", (responder,), responder, more)
