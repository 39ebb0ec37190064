"""What a running bus tells of itself, and whether this command fits it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import msgspec

from bus import __version__
from bus.cli.findings import Finding, ok, warning, wrong
from bus.client import Offline
from bus.client.rest import Rest
from bus.errors import BusError

CLOCKS_APART_SECONDS = 5.0

CURES = {
    "database": "Look at the server's log, and at the disk of the store.",
    "disk": "Make room on the disk of the log: the bus goes on by itself.",
    "event_loop": "A worker is overloaded: look at `python -m bus profile`, and give it more workers or cores.",
}
"""By the name of a check; any other: docs/health.md."""


def examine(rest: Rest) -> Iterator[Finding]:
    """Ask the bus. One that does not answer is wrong."""
    url = rest.address.base
    try:
        began = time.time()
        _, text = rest.look("/health/status")
        took = time.time() - began
        health = msgspec.json.decode(text)
    except Offline as offline:
        yield wrong("bus", offline.sentence, "Start it (python server_ws.py), or say --url or MESSAGE_BUS_URL.")
        return
    except msgspec.DecodeError:
        yield wrong("bus", f"What answers at {url} is not a bus.", "Say --url or MESSAGE_BUS_URL.")
        return
    yield ok("bus", f"{url} answered in {took * 1000:.0f} ms.")
    yield from _health(health)
    yield from _clock(health, began + took / 2)
    try:
        status = rest.get("/api/status", {}, dict[str, Any])
    except BusError as refusal:
        yield wrong("key", refusal.sentence, "Give a key by --api-key or MESSAGE_BUS_API_KEY.")
        return
    yield from _status(status)


def _health(health: dict[str, Any]) -> Iterator[Finding]:
    checks = health.get("checks") or {}
    bad = {name: check for name, check in checks.items() if check.get("status") not in ("healthy", "pass")}
    for name, check in bad.items():
        level = warning if check.get("status") in ("degraded", "warn") else wrong
        said = check.get("message") or check.get("status")
        yield level("health", f"{name}: {said}", CURES.get(name, "docs/health.md says what this check looks at."))
    if not bad:
        status = health.get("status", "unknown")
        told = f"{status}, {len(checks)} checks" if checks else f"{status}; its checks are for callers with a key"
        yield ok("health", told) if status == "healthy" else wrong("health", told, "Look at /health/status with a key.")


def _clock(health: dict[str, Any], now: float) -> Iterator[Finding]:
    stamp = health.get("timestamp")
    if not stamp:
        return
    apart = datetime.fromisoformat(stamp).timestamp() - now
    if abs(apart) > CLOCKS_APART_SECONDS:
        cure = "Set both by NTP: times that you give (--since, JWTs, signatures) mean another moment there."
        yield warning(
            "clock", f"The bus's clock is {abs(apart):,.0f} s {'ahead of' if apart > 0 else 'behind'} this one.", cure
        )
    else:
        yield ok("clock", f"{abs(apart):.1f} s apart from this machine's")


def _status(status: dict[str, Any]) -> Iterator[Finding]:
    version = status["version"]
    if version != __version__:
        yield warning(
            "version", f"The bus is {version}, this command {__version__}.", "Use the command of the bus's own version."
        )
    else:
        yield ok("version", version)
    durability = status["durability"]
    told = f"{durability['setting']} ({durability['store']}): an acknowledged send survives {durability['survives']}"
    yield ok("durability", told)
    queue = status["queue"]
    if queue["current"] > queue["max"] // 2:
        yield warning(
            "commits",
            f"{queue['current']:,} messages wait for the disk.",
            "The disk is slow, or busy: look at the server's metrics.",
        )
    yield ok("workers", f"{status['workers']} serve, {status['connections']['active']} connections")
