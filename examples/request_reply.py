"""An agent that answers requests, and a caller that waits for the answers, even for one that comes late.

    python examples/request_reply.py [URL]

The agent counts words with the command `wc`. The caller asks while the agent is there, and gets its answer at once;
it asks while nobody is there, is told so, and fetches the answer when the agent has come back.

Without a URL it starts a server of its own on a free loopback port.
"""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bus.client import Client, Message, Reject  # noqa: E402 - found once the project's folder is on the path
from bus.errors import BusError  # noqa: E402
from bus.testing import BusServer  # noqa: E402

WAIT_SECONDS = 10.0


def count_words(request: Message) -> dict[str, int]:
    """The agent's work: run `wc -w` on the text that was sent. What it returns is the reply."""
    if not isinstance(request.payload, str):
        raise Reject("only texts can be counted")
    counted = subprocess.run(["wc", "-w"], input=request.payload, capture_output=True, check=True, text=True)
    return {"words": int(counted.stdout)}


def agent(name: str, url: str) -> Client:
    """An agent that answers requests of the type `count`; connected, and to be closed."""
    client = Client(name, url)
    client.on_request("count", count_words)
    client.connect()
    return client


def converse(url: str) -> str | None:
    """Ask three times. Returns what went wrong in a sentence, or None."""
    name = f"counter-{secrets.token_hex(3)}"
    with Client(f"asker-{secrets.token_hex(3)}", url) as asker:
        with contextlib.closing(agent(name, url)):
            reply = asker.request(name, "to be or not to be", type="count", wait=WAIT_SECONDS)
        if reply.reply is None:
            return f"Nobody answered within {WAIT_SECONDS:.0f} s."
        print(f"while it is there:  {reply.status}, {reply.reply.payload}")

        try:
            asker.request(name, "is anybody there", type="count", require_online=True)
        except BusError as refusal:
            print(f"while it is away:   {refusal.code}, as was asked for: nothing was sent")
        else:
            return "A request to nobody was not refused."

        reply = asker.request(name, "a question that can wait", type="count", wait=0)
        print(f"while it is away:   {reply.status}, missing: {', '.join(reply.missing)}")
        with contextlib.closing(agent(name, url)):
            reply = asker.fetch_reply(reply.request_id, wait=WAIT_SECONDS)
        if reply.reply is None:
            return f"The agent came back, and there was no answer within {WAIT_SECONDS:.0f} s."
        print(f"when it is back:    {reply.status}, {reply.reply.payload}")
    return None


def main(url: str | None = None) -> int:
    """Run it; 0 when every answer came."""
    with contextlib.ExitStack() as stack:
        problem = converse(url or stack.enter_context(BusServer()).url)
    print(problem or "Every question was answered.")
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
