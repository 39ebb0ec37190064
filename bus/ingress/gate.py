"""The way of a webhook into the log: found, verified, allowed, read, written once; and only then answered.

Nothing of a body is read before its signature is known to be right, and an unknown integration gets the answer, and the
work, of a bad signature. The message, the memory of what was signed, and the rate stand in one transaction: so a replay on
another process is refused, and a crash loses nothing that was answered.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Protocol

import msgspec
from msgspec import UNSET, UnsetType

from bus.addresses import Network
from bus.admission import Admission
from bus.clock import Clock
from bus.errors import BusError, Conflict, Forbidden, RateLimited, Unauthenticated, Unavailable
from bus.events import Event, RateLimitHit
from bus.health.vitals import Vitals
from bus.identity.policy import VERIFIED
from bus.ingress import documents, journal, template
from bus.ingress.integrations import Integration, Rows, may_come_from
from bus.ingress.journal import Entry, Journal
from bus.ingress.signatures import Outcome, Proof, Request, verify
from bus.message import Epochs, Message, Names, now_us
from bus.metrics import Metrics
from bus.settings import Settings
from bus.storage import Reader, Transaction

SENTENCES: dict[Outcome, str] = {
    "bad_signature": "The signature is missing or wrong, or there is no such integration.",
    "stale": "The signature is right, but its time is more than 300 seconds from ours; set the sender's clock, sign anew.",
}

COUNTER = "bus_ingress_webhooks_total"

_LIKE_ONE = re.compile(r"in-[A-Za-z0-9]{1,40}")
"""What may be the id of an integration, or nearly; other guesses of strangers are not kept."""


class Host(Protocol):
    """What of the bus is needed."""

    settings: Settings
    names: Names
    clock: Clock
    epochs: Epochs
    admission: Admission
    vitals: Vitals
    metrics: Metrics

    def check_load(self) -> None: ...
    def emit(self, event: Event) -> None: ...
    def read(self, job: Callable[[Reader], Any]) -> Any: ...
    def write(self, job: Callable[[Transaction], Any]) -> Any: ...


class Visit(msgspec.Struct, frozen=True):
    """A request to a webhook's path. `path` as it came, with its query; `address` of whoever sent it."""

    integration_id: str
    request: Request
    path: str
    address: str
    request_id: str


class Taken(msgspec.Struct, frozen=True):
    """The answer to what was taken: `accepted` with the message, `pong` to GitHub's ping, or Slack's challenge.

    `duplicate`: the sender had sent this event before, and it is the message of then.
    """

    status: str | UnsetType = UNSET
    message_id: str | UnsetType = UNSET
    seq: int | UnsetType = UNSET
    duplicate: bool | UnsetType = UNSET
    challenge: str | UnsetType = UNSET


