"""Servers on Node.js: `ws`, Socket.IO 4 and uWebSockets.js. Each reads the JSON and makes an envelope for it."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.systems import (
    CACHE,
    MARKED,
    PLAIN,
    Kind,
    System,
    idle,
    needs,
    post_load,
    program,
    said,
    websocket_load,
)

SERVERS = Path(__file__).resolve().parent / "servers"
MODULES = CACHE / "node" / "node_modules"


def socket_io_load() -> dict[Kind, list[str]]:
    """Engine.IO packets over its WebSocket transport: "40" joins the default namespace, "42" is an event."""
    path, joined = "/socket.io/?EIO=4&transport=websocket", '40{"sid"'
    greetings = [f"--{who}-greeting=40" for who in ("subscriber", "publisher", "idle")]
    ready = [f"--{who}-ready={joined}" for who in ("subscriber", "publisher", "idle")]
    common = [*greetings, *ready]
    message = '42["send",{"to":"bench{g}",' + MARKED + "]"
    return {
        "deliver": [
            *common,
            *("--subscriber-path", path + "&client=bench{g}", "--publisher-path", path + "&client=pub{g}"),
            *("--message", message),
        ],
        "idle": [*common, "--idle-path", path + "&client=idle{i}"],
    }


def system(name: str, script: str, package: str, load: dict[Kind, list[str]]) -> System:
    """One script of servers/ that uses one package."""
    about = MODULES / package / "package.json"
    node = program("node")
    missing = "" if about.exists() else needs(package, fetched=True)
    version = f"{package} {json.loads(about.read_text())['version']}, Node {said(node, '-v')}" if about.exists() else ""
    return System(
        name=name,
        keeps="nothing",
        command=lambda place: [node, str(SERVERS / script), str(place.port)],
        load=load,
        version=version,
        missing=missing if node else needs("node", debian="nodejs npm"),
        environment=lambda place: {"NODE_PATH": str(MODULES), "NODE_ENV": "production"},
    )


def systems() -> list[System]:
    """No compression anywhere."""
    plain: dict[Kind, list[str]] = {
        "deliver": websocket_load(PLAIN, ready=""),
        "post": post_load("/api/send"),
        "idle": idle(probe="/health"),
    }
    return [
        system("node-ws", "node_ws.js", "ws", plain),
        system("socket.io", "socket_io.js", "socket.io", socket_io_load()),
        system("uws", "uws.js", "@trufflesuite/uws-js-unofficial", plain),
    ]
