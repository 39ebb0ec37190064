"""Who looks at messages before they are stored (`Bus.before_publish`): each may stamp one, or refuse it."""

from __future__ import annotations

import logging
from collections.abc import Callable

from bus.errors import BusError, Unavailable
from bus.message import Message

log = logging.getLogger("bus.admission")

Accept = Callable[[Message], "Message | None"]


class Admission:
    """Those who look, in order of registration; none is added once the bus has started. Event loop only."""

    def __init__(self) -> None:
        self._lookers: list[Accept] = []

    def add(self, accept: Accept) -> None:
        """Have `accept(message)` look: it returns another message, or None for this one as it is, or raises a BusError."""
        self._lookers.append(accept)

    def look_at(self, message: Message) -> Message:
        """The message that everybody agreed to. Raises the BusError of whoever did not; a failure refuses it, too."""
        for accept in self._lookers:
            try:
                message = accept(message) or message
            except BusError:
                raise
            except Exception:
                log.exception("An extension could not look at a message", extra={"action": "before_publish"})
                raise Unavailable("The message could not be checked; nothing was stored.") from None
        return message
