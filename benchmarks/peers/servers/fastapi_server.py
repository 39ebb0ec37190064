"""A broadcast server on FastAPI: WebSocket /ws/<id>, server-sent events /sse/<id>, POST /api/send."""

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from itertools import count
from typing import Any

from fastapi import FastAPI, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse

app = FastAPI()
sockets: dict[str, set[WebSocket]] = defaultdict(set)
streams: dict[str, set[asyncio.Queue[str]]] = defaultdict(set)
numbers = count(1)


async def deliver(request: dict[str, Any]) -> str:
    """Send a message to everybody on its id; returns its id."""
    to, message_id = request["to"], f"msg-{next(numbers)}"
    timestamp = datetime.now(UTC).isoformat()
    message = {"id": message_id, "to": to, "payload": request["payload"], "timestamp": timestamp}
    text = json.dumps({"type": "message", "message": message})
    for socket in list(sockets[to]):
        await socket.send_text(text)
    for queue in streams[to]:
        queue.put_nowait(text)
    return message_id


@app.websocket("/ws/{client}")
async def connect(socket: WebSocket, client: str) -> None:
    await socket.accept()
    sockets[client].add(socket)
    try:
        while True:
            request = json.loads(await socket.receive_text())
            if request["type"] == "send":
                await deliver(request)
    except WebSocketDisconnect:
        sockets[client].discard(socket)


@app.get("/sse/{client}")
async def stream(client: str) -> StreamingResponse:
    queue: asyncio.Queue[str] = asyncio.Queue()

    async def events() -> AsyncIterator[str]:
        streams[client].add(queue)
        try:
            yield ": connected\n\n"
            while True:
                yield f"event: message_received\ndata: {await queue.get()}\n\n"
        finally:
            streams[client].discard(queue)

    return StreamingResponse(events(), media_type="text/event-stream")


@app.post("/api/send")
async def send(request: Request) -> dict[str, str]:
    return {"status": "sent", "message_id": await deliver(await request.json())}


@app.get("/health")
async def health() -> dict[str, str]:
    return {"status": "healthy"}
