"""Servers on Python: FastAPI under uvicorn with its fast parts, and Flask-SocketIO with gevent."""

from __future__ import annotations

import json
from pathlib import Path
from subprocess import run

from benchmarks.peers.node import socket_io_load
from benchmarks.systems import (
    CACHE,
    PLAIN,
    Kind,
    Place,
    System,
    idle,
    needs,
    post_load,
    publisher,
    subscriber,
    websocket_load,
)

SERVERS = Path(__file__).resolve().parent / "servers"
PYTHON = CACHE / "python" / "bin" / "python"
ASK_VERSIONS = "import importlib.metadata as m, json, sys; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"


def versions(*packages: str) -> str:
    """The packages of the cache with their versions; empty when one is not there."""
    if not PYTHON.exists():
        return ""
    done = run([str(PYTHON), "-c", ASK_VERSIONS, *packages], capture_output=True, text=True, check=False)
    return ", ".join(f"{name} {number}" for name, number in json.loads(done.stdout or "{}").items())


def fastapi_load() -> dict[Kind, list[str]]:
    """The paths of servers/fastapi_server.py."""
    return {
        "deliver": websocket_load(PLAIN, ready=""),
        "post": post_load("/api/send"),
        "sse": [*subscriber("/sse/bench{g}", speaks="sse"), *publisher("/ws/pub{g}"), "--message", PLAIN],
        "idle": idle(probe="/health"),
        "idle-sse": idle("/sse/idle{i}", speaks="sse", probe="/health"),
    }


def systems() -> list[System]:
    def uvicorn(place: Place) -> list[str]:
        quiet = ("--log-level", "warning", "--no-access-log", "--backlog", "4096", "--ws-per-message-deflate", "false")
        where = ("--app-dir", str(SERVERS), "--host", "127.0.0.1", "--port", str(place.port))
        return [str(PYTHON), "-m", "uvicorn", "fastapi_server:app", *where, *quiet]

    def flask_socketio(place: Place) -> list[str]:
        return [str(PYTHON), str(SERVERS / "flask_socketio_server.py"), str(place.port)]

    fastapi = versions("fastapi", "uvicorn", "uvloop", "httptools", "websockets")
    flask = versions("flask-socketio", "gevent", "gevent-websocket")
    missing_fastapi = "" if fastapi else needs("FastAPI", fetched=True)
    missing_flask = "" if flask else needs("Flask-SocketIO", fetched=True)
    return [
        System("fastapi", "nothing", uvicorn, fastapi_load(), fastapi, missing_fastapi),
        System("flask-socketio", "nothing", flask_socketio, socket_io_load(), flask, missing_flask),
    ]
