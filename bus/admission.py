"""Who looks at messages before they are stored (`Bus.before_publish`): each may stamp one, or refuse it."""

from __future__ import annotations

import logging
from collections.abc import Callable

from bus.errors import BusError, Unavailable
from bus.message import Message

log = logging.getLogger("bus.admission")

Accept = Callable[[Message], "Message | None"]
"""Returns another message, or None for this one as it is, or raises the BusError that refuses it."""


class Admission:
    """Those who look, in order of registration; none is added once the bus has started. Event loop only.

    Sends go through `lookers` themselves, since a call would cost each of them a share of a microsecond.
    """

    def __init__(self) -> None:
        self.lookers: list[Accept] = []

    def look_at(self, message: Message) -> Message:
        """The message that all agreed to, for who hands it to the store himself. Raises the BusError of who did not."""
        try:
            for accept in self.lookers:
                message = accept(message) or message
        except Exception as error:  # noqa: BLE001  # logged there
            raise refusal_of(error) from None
        return message


def refusal_of(error: Exception) -> BusError:
    """What a sender hears of the error of one who looked: a refusal as it stands; of a failure, that it is one."""
    if isinstance(error, BusError):
        return error
    log.error("An extension could not look at a message", exc_info=error, extra={"action": "before_publish"})
    return Unavailable("The message could not be checked; nothing was stored.")
