"""How `python server_ws.py` becomes gunicorn: one process image, the same pid."""

from __future__ import annotations

import errno
import os
import socket
import sys
from typing import NoReturn

from bus.errors import StartRefused
from bus.settings import ROOT, load


def main() -> NoReturn:
    """Check the settings, then replace this process. Ends with status 1 and one sentence when they are wrong."""
    try:
        settings = load()
        if busy := in_the_way(settings.message_bus_host, settings.message_bus_port):
            print(busy, file=sys.stderr, flush=True)  # noqa: T201  # gunicorn tries on for some seconds
    except StartRefused as refusal:
        sys.exit(f"The server does not start: {refusal}")
    if not os.environ.get("WEB_CONCURRENCY"):
        # Empty is unset, to us; gunicorn reads it by itself, and can't read that.
        os.environ.pop("WEB_CONCURRENCY", None)
    config = str(ROOT / "gunicorn.conf.py")
    arguments = ["-m", "gunicorn", "-c", config, "--chdir", str(ROOT), "server_ws:app"]
    os.chdir(ROOT)  # -m looks for modules there
    os.execv(sys.executable, [sys.executable, *arguments])  # nosec B606


def in_the_way(host: str, port: int) -> str | None:
    """A sentence when something listens there already; None when nothing does, or that can't be told."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return (
                    f"Something listens on {host}:{port} already, perhaps another server. Stop it, or set MESSAGE_BUS_PORT;"
                    " for five seconds more this one tries to get the port."
                )
    return None
