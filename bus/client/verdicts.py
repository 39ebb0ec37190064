"""What a handler may raise to say what becomes of its message, instead of failing."""

from __future__ import annotations

from bus.client.received import Message


class Verdict(Exception):
    """Raised by a handler; nothing is logged. One of the three below."""

    def settle(self, message: Message) -> str | None:
        """Say it; returns the bus's word, as `Message.ack` does."""
        raise NotImplementedError


class Nack(Verdict):
    """It failed: deliver it again, after `delay` seconds (None: the bus's own backoff). The attempt counts."""

    def __init__(self, reason: str | None = None, *, delay: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.delay = delay

    def settle(self, message: Message) -> str | None:
        return message.nack(delay=self.delay, reason=self.reason)


class Reject(Verdict):
    """It can never be dealt with: make it a dead letter at once."""

    def __init__(self, reason: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason

    def settle(self, message: Message) -> str | None:
        return message.reject(self.reason)


class Release(Verdict):
    """Not now: give it back untouched. The attempt does not count."""

    def settle(self, message: Message) -> str | None:
        return message.release()
