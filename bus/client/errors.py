"""What goes wrong on the client's side of a connection, and how a refusal of the server becomes an exception.

Everything here is a `BusError`, so one `except BusError` catches whatever the bus or the way to it refused.
"""

from __future__ import annotations

from bus.errors import (
    BusError,
    Conflict,
    DiskFull,
    Forbidden,
    InboxFull,
    KeyReused,
    Malformed,
    NotBuilt,
    NotFound,
    RateLimited,
    TooLarge,
    TooSlow,
    Unauthenticated,
    Unavailable,
    UnsupportedMedia,
)


class Offline(BusError):
    """The server can't be reached now, or the client was closed.

    `idempotency_key` is set where a durable send had left already: it may or may not be stored, and repeating it
    with this key stores it once at most.
    """

    code = "offline"
    status = 503
    close_code = 1006

    def __init__(self, sentence: str, *, idempotency_key: str | None = None) -> None:
        super().__init__(sentence)
        self.idempotency_key = idempotency_key


class ReceiptTimeout(BusError, TimeoutError):
    """No receipt came in time. The send was withdrawn from the queue; see `Offline.idempotency_key` for repeating it."""

    code = "receipt_timeout"
    status = 504
    close_code = 1006

    def __init__(self, sentence: str, *, idempotency_key: str | None = None) -> None:
        super().__init__(sentence)
        self.idempotency_key = idempotency_key


class QueueFull(BusError):
    """As many sends as `max_queued` allows wait for their receipts. Wait for some of them."""

    code = "send_queue_full"
    status = 503
    close_code = 1013


class BacklogFull(BusError):
    """`receive(type=…)` can't go on: the local queue is full of messages of other types, so nothing more is read."""

    code = "backlog_full"
    status = 503
    close_code = 1013


_TREE: tuple[type[BusError], ...] = (
    Malformed,
    Unauthenticated,
    Forbidden,
    NotFound,
    Conflict,
    TooSlow,
    TooLarge,
    UnsupportedMedia,
    KeyReused,
    RateLimited,
    InboxFull,
    NotBuilt,
    Unavailable,
    DiskFull,
)
_BY_CODE: dict[str, type[BusError]] = {
    **{kind.code: kind for kind in _TREE},
    "queue_full": InboxFull,
    "too_many_connections": RateLimited,
}
_BY_STATUS = {kind.status: kind for kind in _TREE}
_BY_CLOSE_CODE = {4400: Malformed, 4401: Unauthenticated, 4403: Forbidden, 4404: NotFound}


def refusal(
    code: str,
    sentence: str,
    *,
    status: int | None = None,
    field: str | None = None,
    retry_after_seconds: float | None = None,
) -> BusError:
    """The server's refusal as the class of the error tree that fits its code, else its HTTP status.

    Where neither is known (a frame has no status), one that blames a field is Malformed, and the rest the tree's root.
    """
    kind = _BY_CODE.get(code) or _BY_STATUS.get(status or 0) or (Malformed if field else BusError)
    error = kind(sentence, code=code, field=field, retry_after_seconds=retry_after_seconds)
    if status is not None:
        error.status = status
    return error


def refusal_of_status(status: int, sentence: str) -> BusError:
    """The error for an HTTP status that came without the bus's own JSON body."""
    return _BY_STATUS.get(status, BusError)(sentence)


def refusal_of_close(code: int, reason: str) -> BusError:
    """The error for a close code that says that coming back is no use (44xx)."""
    kind = _BY_CLOSE_CODE.get(code, Malformed)
    return kind(reason or f"The server closed the connection with {code} and does not want this client back.")


def passes(error: BusError) -> bool:
    """True for a refusal that may be gone in a moment."""
    if isinstance(error, Offline | Unavailable | InboxFull | RateLimited | TooSlow | DiskFull):
        return True
    return error.code == "internal" or error.code.startswith("http_5")
