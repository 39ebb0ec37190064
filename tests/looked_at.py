"""An extension that looks at messages, by their type: refuses, fails, or has another take their place.

Loaded through BUS_EXTENSIONS by tests of what comes in together.
"""

from __future__ import annotations

from flask import Flask
from msgspec.structs import replace

from bus.bus import Bus
from bus.errors import Malformed
from bus.message import REQUIRES_ACK, Message


def accept(message: Message) -> Message | None:
    """What becomes of a message."""
    if message.type == "refused":
        raise Malformed("This type is not wanted here.", code="not_wanted", field="type")
    if message.type == "fails":
        raise RuntimeError("an extension's own trouble")
    if message.type == "stamped":
        return replace(message, extras=b',"headers":{"stamped":"yes"}')
    if message.type == "tracked":
        return replace(message, flags=REQUIRES_ACK)
    return None


def register(app: Flask, bus: Bus) -> None:
    """Look at each message."""
    bus.before_publish(accept)
