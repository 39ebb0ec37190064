"""The handlers of a client: functions by message type, called one after another on a thread of their own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from bus.client.mailbox import Entry, Mailbox, Seen
from bus.client.received import Message

log = logging.getLogger("bus.client")

Handler = Callable[[Message], object]


class Handlers:
    """Takes from the mailbox what has a handler, calls it, and acks what needs an ack once that went well."""

    def __init__(self, name: str, mailbox: Mailbox, seen: Seen, ack: Callable[[Message], object]) -> None:
        self._name = name
        self._mailbox = mailbox
        self._seen = seen
        self._ack = ack
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
            for handler in self.of(message.type):
                handler(message)
        except Exception:
            about = {"action": "handler_failed", "client": self._name, "message_id": message.id, "type": message.type}
            log.exception("A handler failed on a message", extra=about)
            self._seen.forget(message)
        else:
            self._ack(message)
        finally:
            self._mailbox.done(entry)
