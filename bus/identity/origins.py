"""Which pages may call: those of the bus's own origin and of ALLOWED_ORIGINS. Scheme, host and port must be the same.

An origin is compared as a whole, after its default port is left out: no prefix, suffix or pattern of one counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from bus.errors import Forbidden

_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://([^\s/?#@\\*]+)\Z")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


class Origins:
    """The list. Immutable; safe from any thread."""

    def __init__(self, allowed: Iterable[str]) -> None:
        self._allowed = frozenset(origin_of(text) or text for text in allowed)

    def check(self, origin: str, scheme: str, host: str) -> str:
        """The origin in its usual form, if its pages may call `scheme://host`. Raises Forbidden."""
        given = origin_of(origin)
        if given is not None and (given in self._allowed or given == origin_of(f"{scheme}://{host}")):
            return given
        raise Forbidden(
            "Pages of this Origin may not connect; serve the page from the bus's own scheme, host and port, or name it in"
            " ALLOWED_ORIGINS. Behind a proxy with TLS, that must send X-Forwarded-Proto, and be named in TRUSTED_PROXIES.",
            code="origin_not_allowed",
        )


def origin_of(text: str) -> str | None:
    """`scheme://host[:port]` in lower case, without the port that is the scheme's own; None for what is none."""
    parts = _ORIGIN.match(text.lower())
    if parts is None:
        return None
    return f"{parts[1]}://{parts[2].removesuffix(_DEFAULT_PORTS.get(parts[1], ' '))}"
