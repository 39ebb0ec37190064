"""The judgement of a crash test of acks, queues, delays and requests: faults as sentences, out of the evidence and the bus.

Nothing in here rests on how long anything took to arrive. A lease is taken to begin at the earliest moment at which it
can have begun, and to last from there; what came of an answered verdict is compared by attempts, or with connections
that were opened after the answer. So a slow machine is no fault, and a lost promise is one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby, pairwise
from typing import Any

from tests.faults.evidence import QUEUE, Evidence, Sent, Taken, said_of

CLOCK_ERROR_SECONDS = 0.1
"""What a clock that begins anew with each start of the server may be off."""

COUNTED = ("nacked", "lease_expired")
MAX_FAILURES = 5
SHOWN = 3
"""Faults of a kind that are told in full."""


@dataclass
class Remains:
    """What the bus says when all is over. `log`: every message in it. `letters`: dead letters by id and owner.

    `states`: by id and owner, what `GET /api/messages/<id>` says. `requests`: by id, the body of `GET /api/requests/<id>`.
    """

    log: list[dict[str, Any]]
    letters: dict[tuple[str, str], dict[str, Any]]
    states: dict[tuple[str, str], str]
    requests: dict[str, dict[str, Any]]


class Judgement:
    """Goes through the evidence of one server life. `faults` are sentences; `reasons` counts its dead letters."""

    def __init__(self, evidence: Evidence, remains: Remains) -> None:
        self._evidence = evidence
        self._remains = remains
        self._hands = evidence.by_owner()
        self._ids: dict[str, set[str]] = defaultdict(set)
        for message in remains.log:
            self._ids[message["payload"]["key"]].add(message["id"])
        for letter in remains.letters.values():
            self._ids[letter["message"]["payload"]["key"]].add(letter["id"])
        for taken in evidence.taken:
            self._ids[taken.key].add(taken.message_id)
        self.reasons = Counter(letter["reason"] for letter in remains.letters.values())
        self.faults = [
            *self._of_log(),
            *self._of_keys(),
            *self._of_plain_order(),
            *self._of_ends(),
            *self._of_letters(),
            *self._of_verdicts(),
            *self._of_leases(),
            *self._of_delays(),
            *self._of_requests(),
        ]

    # ---- what was sent

    def _of_log(self) -> Iterator[str]:
        """The log rises, and holds everything that was acknowledged, once."""
        log = self._remains.log
        if any(later["seq"] <= earlier["seq"] for earlier, later in pairwise(log)):
            yield "the log's seqs do not rise"
        times = Counter(message["payload"]["key"] for message in log)
        yield from (f"{key}: DOUBLED, {n} times in the log" for key, n in times.items() if n > 1)
        for sent in self._evidence.sent.values():
            if sent.message_id is not None and sent.key not in times and sent.ttl_seconds is None:
                yield f"{sent.key}: LOST, acknowledged as {sent.message_id}, and not in the log"
            if sent.refusal is not None and sent.key in times:
                yield f"{sent.key}: refused ({sent.refusal}), and yet in the log"

    def _of_keys(self) -> Iterator[str]:
        """One key, one id."""
        for key, message_id in self._answers():
            self._ids[key].add(message_id)
        yield from (f"{key}: DOUBLED, as {sorted(ids)}" for key, ids in self._ids.items() if len(ids) > 1)

    def _answers(self) -> Iterator[tuple[str, str]]:
        yield from ((sent.key, sent.message_id) for sent in self._evidence.acknowledged() if sent.message_id)
        yield from self._evidence.repeats

    def _of_plain_order(self) -> Iterator[str]:
        """Of one producer and one recipient, plain messages come first in the order in which they were sent."""
        first: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
        for taken in self._evidence.taken:
            sent = self._evidence.sent.get(taken.key)
            if sent is not None and sent.kind == "plain":
                first[sent.sender, taken.owner].setdefault(sent.key, sent.number)
        for (sender, reader), numbers in first.items():
            if any(later <= earlier for earlier, later in pairwise(numbers.values())):
                yield f"{sender} -> {reader}: disordered"

    # ---- what became of it

    def _of_ends(self) -> Iterator[str]:
        """Everything that entered the log came to its end with every recipient."""
        for sent in self._evidence.sent.values():
            for message_id in self._ids[sent.key]:
                for owner in sent.owners:
                    yield from self._of_end(sent, message_id, owner)

    def _of_end(self, sent: Sent, message_id: str, owner: str) -> Iterator[str]:
        takes = self._hands.get((owner, message_id), [])
        if not sent.is_tracked:
            if not takes:
                yield f"{sent.key}: LOST, {owner} never had it"
            return
        state = self._state(sent, message_id, owner)
        if state == "acked":
            if not any(said.status in ("acked", None) and said.error is None for said in said_of(takes, "ack")):
                yield f"{sent.key}: LOST, the bus calls it acked by {owner}, who never acked it"
        elif state == "dead_letter":
            if (message_id, owner) not in self._remains.letters:
                yield f"{sent.key}: LOST, a dead letter of {owner} that is not there"
        else:
            yield f"{sent.key}: STUCK, {state} for {owner} when all was over"

    def _state(self, sent: Sent, message_id: str, owner: str) -> str:
        """How it ended with an owner. The bus shows nothing whose ttl is over, so then the dead letters tell."""
        if sent.ttl_seconds is None:
            return self._remains.states.get((message_id, owner), "unknown")
        return "dead_letter" if (message_id, owner) in self._remains.letters else "acked"

    def _of_letters(self) -> Iterator[str]:
        """Each dead letter has a reason that somebody gave."""
        for (message_id, owner), letter in self._remains.letters.items():
            sent = self._evidence.sent[letter["message"]["payload"]["key"]]
            takes = self._hands.get((owner, message_id), [])
            if not _is_provoked(letter, sent, takes):
                yield f"{sent.key}: dead of {letter['reason']} with {owner}, and nobody gave cause: {letter['attempts']}"

    # ---- what was said of it

    def _of_verdicts(self) -> Iterator[str]:
        """A verdict is never refused to whom the message was handed; an answered ack or reject is the end."""
        for (owner, message_id), takes in self._hands.items():
            sent = self._evidence.sent[takes[0].key]
            state = self._state(sent, message_id, owner)
            for taken in takes:
                for said in taken.said:
                    if said.error is not None and said.error != "unavailable":
                        yield f"{taken.key}: {said.verb} of attempt {taken.attempt} by {taken.holder} got {said.error}"
                    if (said.status, state) in _CONTRADICTIONS:
                        yield f"{taken.key}: LOST {said.verb}, answered {said.status}, is {state} for {owner}"
                    if said.status in _FINAL and said.status == _FINAL_OF.get(said.verb):
                        yield from _after_the_end(taken, said.answered_at or 0.0, takes)

    def _of_leases(self) -> Iterator[str]:
        """No item of a queue in two consumers' hands within one lease."""
        for (owner, _), takes in self._hands.items():
            if not owner.startswith(QUEUE):
                continue
            sent = self._evidence.sent[takes[0].key]
            free_at = sent.began + sent.delay_seconds
            for attempt, group in groupby(takes, key=lambda taken: taken.attempt):
                hands = list(group)
                holders = sorted({taken.holder for taken in hands})
                if len(hands) > 1:
                    yield f"{sent.key}: TWO HANDS, attempt {attempt} was given {len(hands)} times, to {holders}"
                taken = hands[0]
                if taken.at < free_at - CLOCK_ERROR_SECONDS:
                    early = free_at - taken.at
                    yield f"{sent.key}: TWO HANDS, attempt {attempt} to {taken.holder} {early:.2f} s before it was free"
                free_at = self._free_at(taken, max(free_at, taken.opened))

    def _free_at(self, taken: Taken, begun: float) -> float:
        """The earliest moment at which somebody else may have it, if this lease began no earlier than `begun`."""
        ends = [begun + taken.lease_seconds]
        gone = [self._evidence.left[taken.holder]] if taken.holder in self._evidence.left else []
        for said in taken.said:
            if said.verb == "progress" and said.status == "extended":
                ends.append(said.at + taken.lease_seconds)
            if said.verb in ("nack", "release") and said.status in ("nacked", "released", None):
                gone.append(said.at)
        return max(begun, min([max(ends), *gone]))

    # ---- when it came, and what was answered

    def _of_delays(self) -> Iterator[str]:
        """A delayed message is never early."""
        for taken in self._evidence.taken:
            sent = self._evidence.sent.get(taken.key)
            if sent is None or not sent.delay_seconds:
                continue
            early = sent.began + sent.delay_seconds - taken.at
            if early > CLOCK_ERROR_SECONDS:
                yield f"{sent.key}: EARLY by {early:.2f} s"

    def _of_requests(self) -> Iterator[str]:
        """A reply that was acknowledged can be fetched, and an answer is the one to its question."""
        for request_id, key in self._evidence.replied.items():
            body = self._remains.requests.get(request_id, {})
            if key not in _answered_by(body):
                yield f"{key}: LOST, its reply was acknowledged, and /api/requests says {body.get('status', 'nothing')}"
        for key, body in self._evidence.answered:
            if body["status"] == "answered" and _answered_by(body) != [key]:
                yield f"{key}: answered with {_answered_by(body)}"


