"""How `python server_ws.py` becomes gunicorn: one process image, the same pid."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from bus.errors import StartRefused
from bus.settings import ROOT, load


def main() -> NoReturn:
    """Check the settings, then replace this process. Ends with status 1 and one sentence when they are wrong."""
    try:
        load()
    except StartRefused as refusal:
        sys.exit(f"The server does not start: {refusal}")
    if not os.environ.get("WEB_CONCURRENCY"):
        # Empty is unset, to us; gunicorn reads it by itself, and can't read that.
        os.environ.pop("WEB_CONCURRENCY", None)
    config = str(ROOT / "gunicorn.conf.py")
    arguments = ["-m", "gunicorn", "-c", config, "--chdir", str(ROOT), "server_ws:app"]
    os.chdir(ROOT)  # -m looks for modules there
    os.execv(sys.executable, [sys.executable, *arguments])  # nosec B606
