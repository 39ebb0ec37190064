"""Parameters of requests, read and checked. Each raises Malformed with the field to blame."""

from __future__ import annotations

import math
from collections.abc import Iterable

from flask import request

from bus.errors import Malformed
from bus.identity import policy
from bus.identity.policy import Action
from bus.message import Names
from bus.protocol import MAX_WAIT_SECONDS
from bus.transports.edge import caller

MAX_LIMIT = 1000


def required(name: str) -> str:
    """A parameter that has to be there."""
    value = request.args.get(name)
    if value is None:
        raise Malformed(f"The parameter `{name}` is missing.", code="missing_field", field=name)
    return value


def limit(default: int) -> int:
    """`limit`, 0 to MAX_LIMIT."""
    text = request.args.get("limit", str(default))
    if not text.isascii() or not text.isdigit() or int(text) > MAX_LIMIT:
        raise Malformed(f"`limit` must be a whole number from 0 to {MAX_LIMIT}.", code="bad_field", field="limit")
    return int(text)


def wait() -> float:
    """`wait`, in seconds; 0 if it is not given."""
    try:
        wait = float(request.args.get("wait", "0"))
    except ValueError:
        wait = math.nan
    if not 0 <= wait <= MAX_WAIT_SECONDS:
        raise Malformed(
            f"`wait` must be a number of seconds from 0 to {MAX_WAIT_SECONDS:.0f}.", code="bad_field", field="wait"
        )
    return wait


def at_latest() -> bool:
    """Whether `on_gap` says to go on from now."""
    on_gap = request.args.get("on_gap", "oldest")
    if on_gap not in ("oldest", "latest"):
        raise Malformed("`on_gap` must be oldest or latest.", code="bad_field", field="on_gap")
    return on_gap == "latest"


def acting(names: Names, given: str | None, field: str) -> str:
    """The client that the caller acts as: the one that it names, or the only one that it may be. Raises Forbidden."""
    me = caller()
    if given is None:
        given = me.only_client
        if given is None:
            raise Malformed(f"`{field}` is missing; say who you are.", code="missing_field", field=field)
    name = names.check_client(given, field)
    policy.need(me, Action.ACT, name)
    return name


def need_topics(patterns: Iterable[str]) -> None:
    """Refuse topics that the caller may not read."""
    me = caller()
    if not me.admin:
        for pattern in patterns:
            policy.need(me, Action.SUBSCRIBE, pattern)


def flag(name: str) -> bool:
    """A parameter that is true or false; false if it is not given."""
    text = request.args.get(name, "false").lower()
    if text not in ("true", "false"):
        raise Malformed(f"`{name}` must be true or false.", code="bad_field", field=name)
    return text == "true"
