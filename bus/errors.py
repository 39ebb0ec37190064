"""The error tree: what can be refused, with its stable code, HTTP status and WebSocket close code.

    BusError
    ├── Malformed          400  the request can't be read
    ├── ForbiddenTarget    400  a URL that the bus may not call
    ├── Unauthenticated    401  no valid credential
    ├── Forbidden          403  a valid credential that may not do this
    ├── NotFound           404
    ├── Conflict           409  it can't be done as things are
    ├── TooSlow            408  a body did not come in time
    ├── TooLarge           413
    ├── UnsupportedMedia   415
    ├── KeyReused          422  an idempotency key came back with another body
    ├── InboxFull          429
    ├── RateLimited        429  asked too often, or too many connections
    ├── NotBuilt           501  this version does not have it
    ├── Unavailable        503  nothing was stored because the bus can't, for now
    └── DiskFull           507

Every message is a sentence that says what happened and then the cure. It never holds an exception's text, a
path or a secret: it is shown to strangers.
"""

from __future__ import annotations

from collections.abc import Mapping


class BusError(Exception):
    """A refusal that a caller may see.

    `code` is stable snake_case; `status` the HTTP status; `close_code` what a WebSocket is closed with when the
    refusal ends the connection; `field` the offending field of the request, if one is to blame;
    `retry_after_seconds` is set where trying again later helps.
    """

    code = "internal"
    status = 500
    close_code = 1011

    def __init__(
        self,
        sentence: str,
        *,
        code: str | None = None,
        field: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.code = code or type(self).code
        self.field = field
        self.retry_after_seconds = retry_after_seconds


class Malformed(BusError):
    code = "malformed"
    status = 400
    close_code = 1008


class ForbiddenTarget(BusError):
    """`reason` is one of a few words, to be counted by: bus.guard.REASONS."""

    code = "forbidden_target"
    status = 400
    close_code = 1008

    def __init__(self, sentence: str, reason: str) -> None:
        super().__init__(sentence, field="url")
        self.reason = reason


class Unauthenticated(BusError):
    code = "unauthenticated"
    status = 401
    close_code = 4401


class Forbidden(BusError):
    code = "forbidden"
    status = 403
    close_code = 4403


class NotFound(BusError):
    code = "not_found"
    status = 404
    close_code = 1008


class Conflict(BusError):
    code = "conflict"
    status = 409
    close_code = 1008


class TooSlow(BusError):
    code = "too_slow"
    status = 408
    close_code = 1008


class TooLarge(BusError):
    code = "too_large"
    status = 413
    close_code = 1009


class UnsupportedMedia(BusError):
    code = "unsupported_media_type"
    status = 415
    close_code = 1008


class KeyReused(BusError):
    code = "idempotency_key_reused"
    status = 422
    close_code = 1008


class InboxFull(BusError):
    code = "inbox_full"
    status = 429
    close_code = 1013


class RateLimited(BusError):
    """`headers` tell of the limit, where there is one of requests."""

    code = "rate_limited"
    status = 429
    close_code = 1013

    def __init__(
        self,
        sentence: str,
        *,
        code: str | None = None,
        field: str | None = None,
        retry_after_seconds: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(sentence, code=code, field=field, retry_after_seconds=retry_after_seconds)
        self.headers = headers or {}


class NotBuilt(BusError):
    code = "not_built"
    status = 501
    close_code = 1008


class Unavailable(BusError):
    code = "unavailable"
    status = 503
    close_code = 1013


class DiskFull(BusError):
    code = "disk_full"
    status = 507
    close_code = 1013


class StartRefused(Exception):
    """The server must not start like this. The text is one sentence for the operator: what is wrong, then the cure."""


class StoreAway(StartRefused):
    """The log can't be reached, or written to, for now. Who replaces a process that served tries again."""


class StoreDamaged(StartRefused):
    """The log's file can't be trusted. It was not changed."""
