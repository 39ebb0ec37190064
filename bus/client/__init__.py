"""The Python client of the bus: send and receive as a named client, through restarts of the server.

    from bus.client import Client

    with Client("code", "http://127.0.0.1:5001") as bus:
        receipt = bus.send("browser", {"action": "open", "url": "https://example.com"}, type="command")
        answer = bus.receive(timeout=30, type="result")

It depends on websockets and msgspec only, and on nothing of the server but the values that both share.
"""

from bus.client.client import Client
from bus.client.errors import BacklogFull, Offline, QueueFull, ReceiptTimeout
from bus.client.outbox import SendOptions
from bus.client.received import Fate, Gap, Message, Receipt

__all__ = [
    "BacklogFull",
    "Client",
    "Fate",
    "Gap",
    "Message",
    "Offline",
    "QueueFull",
    "Receipt",
    "ReceiptTimeout",
    "SendOptions",
]