class Gate:
    """Event loop only; `take` waits, in the greenlet of its request. `rows` is there once the bus has started."""

    rows: Rows

    def __init__(self, host: Host, log: Journal, networks: tuple[Network, ...]) -> None:
        """`networks`: who may send to an integration that does not say so itself; empty: anybody."""
        self._host = host
        self._journal = log
        self._networks = networks

    def take(self, visit: Visit) -> Taken:
        """What came of a webhook. Raises BusError for what is refused; each is logged."""
        found: Integration = self._host.read(lambda reader: self.rows.find_or_decoy(reader, visit.integration_id))
        request = visit.request
        if found.config.public_url is not None:
            url = found.config.public_url.rstrip("/") + visit.path
            request = msgspec.structs.replace(request, url=url)
        outcome, proof = verify(found.scheme, request, self._secrets(found), now_us())
        if proof is None:
            self._refuse(visit, outcome if found.number else "unknown")
            code = "stale_signature" if outcome == "stale" else "bad_signature"
            raise Unauthenticated(SENTENCES.get(outcome, SENTENCES["bad_signature"]), code=code)
        try:
            return self._take(found, visit, request, proof)
        except BusError as refusal:
            self._refuse(visit, refusal.code)
            if isinstance(refusal, RateLimited):
                self._host.emit(RateLimitHit("integration", found.id, refusal.retry_after_seconds or 0.0))
            raise

    def _secrets(self, found: Integration) -> list[str]:
        return found.valid(self._host.clock.now_us(), self._host.settings.webhook_signature_secret)

    def _take(self, found: Integration, visit: Visit, request: Request, proof: Proof) -> Taken:
        """What is signed well. It may know of the integration what a stranger may not."""
        if not found.enabled:
            raise Unavailable("The integration is paused; send it again later.", code="paused", retry_after_seconds=60)
        if not may_come_from(visit.address, found.config.networks(self._networks)):
            raise Forbidden("This address may not send here; ask for it in the integration's allowed_ips.",
                            code="address_not_allowed")  # fmt: skip
        self._host.check_load()
        if self._host.vitals.disk.is_on:
            raise self._host.vitals.disk.refusal()
        scheme = found.scheme
        document = documents.document_of(scheme, request)
        event = documents.event_of(scheme, request, document)
        delivery = proof.delivery or documents.delivery_of(scheme, document)
        entry = Entry(
            integration_id=found.id,
            outcome="accepted",
            address=visit.address,
            request_id=visit.request_id,
            size=len(request.body),
            timestamp_us=self._host.clock.now_us(),
            event=event,
            delivery=delivery,
            nonce=proof.nonce,
        )
        if (challenge := documents.challenge_of(scheme, document)) is not None:
            self._note(found, entry, "challenge")
            return Taken(challenge=challenge)
        if documents.is_ping(scheme, event):
            self._note(found, entry, "ping")
            return Taken(status="pong")
        message = self._message(found, request, document, entry)
        seq, duplicate = self._host.write(lambda transaction: _append(transaction, found, entry, message))
        self._host.metrics.count(COUNTER, "duplicate" if duplicate else "accepted")
        message_id = self._host.epochs.id_of(seq).decode()
        return Taken(status="accepted", message_id=message_id, seq=seq, duplicate=True if duplicate else UNSET)

    def _note(self, found: Integration, entry: Entry, outcome: str) -> None:
        """What becomes no message."""
        self._host.write(lambda transaction: _note(transaction, found, entry, outcome))
        self._host.metrics.count(COUNTER, outcome)

    def _message(self, found: Integration, request: Request, document: template.Document, entry: Entry) -> Message:
        host, config = self._host, found.config
        payload = document.text
        if config.has_template:
            payload = template.fill(bytes(config.template), document, request, host.settings.max_message_size)
        labels = {"webhook-scheme": config.scheme, "webhook-event": entry.event, "webhook-delivery": entry.delivery}
        headers = {name: value for name, value in labels.items() if value is not None}
        draft = config.draft(payload, headers, f"${found.id}", host.names, now_us())
        draft.message.extras += VERIFIED
        return host.admission.look_at(draft.message)

    def _refuse(self, visit: Visit, outcome: str) -> None:
        self._host.metrics.count(COUNTER, outcome)
        self._journal.refuse(
            Entry(
                integration_id=visit.integration_id if _LIKE_ONE.fullmatch(visit.integration_id) else "",
                outcome=outcome,
                address=visit.address,
                request_id=visit.request_id,
                size=len(visit.request.body),
            )
        )


# ---- in the transaction


def _append(transaction: Transaction, found: Integration, entry: Entry, message: Message) -> tuple[int, bool]:
    """(the message's seq, whether it is one of before). Raises Conflict for a replay, RateLimited, or a send's refusal."""
    _refuse_replay(transaction, entry)
    if entry.delivery is not None:
        seq = journal.delivered(transaction, entry.integration_id, entry.delivery)
        if seq is not None and not found.scheme.timed:
            raise _replayed()
        if seq is not None:
            journal.put(transaction, msgspec.structs.replace(entry, outcome="duplicate", seq=seq))
            return seq, True
    _spend(transaction, found, entry.timestamp_us)
    outcome = transaction.append(message)
    if isinstance(outcome, BusError):
        raise outcome
    journal.put(transaction, msgspec.structs.replace(entry, seq=message.seq))
    return message.seq, False


def _note(transaction: Transaction, found: Integration, entry: Entry, outcome: str) -> None:
    """As `_append`, of what becomes no message."""
    _refuse_replay(transaction, entry)
    _spend(transaction, found, entry.timestamp_us)
    journal.put(transaction, msgspec.structs.replace(entry, outcome=outcome))


def _refuse_replay(transaction: Transaction, entry: Entry) -> None:
    if entry.nonce is not None and journal.was_taken(transaction, entry.integration_id, entry.nonce):
        raise _replayed()


def _replayed() -> Conflict:
    return Conflict("Just this was taken before, so nothing was stored; sign each event anew.", code="replayed")


def _spend(transaction: Transaction, found: Integration, now_us: int) -> None:
    """Take one from the integration's rate, by the generic cell rate algorithm (ITU-T I.371): exact over all processes."""
    rows = transaction.execute("SELECT next_at, enabled FROM integrations WHERE number = ?", (found.number,))
    if not rows or not rows[0][1]:
        raise Unavailable(
            "The integration has just been changed; send it again.", code="paused", retry_after_seconds=60
        )
    rate, next_us = found.config.rate, rows[0][0]
    if rate is None:
        return
    ahead_us = next_us - now_us - (rate.count - 1) * rate.spacing_us
    if ahead_us > 0:
        raise RateLimited(
            f"The integration takes {rate.count} webhooks in {rate.seconds:g} seconds; send it again later.",
            code="rate_limited",
            retry_after_seconds=-(-ahead_us // 1_000_000),
        )
    next_us = max(next_us, now_us) + rate.spacing_us
    transaction.execute("UPDATE integrations SET next_at = ? WHERE number = ?", (next_us, found.number))
