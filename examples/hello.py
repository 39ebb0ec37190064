"""What `make run` shows: the server answers a send, and the message arrives.

Waits for the server at MESSAGE_BUS_HOST:MESSAGE_BUS_PORT, sends one message to itself, and prints both ends.
"""

from __future__ import annotations

import sys
import time
import urllib.error
import urllib.request

from bus.client import Client
from bus.errors import BusError
from bus.settings import Settings, load

WAIT_SECONDS = 20.0


def wait_for(url: str) -> bool:
    """True once the server answers its health check, False when it does not within WAIT_SECONDS."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=1):
                return True
        except (OSError, urllib.error.URLError):
            time.sleep(0.1)
    return False


def main(settings: Settings) -> int:
    """Say hello; 0 when the message came back."""
    url = f"http://{settings.message_bus_host}:{settings.message_bus_port}"
    if not wait_for(url):
        print(f"The server at {url} did not answer within {WAIT_SECONDS:.0f} s.", file=sys.stderr)
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
    print("Look around:  " + url + "/docs     Stop it: Ctrl-C\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(load()))
