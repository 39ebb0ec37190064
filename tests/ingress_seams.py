"""Says which worker served a request, and stops the clock of signed times. For tests; loaded through BUS_EXTENSIONS.

`X-Worker` is the process's id. With INGRESS_NOW in the environment (Unix seconds) it is always then.
"""

from __future__ import annotations

import os

from flask import Flask, Response, request_finished

from bus.bus import Bus
from bus.ingress import gate


def mark(sender: Flask, response: Response, **_: object) -> None:
    response.headers["X-Worker"] = str(os.getpid())


def register(app: Flask, bus: Bus) -> None:
    """Open the seams."""
    app.extensions["ingress_seams"] = mark
    request_finished.connect(mark, app)
    if "INGRESS_NOW" in os.environ:
        stopped_us = int(os.environ["INGRESS_NOW"]) * 1_000_000
        gate.now_us = lambda: stopped_us
