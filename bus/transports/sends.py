"""What the body of a send asks for, and the answer to it: one implementation for Flask's routes and for the lane.

`single` and `batch` read a body; `publish` hands its drafts to the bus; the `answer` of what was asked is the JSON text
for the caller. Nothing here waits, or knows how a request came in.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from bus.errors import BusError, Malformed, TooLarge
from bus.events import Audited
from bus.identity import policy
from bus.message import iso, now_us
from bus.metrics import Stopwatch
from bus.protocol import (
    Batch,
    Draft,
    PlainPost,
    Send,
    decode_batch,
    decode_send,
    draft_of,
    encode,
    error_body,
    plain_batch,
    plain_draft,
    plain_post,
    read,
)
from bus.trace_context import joined, trace_of
from bus.transports.answers import BatchBody

if TYPE_CHECKING:
    from bus.bus import Bus
    from bus.identity.caller import Caller
    from bus.receipts import Receipt


MAX_BATCH = 1000
MAX_BATCH_RECIPIENTS = 20_000
BATCH_BODY_FACTOR = 16
"""A batch's body may be so many times as long as a message's."""

Header = Callable[[str], "str | None"]
"""Gives a header's value by its name in any case, or None."""

decode_good_batch = msgspec.json.Decoder(BatchBody).decode
"""One decode for a whole batch, if all of its members have the right form, as nearly all batches' have."""


class Single:
    """One message that was asked for."""

    __slots__ = ("drafts",)

    atomic = False
    cost = 1

    def __init__(self, draft: Draft) -> None:
        self.drafts: Sequence[Draft] = (draft,)

    def answer(self, outcomes: Sequence[Receipt | BusError], request_id: str) -> bytes | BusError:
        """The JSON body of the answer, or the refusal of the whole; `outcomes` are the drafts', in order."""
        outcome = outcomes[0]
        return outcome if isinstance(outcome, BusError) else _receipt(outcome)


class Several:
    """A batch that was asked for. `items` holds, in order, a draft or what is wrong with it."""

    __slots__ = ("atomic", "cost", "drafts", "items")

    def __init__(self, items: Sequence[Draft | BusError], *, atomic: bool) -> None:
        self.items = items
        self.drafts: Sequence[Draft] = [item for item in items if isinstance(item, Draft)]
        self.atomic = atomic
        self.cost = max(len(items), 1)

    def answer(self, outcomes: Sequence[Receipt | BusError], request_id: str) -> bytes | BusError:
        """As of `Single`."""
        rest = iter(outcomes)
        results = [next(rest) if isinstance(item, Draft) else item for item in self.items]
        if self.atomic and results and isinstance(results[0], BusError):
            return results[0]
        texts = [encode(error_body(r, request_id)) if isinstance(r, BusError) else _receipt(r) for r in results]
        return b'{"count":%d,"results":[%b]}' % (len(texts), b",".join(texts))


Asked = Single | Several


