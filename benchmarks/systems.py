"""What a system under test is: how it is started, which loads it takes, and what the generator must know to drive it.

Every system is the cheapest fair form of its kind: no TLS, no authentication, one core, a fresh store for each run.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import run
from typing import Literal, cast

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("BENCHMARK_PEERS") or ROOT / "build" / "benchmark-peers")
"""Where `python -m benchmarks peers` puts what npm and pip bring."""

Kind = Literal[
    "deliver",
    "both",
    "ingest",
    "post",
    "batch",
    "sse",
    "idle",
    "idle-sse",
    "hop",
    "measured",
    "guarded",
    "guarded-post",
]
"""What a load asks for: see README.md; `both` is deliveries that count once the sender knows that they are kept."""

MARKED = '"payload":{"m":"{marker}","pad":"{pad}"}}'
PLAIN = '{"type":"send","to":"bench{g}",' + MARKED
POSTED = '{"from":"pub{g}","to":"bench{g}",' + MARKED
HTTP_HEAD = (
    "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
)


@dataclass(frozen=True)
class Place:
    """Where one run of a server happens: a free port and an empty folder, both its own."""

    port: int
    folder: Path


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return cast(int, listener.getsockname()[1])


def accepts(port: int) -> bool:
    """True when something listens on the port."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=0.3).close()
    except OSError:
        return False
    return True


@dataclass(frozen=True)
class System:
    """One server: `command` builds its command line, `load` the generator's arguments for each kind it takes.

    `beyond` names questions of those kinds that it can't answer, each with the reason; `missing` says what is not
    installed and how to get it, empty when nothing is missing.
    """

    name: str
    keeps: str
    command: Callable[[Place], list[str]]
    load: Mapping[Kind, list[str]]
    version: str = ""
    missing: str = ""
    working_folder: Path | None = None
    environment: Callable[[Place], dict[str, str]] = field(default=lambda place: {})
    is_ready: Callable[[Place], bool] = field(default=lambda place: accepts(place.port))
    beyond: Mapping[str, str] = field(default_factory=dict)


# ---- what the generator is told


def websocket_load(message: str, *, ready: str = "connection_confirmed") -> list[str]:
    """A WebSocket each on `/ws/<id>`, JSON in text frames; `ready` is what a server says first, if it says something."""
    return [
        *subscriber("/ws/bench{g}", ready=ready),
        *publisher("/ws/pub{g}", ready=ready),
        *("--message", message, "--failure", '"type":"error"'),
    ]


def subscriber(path: str, *, ready: str = "", speaks: str = "text") -> list[str]:
    """What subscribers ask for, and what they wait for."""
    return role("subscriber", path, ready=ready, speaks=speaks)


def publisher(path: str, *, ready: str = "", speaks: str = "text") -> list[str]:
    """What publishers ask for, and what they wait for."""
    return role("publisher", path, ready=ready, speaks=speaks)


def idle(path: str = "/ws/idle{i}", *, ready: str = "", speaks: str = "text", probe: str = "") -> list[str]:
    """What idle clients ask for; `probe` is a path that must answer 200 all the while."""
    return [*role("idle", path, ready=ready, speaks=speaks), *(("--probe", probe) if probe else ())]


def role(who: str, path: str, *, ready: str, speaks: str) -> list[str]:
    return [*(f"--{who}-path", path, f"--{who}-speaks", speaks), *((f"--{who}-ready", ready) if ready else ())]


def post_load(path: str, message: str = POSTED) -> list[str]:
    """One request at a time over each keep-alive connection."""
    return ["--publisher-speaks", "http", "--message", message, "--envelope", posted_to(path)]


def posted_to(path: str) -> str:
    """The envelope of a POST to a path."""
    return HTTP_HEAD.replace("{path}", path) + "{body}"


# ---- what is installed


def program(name: str, *beside: Path) -> str:
    """The path of a program: on PATH, in one of the folders, or beside Python; empty when there is none."""
    folders = [*beside, Path(sys.executable).parent]
    found = next((str(folder / name) for folder in folders if os.access(folder / name, os.X_OK)), "")
    return found or shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/lib/rabbitmq/bin") or ""


def said(*command: str) -> str:
    """The first line that a command prints, on whichever stream; empty without a command."""
    if not command[0]:
        return ""
    done = run(command, capture_output=True, text=True, check=False)
    return ((done.stdout + done.stderr).strip().splitlines() or [""])[0].strip()


def needs(name: str, *, debian: str = "", fetched: bool = False) -> str:
    """The sentence about a missing program."""
    how = "python -m benchmarks peers fetches it" if fetched else f"Debian: apt-get install {debian}"
    return f"{name} is not installed here ({how})"
