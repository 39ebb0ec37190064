"""The process around a command: signals that end it, and what it says about its connection."""

from __future__ import annotations

import logging
import signal
import sys


class Ended(Exception):
    """A signal asked to stop; `exit_code` tells which."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


def end_at_sigterm() -> None:
    """Have SIGTERM raise Ended in the main thread, so that what is open is closed."""
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(_signal: int, _frame: object) -> None:
    raise Ended(128 + signal.SIGTERM)


def log_to_stderr() -> None:
    """Say when the connection goes and comes; on a terminal also that it is there."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr, level=logging.WARNING)
    if sys.stderr.isatty():
        logging.getLogger("bus.client").setLevel(logging.INFO)
