"""The Python client of the bus: send and receive as a named client, through restarts of the server.

    from bus.client import Client

    with Client("code", "http://127.0.0.1:5001") as bus:
        receipt = bus.send("browser", {"action": "open", "url": "https://example.com"}, type="command")
        message = bus.receive(timeout=30, type="result")

        answer = bus.request("reviewer", {"file": "main.py"}, wait=30)     # waits for who calls bus.reply(message, …)
        bus.send("queue:builds", {"commit": "4f2c1d"})                     # one worker of many takes it
        bus.work("builds", lambda job: build(job.payload), count=10)       # acked when it returns, given back if it fails

`Calls` is the part that needs no connection. It all depends on websockets and msgspec only, and on nothing of the
server but the values that both share.
"""

from bus.client.calls import Calls
from bus.client.client import Client
from bus.client.errors import BacklogFull, Offline, QueueFull, ReceiptTimeout
from bus.client.outbox import SendOptions
from bus.client.received import Failed, Fate, Gap, Message, Receipt
from bus.client.reports import DeadLetter, Hit, Hits, QueueState, Replay, Reply, Swept, Thread
from bus.client.verdicts import Nack, Reject, Release
from bus.client.worker import Worker

__all__ = [
    "BacklogFull",
    "Calls",
    "Client",
    "DeadLetter",
    "Failed",
    "Fate",
    "Gap",
    "Hit",
    "Hits",
    "Message",
    "Nack",
    "Offline",
    "QueueFull",
    "QueueState",
    "Receipt",
    "ReceiptTimeout",
    "Reject",
    "Release",
    "Replay",
    "Reply",
    "SendOptions",
    "Swept",
    "Thread",
    "Worker",
]
