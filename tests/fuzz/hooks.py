"""What the fuzzer is told beyond `/openapi.json`, so that its inputs get past the first check. It loads this file itself.

Waits are short; good inputs speak of a few names and of messages that exist. Whatever it made to be refused stays as it is.
"""

from __future__ import annotations

import contextlib
from collections import deque
from typing import Any

import schemathesis
from schemathesis import Case, GenerationMode, HookContext, Response
from schemathesis.core.failures import Failure

MAX_WAIT_SECONDS = 0.1
NAMES = ("fuzzed", "a.b", "x@y")
NAMED = ("client", "client_id", "from", "owner", "queue", "thread_id", "to", "type")
GOOD: dict[str, Any] = {
    "ack_wait": 5,
    "attempt": 1,
    "deliver_at": None,
    "delay": 0,
    "idempotency_key": None,
    "limit": 5,
    "max_in_flight": 5,
    "priority": "high",
    "rate": 1,  # a replay of the log doubles it
    "since": "earliest",
    "ttl": 60,
    "until": "latest",
}
"""Values that nothing speaks against."""

RECENT: deque[str] = deque(maxlen=20)
"""The ids of the messages that the bus took last."""


@schemathesis.hook
def before_call(context: HookContext, case: Case, kwargs: dict[str, Any]) -> None:
    """Cap the wait, whatever the case is for; make a good case plausible."""
    if case.operation.path.endswith("/profile"):
        case.query = {"seconds": MAX_WAIT_SECONDS, **(case.query or {})}
    for holder in (case.query, case.body):
        if isinstance(holder, dict):
            _cap(holder)
    if case.operation.path.endswith("/request") and isinstance(case.body, dict) and case.body.get("wait") is None:
        case.body["wait"] = MAX_WAIT_SECONDS
    if case.meta is None or case.meta.generation.mode is not GenerationMode.POSITIVE:
        return
    for holder in (case.path_parameters, case.query, case.body):
        if isinstance(holder, dict):
            _make_plausible(holder)
    if case.operation.path.endswith(("/send", "/request")) and isinstance(case.body, dict):
        case.body.update({"from": NAMES[0], "to": case.body.get("to") or NAMES[1]})


@schemathesis.hook
def after_call(context: HookContext, case: Case, response: Response) -> None:
    """Remember the message that a send brought."""
    if not case.operation.path.endswith("/send") or response.status_code != 200:
        return
    answer = response.json() if response.content else None
    if isinstance(answer, dict) and "message_id" in answer:
        RECENT.append(answer["message_id"])


@schemathesis.hook
def filter_failure(context: HookContext, failure: Failure, case: Case, response: Response) -> bool:
    """Leave out what gunicorn refuses before the bus sees it: a request line or a header that is too long for it."""
    return response.status_code not in (414, 431)


def _cap(holder: dict[str, Any]) -> None:
    for name, most in (("wait", 50), ("seconds", 60)):
        with contextlib.suppress(TypeError, ValueError):  # it may be anything
            if MAX_WAIT_SECONDS < float(holder.get(name, 0)) <= most:
                holder[name] = MAX_WAIT_SECONDS


def _make_plausible(holder: dict[str, Any]) -> None:
    """Put what means something into three of four fields; the length of what chance had put there decides."""
    for field, value in holder.items():
        chance = len(str(value))
        if value is None or chance % 4 == 3:
            continue
        if field in NAMED and isinstance(value, str):
            holder[field] = NAMES[chance % len(NAMES)]
        elif field in ("message_id", "request_id") and RECENT:
            holder[field] = RECENT[chance % len(RECENT)]
        elif field in GOOD:
            holder[field] = GOOD[field]
