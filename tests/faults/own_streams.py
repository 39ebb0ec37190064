"""An extension that uses the manager of the streams in Python, inside the server. Loaded through BUS_EXTENSIONS."""

from __future__ import annotations

from typing import Any

from flask import Flask, Response, request

from bus.bus import Bus
from streaming import SSEManager


def register(app: Flask, bus: Bus) -> None:
    """A stream as the body of an answer of its own, and every verb of the manager."""
    manager: SSEManager = app.extensions["streaming"]

    @app.get("/own/stream")
    def own_stream() -> Response:
        return Response(manager.stream_events("own", ["mine"]), mimetype="text/event-stream")

    @app.post("/own/<verb>")
    def own_verb(verb: str) -> dict[str, Any]:
        return {"answer": getattr(manager, verb)(**request.get_json())}
