"""The bus in its forms, and the physical limits beside it: reference.c moves bytes and does nothing else."""

from __future__ import annotations

import http.client
import os
import secrets
import shlex
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from subprocess import run
from urllib.parse import urlsplit

import jwt
import psycopg

from benchmarks.systems import (
    MARKED,
    PLAIN,
    Kind,
    Place,
    System,
    idle,
    post_load,
    posted_to,
    publisher,
    said,
    subscriber,
    websocket_load,
)

ON_POSTGRESQL = "bus-postgresql"
CONFIRMED = "connection_confirmed"
SENT = '"type":"sent"'
BATCH = 100
EPHEMERAL = '{"type":"send","to":"bench{g}","ephemeral":true,' + MARKED
WITH_REF = '{"type":"send","ref":"r","to":"bench{g}",' + MARKED

ENVIRONMENT = {
    "API_KEY": "",
    "BUS_EXTENSIONS": "",
    "DATABASE_URL": "",
    "REDIS_URL": "",
    "ENABLE_AUTH": "false",
    "LOG_LEVEL": "WARNING",
    "INBOX_LIMIT": "1000000000",
    "MAX_CONNECTIONS": "20000",
    "RATE_LIMIT_REQUESTS_PER_MINUTE": "",
    "RATE_LIMIT_REQUESTS_PER_HOUR": "",
    "DRAIN_NOTICE_SECONDS": "0",
    "DRAIN_SPREAD_SECONDS": "0",
}
"""Nothing but the load decides: no limits, no auth, and no slow farewell between two runs."""

SIGNED_WITH = secrets.token_urlsafe(32)
GUARDS = {
    "ENABLE_AUTH": "true",
    "JWT_SECRET": SIGNED_WITH,
    "JWT_ISSUER": "benchmarks",
    "JWT_AUDIENCE": "bus",
    "RATE_LIMIT_REQUESTS_PER_MINUTE": "10000000",
    "RATE_LIMIT_REQUESTS_PER_HOUR": "500000000",
}
"""Each request and frame is looked at and counted, and none is refused."""

BARE = "webhooks,health_checks,enhanced_metrics,message_ttl,log_cap,tracing,inbound_webhooks,audit"
"""What a bus can do without."""


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


def version_of(root: Path) -> str:
    """The checkout and the packages that carry it."""
    described = run(["git", "-C", str(root), "describe", "--always", "--dirty"], capture_output=True, text=True)
    parts = [described.stdout.strip() or "no commit", "Python " + sys.version.split()[0]]
    for package in ("gunicorn", "gevent", "Flask", "msgspec", "apsw"):
        try:
            parts.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(parts)


def batch_load() -> list[str]:
    """POST /api/send/batch with BATCH messages of 200 bytes, of which the first is marked; an answer counts for all."""
    message = '{"from":"pub{g}","to":"bench{g}","payload":{"m":"%s","pad":"%s"}}'
    first, other = message % ("{marker}", "x" * 105), message % ("0" * 29, "x" * 105)
    batch = '{"messages":[' + ",".join([first, *[other] * (BATCH - 1)]) + "]}"
    arguments = ["--publisher-speaks", "http", "--envelope", posted_to("/api/send/batch"), "--message", batch]
    return [*arguments, "--failure", '"error"', "--per-ack", str(BATCH)]


def loads() -> dict[Kind, list[str]]:
    """Everything the bus can be asked for."""
    ingest = [*websocket_load(WITH_REF), "--ack", SENT]
    events = "/stream/events?client_id="
    return {
        "deliver": websocket_load(PLAIN),
        "both": ingest,
        "ingest": ingest,
        "measured": ingest,
        "post": post_load("/api/send"),
        "batch": batch_load(),
        "sse": [
            *subscriber(events + "bench{g}", ready="connected", speaks="sse"),
            *publisher("/ws/pub{g}", ready=CONFIRMED),
            *("--message", PLAIN, "--failure", '"type":"error"'),
        ],
        "idle": idle(ready=CONFIRMED, probe="/health"),
        "idle-sse": idle(events + "idle{i}", ready="connected", speaks="sse", probe="/health"),
    }


def bus(
    name: str,
    keeps: str,
    *,
    root: Path,
    command: str,
    load: Mapping[Kind, list[str]],
    settings: Mapping[str, str],
    databases: str | None = None,
) -> System:
    """The bus from the checkout `root`, started by `command` there, with further settings.

    `databases`: the URL of a PostgreSQL where each run makes a database of its own.
    """

    def environment(place: Place) -> dict[str, str]:
        place_settings = {"MESSAGE_BUS_PORT": str(place.port), "DATA_DIR": str(place.folder)}
        if databases:
            place_settings["DATABASE_URL"] = fresh_database(databases)
        return {**ENVIRONMENT, **place_settings, **settings}

    script = root / "server_ws.py"
    missing = "" if script.exists() else f"{script.name} not found in the checkout"
    if settings.get("REDIS_URL") == "":
        missing = "BENCHMARK_REDIS_URL names no Redis"
    if databases == "":
        missing = "BENCHMARK_DATABASE_URL names no PostgreSQL whose user may create databases"
    return System(
        name=name,
        keeps=keeps,
        command=lambda place: [part.format(port=place.port, python=sys.executable) for part in shlex.split(command)],
        load=load,
        version=version_of(root),
        missing=missing,
        working_folder=root,
        environment=environment,
        is_ready=is_healthy,
    )