_FINAL = ("acked", "rejected")
_FINAL_OF = {"ack": "acked", "reject": "rejected"}
_CONTRADICTIONS = {
    ("acked", "dead_letter"),
    ("rejected", "acked"),
    *((status, state) for status in _FINAL for state in ("waiting", "leased", "resting", "unknown")),
}
"""An answer, and what the bus may not say of the same message when all is over."""


def _after_the_end(end: Taken, answered_at: float, takes: Iterable[Taken]) -> Iterator[str]:
    """Whoever has a later attempt than the one that was settled, or opened a socket after the answer, has a ghost."""
    for taken in takes:
        if taken.attempt > end.attempt or taken.opened > answered_at:
            yield (
                f"{taken.key}: LOST, settled as attempt {end.attempt} by {end.holder}, and then again attempt"
                f" {taken.attempt} to {taken.holder}"
            )


def _is_provoked(letter: dict[str, Any], sent: Sent, takes: list[Taken]) -> bool:
    reason, attempts = letter["reason"], letter["attempts"]
    if reason == "rejected":
        return bool(said_of(takes, "reject"))
    if reason == "expired":
        died = datetime.fromisoformat(letter["died_at"]).timestamp()
        ttl = sent.ttl_seconds
        return ttl is not None and died > sent.began_wall + sent.delay_seconds + ttl - CLOCK_ERROR_SECONDS
    if reason == "max_attempts":
        outcomes = Counter(attempt["outcome"] for attempt in attempts)
        counted = sum(outcomes[outcome] for outcome in COUNTED)
        return counted == MAX_FAILURES and outcomes["nacked"] <= len(said_of(takes, "nack"))
    return False


def _answered_by(body: dict[str, Any]) -> list[str]:
    return [reply["payload"]["answers"] for reply in body.get("replies", [])]


def shortened(faults: list[str]) -> list[str]:
    """The first faults of each kind, and how many more there are. A kind is what a sentence says without its numbers."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for fault in faults:
        kinds[" ".join(word for word in fault.split()[1:] if word.isalpha())].append(fault)
    shown = []
    for alike in kinds.values():
        shown += alike[:SHOWN]
        if len(alike) > SHOWN:
            shown.append(f"… and {len(alike) - SHOWN} more like the last")
    return shown
