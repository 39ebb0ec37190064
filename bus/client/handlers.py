"""The handlers of a client: functions by message type, called one after another on a thread of their own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from bus.client.deliveries import Deliveries
from bus.client.mailbox import Entry, Mailbox
from bus.client.received import Message
from bus.client.verdicts import Verdict

log = logging.getLogger("bus.client")

Handler = Callable[[Message], object]


class Handlers:
    """Takes from the mailbox what has a handler, calls it, and settles what needs an ack by how that went."""

    def __init__(self, name: str, mailbox: Mailbox, deliveries: Deliveries, *, auto_ack: bool) -> None:
        """With `auto_ack`, a message is acked when its handlers returned, and nacked when one raised."""
        self._name = name
        self._mailbox = mailbox
        self._deliveries = deliveries
        self._auto_ack = auto_ack
        # Replaced whole, never changed, so it is read without a lock; None stands for every type.
        self._by_type: dict[str | None, tuple[Handler, ...]] = {}
        # Held while a handler is added, so that the thread is started once.
        self._adding = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, type: str | None, handler: Handler) -> None:
        """Have `handler` called for a type, or for every one (None). Starts the thread."""
        with self._adding:
            self._by_type = {**self._by_type, type: (*self._by_type.get(type, ()), handler)}
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=f"bus-handlers-{self._name}", daemon=True)
                self._thread.start()
        self._mailbox.wake()

    def of(self, type: str) -> tuple[Handler, ...]:
        """The handlers of a type, in the order in which they are called: its own, then those of every type."""
        by_type = self._by_type
        return by_type.get(type, ()) + by_type.get(None, ())

    def take(self, message: Message) -> bool:
        """True when the message goes to handlers, and not to `receive`."""
        return bool(self.of(message.type))

    def join(self, timeout: float) -> None:
        """Wait until the handler that runs has ended; the mailbox must be closed. Returns at once inside of one."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def _run(self) -> None:
        while (entry := self._mailbox.take(self.take, timeout=None, until_closed=True)) is not None:
            self._handle(entry)

    def _handle(self, entry: Entry) -> None:
        message = entry.message
        try:
            if message.requires_ack and self._deliveries.is_done(message):
                message.ack()
                return
            self._deliveries.hold(message)
            for handler in self.of(message.type):
                handler(message)
        except Verdict as verdict:
            verdict.settle(message)
        except Exception as error:
            about = {"action": "handler_failed", "client": self._name, "message_id": message.id, "type": message.type}
            log.exception("A handler failed on a message", extra=about)
            if self._auto_ack and not message.is_settled:
                message.nack(reason=type(error).__name__)
        else:
            if self._auto_ack and not message.is_settled:
                message.ack()
        finally:
            self._deliveries.let_go(message)
            self._mailbox.done(entry)
