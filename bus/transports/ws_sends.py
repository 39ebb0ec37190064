"""Plain sends over a WebSocket: those that one read brought become one burst, and their answers one piece of text.

Anything else, and whatever is wrong, is left to the way of a single frame (bus.transports.ws), which says what is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from bus import frames
from bus.errors import BusError, RateLimited
from bus.identity import policy
from bus.message import Message
from bus.metrics import Stopwatch
from bus.protocol import error_frame, plain_frame, plain_message, sent_frame, sent_frames
from bus.receipts import Receipt, members_of
from bus.sending import MAX_BURST
from bus.storage import Burst
from bus.transports.ws_verbs import caller_of

if TYPE_CHECKING:
    from bus.bus import Bus
    from bus.connection import Connection

Ref = str | int | None


class PlainSends:
    """Event loop only. `handed_over` counts all sends that came over WebSockets; `stopwatch` times some of them."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.handed_over = 0
        self.stopwatch = Stopwatch()

    def take(
        self, connection: Connection, found: Sequence[tuple[int, bytes]], stamp_us: int
    ) -> tuple[int, RateLimited | None]:
        """Publish the plain sends at the head of `found`, at most MAX_BURST, as long as all or none of them are ephemeral.

        Returns how many, and why the one behind them may not even be looked at, if it may not.
        """
        burst = Burst([], [], partial(self.heard, connection), partial(self._stored, connection))
        refusal = None
        try:
            self._gather(burst, connection, found if len(found) <= MAX_BURST else found[:MAX_BURST], stamp_us)
        except RateLimited as limited:
            refusal = limited
        except BusError:
            pass  # the way of a single frame finds the same, and tells
        finally:
            if burst.messages:
                self.handed_over += len(burst.messages)
                self._bus.publish_burst(burst)
        return len(burst.messages), refusal

    def _gather(self, burst: Burst, connection: Connection, found: Sequence[tuple[int, bytes]], stamp_us: int) -> None:
        """Put sends into a burst, up to one that is not plain, or not like the first. Raises BusError for what is wrong."""
        names, allowance = self._bus.names, connection.allowance
        caller = caller_of(connection)
        sender, is_admin = connection.client, caller.admin
        messages, refs = burst.messages, burst.refs
        for first, text in found:
            if first != frames.WHOLE_TEXT or (plain := plain_frame(text)) is None:
                return
            if plain.ephemeral is not burst.ephemeral:
                if messages:
                    return
                burst.ephemeral = plain.ephemeral
            message = plain_message(plain, sender, plain.msg_type, names, stamp_us)
            if message is None:
                return
            if not is_admin:
                policy.authorise(caller, message)
            if allowance is not None:
                allowance.take()
            messages.append(message)
            refs.append(plain.ref)

    def heard(self, connection: Connection, ref: Ref, answer: Receipt | BusError) -> None:
        """Tell a sender what became of one send."""
        if isinstance(answer, BusError):
            connection.reply(error_frame(answer, ref))
        elif ref is not None:
            connection.reply(sent_frame(ref, answer.members()))

    def _stored(
        self, connection: Connection, refs: Sequence[str | int], messages: Sequence[Message], fates: Sequence[bytes]
    ) -> None:
        connection.reply_framed(frames.text_frames(sent_frames(refs, members_of(messages, fates, self._bus.epochs))))
