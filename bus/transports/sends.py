"""What the body of a send asks for, and the answer to it: one implementation for Flask's routes and for the lane.

`single` and `batch` read a body; `publish` hands its drafts to the bus; the `answer` of what was asked is the JSON text
for the caller. Nothing here waits, or knows how a request came in.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from bus import receipts
from bus.errors import BusError, Malformed, TooLarge
from bus.events import Audited
from bus.identity import policy
from bus.message import Epochs, Message, iso, now_us
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
    plain_message,
    plain_post,
    read,
)
from bus.storage import Burst
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
        return _results(texts)


class Alike:
    """A batch of plain messages that was asked for, of which all are ephemeral, or none: nearly all batches."""

    __slots__ = ("cost", "is_ephemeral", "messages")

    atomic = False

    def __init__(self, messages: list[Message], *, is_ephemeral: bool) -> None:
        self.messages = messages
        self.is_ephemeral = is_ephemeral
        self.cost = len(messages)

    def answer(self, outcomes: Sequence[bytes | BusError], request_id: str) -> bytes | BusError:
        """As of `Single`; the outcomes are the texts of receipts."""
        return _results([encode(error_body(r, request_id)) if isinstance(r, BusError) else r for r in outcomes])


Asked = Single | Several | Alike


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

    def batch(self, body: bytes, header: Header, caller: Caller) -> Several | Alike:
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
        if not atomic and (alike := self._alike(items, stamp_us, caller)) is not None:
            return alike
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

    def publish(self, asked: Asked, then: Callable[[Sequence[Any]], None]) -> None:
        """Hand what is asked for to the bus; `then(outcomes)`, as its `answer` takes them, when all is settled, perhaps at
        once. Raises BusError."""
        self._bus.check_load()
        if (stamp_us := now_us()) >= self.stopwatch.next_us:
            then = self.stopwatch.timed(stamp_us, then)
        if isinstance(asked, Alike):
            self.handed_over += len(asked.messages)
            texts = _Texts(len(asked.messages), self._bus.epochs, then)
            refs = list(range(len(asked.messages)))
            self._bus.publish_burst(Burst(asked.messages, refs, texts.heard, texts.stored, asked.is_ephemeral))
            return
        drafts = asked.drafts
        self.handed_over += len(drafts)
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

    def _alike(self, items: Sequence[object], stamp_us: int, caller: Caller) -> Alike | None:
        """A batch in which all is plain, and all or nothing ephemeral. None for any other, and where something is wrong."""
        messages, names, sender = [], self._bus.names, ""
        is_ephemeral = None
        try:
            for item in items:
                if not isinstance(item, PlainPost) or is_ephemeral not in (None, item.ephemeral):
                    return None
                is_ephemeral = item.ephemeral
                if item.sender != sender:
                    sender = names.check_client(item.sender, "from")
                message = plain_message(item, sender, item.type, names, stamp_us)
                if message is None:
                    return None
                if not caller.admin:
                    policy.authorise(caller, message)
                messages.append(message)
        except BusError:
            return None  # said of that one alone, when each is looked at by itself
        return Alike(messages, is_ephemeral=is_ephemeral) if is_ephemeral is not None else None

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


class _Texts:
    """The texts of the receipts of a burst, whose refs are the places of its messages, as they come in."""

    __slots__ = ("_epochs", "_left", "_texts", "_then")

    def __init__(self, count: int, epochs: Epochs, then: Callable[[Sequence[bytes | BusError]], None]) -> None:
        self._texts: list[bytes | BusError] = [b""] * count
        self._left = count
        self._epochs = epochs
        self._then = then

    def heard(self, at: int, outcome: Receipt | BusError) -> None:
        self._texts[at] = outcome if isinstance(outcome, BusError) else _receipt(outcome)
        self._came(1)

    def stored(self, refs: Sequence[int], messages: Sequence[Message], fates: Sequence[bytes]) -> None:
        stamp = iso(messages[0].stamp_us)
        members = receipts.members_of(messages, fates, self._epochs)
        for at, text in zip(refs, members, strict=True):
            self._texts[at] = b'{"status":"sent","timestamp":"%b",%b}' % (stamp, text)
        self._came(len(refs))

    def _came(self, count: int) -> None:
        self._left -= count
        if not self._left:
            self._then(self._texts)


def _results(texts: Sequence[bytes]) -> bytes:
    return b'{"count":%d,"results":[%b]}' % (len(texts), b",".join(texts))


def _receipt(receipt: Receipt) -> bytes:
    status = b"scheduled" if receipt.scheduled else b"sent"
    return b'{"status":"%b","timestamp":"%b",%b}' % (status, iso(receipt.stamp_us), receipt.members())
