"""Logs: JSON lines for machines, or a readable form for people; the request's id in every line.

Error means that someone must act, warning that it healed itself, info is life cycle. Never payloads, tokens, secrets.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from contextvars import ContextVar
from typing import Any

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the request that this greenlet serves; empty outside of requests."""

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


def _facts(record: logging.LogRecord) -> dict[str, Any]:
    facts = {
        name: value for name, value in record.__dict__.items() if name not in _STANDARD and not name.startswith("_")
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
            "message": record.getMessage(),
            "pid": record.process,
            **_facts(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class ReadableFormatter(logging.Formatter):
    """Time, level, sentence, facts."""

    def format(self, record: logging.LogRecord) -> str:
        facts = " ".join(f"{name}={value}" for name, value in _facts(record).items())
        line = (
            f"{_time(record)[11:23]} {record.levelname.lower():7} {record.getMessage()}{'  ' + facts if facts else ''}"
        )
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


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
        logger.propagate = name == "gunicorn.error"
