"""What `make run` shows: the server answers a send, and the message arrives.

    python -m examples.hello [PID]

Waits for the server at MESSAGE_BUS_HOST:MESSAGE_BUS_PORT, sends one message to itself, and prints both ends. With the
server's process id it does not wait for one that has ended already.
"""

from __future__ import annotations

import os
import sys
import time
import urllib.error
import urllib.request

from bus.client import Client
from bus.errors import BusError
from bus.settings import Settings, load

WAIT_SECONDS = 20.0


def wait_for(url: str, server_pid: int | None = None) -> str | None:
    """Wait until the server answers its health check; None then, else what happened instead, in a sentence."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=1):  # nosec B310
                return None
        except (OSError, urllib.error.URLError):
            if server_pid is not None and not _lives(server_pid):
                return "The server ended before it answered; what it printed says why."
            time.sleep(0.1)
    return f"The server at {url} did not answer within {WAIT_SECONDS:.0f} s."


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # It lives, as somebody else's.
    return True


def main(settings: Settings, server_pid: int | None = None) -> int:
    """Say hello; 0 when the message came back."""
    url = f"http://{settings.message_bus_host}:{settings.message_bus_port}"
    problem = wait_for(url, server_pid)
    if problem is not None:
        print(problem, file=sys.stderr)
        return 1
    try:
        with Client("hello", url, api_key=settings.api_key) as client:
            receipt = client.send("hello", {"text": "hello, bus"})
            message = client.receive(timeout=5)
    except BusError as refusal:
        print(f"The server runs, and refused the first message: {refusal}", file=sys.stderr)
        return 1
    print(f"\nThe server at {url} took {receipt.message_id} and delivered {message.payload}.")
    print("Follow a client in another terminal:  .venv/bin/python -m bus tail --client browser")
    print("Look around:  " + url + "/console     Stop it: Ctrl-C\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(load(), int(sys.argv[1]) if sys.argv[1:] else None))
