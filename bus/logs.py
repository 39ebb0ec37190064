"""Logs: JSON lines for machines, or a readable form for people; the request's id in every line.

Error means that someone must act, warning that it healed itself, info is life cycle. Never payloads, tokens, secrets: what
slips in all the same, in an exception's text say, is masked here (bus.masking), and no text can forge a line.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from contextvars import ContextVar
from types import TracebackType
from typing import Any

from bus.masking import masked, masked_value, one_line

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the request that this greenlet serves; empty outside of requests."""

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


_LINE_ENDS = {ord(character): f"\\u{ord(character):04x}" for character in "\x85\u2028\u2029"}
"""What some readers take for the end of a line, and JSON does not escape."""


def _facts(record: logging.LogRecord) -> dict[str, Any]:
    facts = {
        name: masked_value(name, value)
        for name, value in record.__dict__.items()
        if name not in _STANDARD and not name.startswith("_")
    }
    if current := request_id.get():
        facts.setdefault("request_id", current)
    return facts


def _time(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"


class JsonFormatter(logging.Formatter):
    """One JSON object a line: timestamp, level, logger, message, pid, then the facts of the call."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "timestamp": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": masked(record.getMessage()),
            "pid": record.process,
            **_facts(record),
        }
        if record.exc_info:
            line["exception"] = masked(self.formatException(record.exc_info))
        return json.dumps(line, default=str, ensure_ascii=False).translate(_LINE_ENDS)


class ReadableFormatter(logging.Formatter):
    """Time, level, sentence, facts; what follows of an exception is indented."""

    def format(self, record: logging.LogRecord) -> str:
        facts = " ".join(f"{name}={value}" for name, value in _facts(record).items())
        said = masked(record.getMessage())
        line = one_line(f"{_time(record)[11:23]} {record.levelname.lower():7} {said}{'  ' + facts if facts else ''}")
        if not record.exc_info:
            return line
        trace = masked(self.formatException(record.exc_info)).split("\n")
        return "\n    ".join([line, *map(one_line, trace)])


def log_what_nobody_catches(hub: Any = None) -> None:
    """Have exceptions that end a thread, a greenlet of gevent's `hub` or the process logged, not printed as they are."""
    log = logging.getLogger("bus.uncaught")

    def tell(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
        log.critical("Nobody caught this", exc_info=(kind, error or kind(), trace), extra={"action": "uncaught"})

    def tell_of(args: Any) -> None:
        tell(args.exc_type, args.exc_value, args.exc_traceback)

    sys.excepthook = tell
    sys.unraisablehook = threading.excepthook = tell_of
    if hub is not None:
        hub.print_exception = lambda _, kind, error, trace: tell(kind, error, trace)


def set_up(*, level: str, json_lines: bool) -> None:
    """Send every log of the process, gunicorn's and the libraries' included, to stderr in one form. Idempotent."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if json_lines else ReadableFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in ("gunicorn.error", "gunicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers[:] = []
        logger.propagate = True  # an access log is written only if somebody asked gunicorn for one