def fresh_database(url: str, like: str = "") -> str:
    """A new database beside the one that `url` names, empty or a copy of `like`; it stays when the run is over."""
    name, template = f"bench_{secrets.token_hex(6)}", urlsplit(like).path[1:] or "template1"
    _maintain(url, f"CREATE DATABASE {name} TEMPLATE {template}")
    return urlsplit(url)._replace(path=f"/{name}").geturl()


def drop_database(url: str) -> None:
    """Remove one that `fresh_database` made."""
    _maintain(url, f"DROP DATABASE {urlsplit(url).path[1:]}")


def _maintain(url: str, statement: str) -> None:
    """Run a statement that wants to be outside of a transaction, and of the database that it is about."""
    with psycopg.connect(urlsplit(url)._replace(path="/postgres").geturl(), autocommit=True) as connection:
        connection.execute(statement)


def credential() -> str:
    """A header with a token that may act as any publisher and subscriber of the load, for as long as one may live."""
    now = int(time.time())
    claims = {"iss": "benchmarks", "aud": "bus", "sub": "load", "nbf": now - 30, "iat": now, "exp": now + 3500}
    grant = {"scopes": ["send", "read", "presence"], "clients": ["pub*", "bench*"]}
    return f"Authorization: Bearer {jwt.encode({**claims, 'bus': grant}, SIGNED_WITH, 'HS256')}"


def guarded_loads(*, header: str = "") -> dict[Kind, list[str]]:
    """Messages over both ways, with a header on each request."""
    posts = post_load("/api/send")
    if header:
        posts[-1] = posts[-1].replace("Content-Type", f"{header}\r\nContent-Type", 1)
    sends = [*websocket_load(WITH_REF), "--ack", SENT, *(("--header", header) if header else ())]
    return {"guarded": sends, "guarded-post": posts}


def buses(root: Path, command: str, settings: Mapping[str, str], baseline: Path | None) -> list[System]:
    """The bus as it is, its variants, and, if given, another checkout of it to compare with."""
    durable = "SQLite, fsync before answer and delivery"
    every = loads()
    ephemeral = {kind: [EPHEMERAL if part == PLAIN else part for part in every[kind]] for kind in ("deliver", "sse")}
    relaxed = {kind: every[kind] for kind in ("ingest", "post", "batch", "both")}
    pair: dict[Kind, list[str]] = {"deliver": every["deliver"], "hop": []}

    def variant(name: str, keeps: str, load: Mapping[Kind, list[str]], **more: str) -> System:
        return bus(name, keeps, root=root, command=command, load=load, settings={**settings, **more})

    def on_postgresql(name: str, **more: str) -> System:
        return bus(
            name,
            "PostgreSQL, fsync before answer and delivery",
            root=root,
            command=command,
            load=every,
            settings={**settings, **more},
            databases=os.environ.get("BENCHMARK_DATABASE_URL", ""),
        )

    systems = [
        variant("bus", durable, every),
        variant("bus-ephemeral", "nothing", ephemeral),  # type: ignore[arg-type]
        variant("bus-relaxed", "SQLite, fsync later", relaxed, DURABILITY="relaxed"),  # type: ignore[arg-type]
        on_postgresql(ON_POSTGRESQL),
        on_postgresql(f"{ON_POSTGRESQL}-redis", REDIS_URL=os.environ.get("BENCHMARK_REDIS_URL", "")),
        variant("bus-2-workers", durable, pair, WEB_CONCURRENCY="2"),
        variant("bus-guarded", durable, guarded_loads(header=credential()), **GUARDS),
        variant("bus-bare", durable, guarded_loads(), ENABLE_METRICS="false", DISABLED_EXTENSIONS=BARE),
        variant("bus-unmeasured", durable, {"measured": every["measured"]}, ENABLE_METRICS="false"),
    ]
    if baseline:
        systems.append(
            bus("baseline", durable, root=baseline.resolve(), command=command, load=every, settings=settings)
        )
    return systems


def references(binary: Path) -> list[System]:
    """The physical limits: moving bytes, and writing them down before the answer."""
    version = "gcc " + said("gcc", "-dumpfullversion")
    deliver: dict[Kind, list[str]] = {"deliver": websocket_load(PLAIN), "idle": idle(ready=CONFIRMED)}
    return [
        System(
            name="c-reference",
            keeps="nothing",
            command=lambda place: [str(binary), str(place.port)],
            load=deliver,
            version=version,
        ),
        System(
            name="c-log",
            keeps="a bare file, fdatasync before the answer",
            command=lambda place: [str(binary), str(place.port), str(place.folder / "log")],
            load={"ingest": [*websocket_load(WITH_REF), "--ack", SENT]},
            version=version,
        ),
    ]