class Sends:
    """Reads bodies for a bus. Event loop's thread only, since it checks names by the bus's memory of good ones."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.max_bytes = bus.settings.max_message_size
        self.max_batch_bytes = self.max_bytes * BATCH_BODY_FACTOR
        self.handed_over = 0
        self.stopwatch = Stopwatch()

    def single(self, body: bytes, header: Header, caller: Caller) -> Single:
        """Read the body of a send; its request's headers may name a key and a trace. Raises Malformed, Forbidden."""
        stamp_us = now_us()
        key, trace = header("Idempotency-Key"), trace_of(header)
        if not (key or trace) and (plain := plain_post(body)) is not None:
            return Single(self._draft_of_plain(plain, stamp_us, caller))
        send: Send = read(decode_send, body, "body")
        if key:
            send.idempotency_key = key
        return Single(self._draft(send, stamp_us, trace, caller))

    def batch(self, body: bytes, header: Header, caller: Caller) -> Several:
        """Read the body of a batch, which has no key of its own. Raises Malformed, and what a member of an atomic one is."""
        stamp_us = now_us()
        trace = trace_of(header)
        items, atomic = self._sends_of(body, plain=not trace)
        if len(items) > MAX_BATCH:
            raise Malformed(
                f"`messages` holds {len(items)} messages; at most {MAX_BATCH} fit a batch.",
                code="batch_too_long",
                field="messages",
            )
        asked = Several([self._draft_or_error(item, stamp_us, trace, caller) for item in items], atomic=atomic)
        if (named := sum(len(draft.message.names) for draft in asked.drafts)) > MAX_BATCH_RECIPIENTS:
            raise Malformed(
                f"The batch names {named} recipients in all; at most {MAX_BATCH_RECIPIENTS} fit one. Send it in parts.",
                code="batch_too_long",
                field="messages",
            )
        if atomic and len(asked.drafts) < len(asked.items):
            at, error = next((at, item) for at, item in enumerate(asked.items) if isinstance(item, BusError))
            raise type(error)(
                f"Message {at} of the atomic batch is wrong, so none was stored: {error.sentence}",
                code=error.code,
                field=error.field,
            )
        return asked

    def publish(self, asked: Asked, then: Callable[[Sequence[Receipt | BusError]], None]) -> None:
        """Hand what is asked for to the bus; `then(outcomes)` when all is settled, perhaps at once. Raises BusError."""
        self._bus.check_load()
        drafts = asked.drafts
        self.handed_over += len(drafts)
        if drafts and drafts[0].message.stamp_us >= self.stopwatch.next_us:
            then = self.stopwatch.timed(drafts[0].message.stamp_us, then)
        if len(drafts) == 1 and not asked.atomic:
            self._bus.publish(drafts[0], lambda outcome: then((outcome,)))
        elif drafts:
            gathered = _Gathered(len(drafts), then)
            settled = [partial(gathered.settled, at) for at in range(len(drafts))]
            self._bus.publish_all(drafts, settled, atomic=asked.atomic)
        else:
            then(())

    def _sends_of(self, body: bytes, *, plain: bool) -> tuple[Sequence[PlainPost | Send | msgspec.Raw], bool]:
        """The members of a batch and whether it is atomic: all decoded at once, or each left for a decode of its own.

        `plain`: they may come as plain ones, to which nothing can be added.
        """
        if len(body) <= self.max_bytes:  # else a member may be too long, and only its text tells
            if plain and (sends := plain_batch(body)) is not None:
                return sends.messages, sends.atomic
            with contextlib.suppress(Malformed):
                good: BatchBody = read(decode_good_batch, body, "body")
                return good.messages, good.atomic
        batch: Batch = read(decode_batch, body, "body")
        return batch.messages, batch.atomic

    def _draft_or_error(
        self, item: PlainPost | Send | msgspec.Raw, stamp_us: int, trace: dict[str, str], caller: Caller
    ) -> Draft | BusError:
        try:
            if isinstance(item, PlainPost):
                return self._draft_of_plain(item, stamp_us, caller)
            if isinstance(item, Send):
                return self._draft(item, stamp_us, trace, caller)
            text = bytes(item)
            if len(text) > self.max_bytes:
                raise TooLarge(f"A message may have at most {self.max_bytes} bytes.")
            return self._draft(read(decode_send, text, "message"), stamp_us, trace, caller)
        except BusError as refusal:
            if refusal.status == 403:  # the request as a whole is answered with 200
                detail = {"code": refusal.code}
                self._bus.emit(Audited("POST", caller.name, "/api/send/batch", "refused", detail=detail))
            return refusal

    def _draft_of_plain(self, send: PlainPost, stamp_us: int, caller: Caller) -> Draft:
        names = self._bus.names
        sender = names.check_client(send.sender, "from")
        draft = plain_draft(send, sender, send.type, names=names, stamp_us=stamp_us)
        if draft is None:
            more = Send(sender=sender, to=send.to, type=send.type, payload=send.payload, ephemeral=send.ephemeral)
            return self._draft(more, stamp_us, {}, caller)
        if not caller.admin:
            policy.authorise(caller, draft.message)
        return draft

    def _draft(self, send: Send, stamp_us: int, trace: dict[str, str], caller: Caller) -> Draft:
        names = self._bus.names
        send.headers = joined(send.headers, trace)
        given = caller.only_client if send.sender is None else send.sender
        if given is None:
            raise Malformed("`from` is missing; say who sends.", code="missing_field", field="from")
        sender = names.check_client(given, "from")
        draft = draft_of(send, sender, send.type, names=names, stamp_us=stamp_us)
        if not caller.admin:
            policy.authorise(caller, draft.message, send.on_behalf_of)
        return draft


class _Gathered:
    """The outcomes of several drafts, as they come in."""

    __slots__ = ("_left", "_outcomes", "_then")

    def __init__(self, count: int, then: Callable[[Sequence[Receipt | BusError]], None]) -> None:
        self._outcomes: list[Receipt | BusError | None] = [None] * count
        self._left = count
        self._then = then

    def settled(self, at: int, outcome: Receipt | BusError) -> None:
        self._outcomes[at] = outcome
        self._left -= 1
        if not self._left:
            self._then(self._outcomes)  # type: ignore[arg-type]  # none is None any more


def _receipt(receipt: Receipt) -> bytes:
    status = b"scheduled" if receipt.scheduled else b"sent"
    return b'{"status":"%b","timestamp":"%b",%b}' % (status, iso(receipt.stamp_us), receipt.members())
