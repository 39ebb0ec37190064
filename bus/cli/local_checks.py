"""What can be seen of a bus from its machine: settings, versions, folder, store, disk, clock, port, limits, surroundings.

Nothing is changed, and what runs is not disturbed.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import platform
import re
import resource
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import apsw
import psutil
from dotenv import dotenv_values

from bus.cli.findings import Finding, ok, warning, wrong
from bus.cli.show import size
from bus.clock import Clock
from bus.companions import Companions
from bus.errors import StartRefused
from bus.settings import ROOT, Settings, doubts, load
from bus.storage.opening import open_store
from bus.storage.sqlite import CHECKED_WHOLE_BYTES, NETWORK_FILE_SYSTEMS, OLDEST_ENGINE

OLDEST_PYTHON = (3, 11)
LARGE_WAL_BYTES = 512 * 1024 * 1024
AHEAD_SECONDS = 5.0
"""A last message this much younger than now: the clock was set back."""

SHOWN = ("apsw", "flask", "gevent", "gunicorn", "msgspec", "psycopg", "redis")


def examine() -> Iterator[Finding]:
    """Look at everything. Settings that can't be read leave out what rests on them."""
    yield from _versions()
    try:
        settings = load()
    except StartRefused as refusal:
        yield wrong("settings", str(refusal), "Mend it, then ask again: what rests on the settings was left out.")
        return
    yield from _settings(settings)
    yield from _folder(settings)
    yield from [_database(settings)] if settings.is_on_postgresql else _store(settings)
    yield from _disk(settings)
    yield _port(settings)
    yield from _machine(settings)
    yield from _proxies()


# ---- what is installed


def _versions() -> Iterator[Finding]:
    if sys.version_info < OLDEST_PYTHON:
        yield wrong("python", f"Python {platform.python_version()} is too old.", "Install Python 3.11 or newer.")
    pinned = _pinned()
    found = {name: version for name in sorted({*SHOWN, *pinned}) if (version := _installed(name))}
    missing = [name for name in _needed() if name not in found]
    if missing:
        cure = "Install them: python -m pip install --require-hashes -r requirements.txt"
        yield wrong("versions", f"Not installed: {', '.join(missing)}.", cure)
    other = [
        f"{name} {found[name]} (tested: {pinned[name]})"
        for name in pinned
        if found.get(name, pinned[name]) != pinned[name]
    ]
    if other:
        cure = "Install what was tested: python -m pip install --require-hashes -r requirements.txt"
        yield warning("versions", f"Other versions than the tested ones: {', '.join(other)}.", cure)
    if not missing and not other:
        shown = ", ".join(f"{name} {found[name]}" for name in SHOWN if name in found)
        yield ok("versions", f"Python {platform.python_version()}, {shown}")
    engine = apsw.sqlite_lib_version()
    if tuple(map(int, engine.split("."))) < OLDEST_ENGINE:
        oldest = ".".join(map(str, OLDEST_ENGINE))
        yield wrong(
            "sqlite",
            f"SQLite {engine} can corrupt a log that several processes write.",
            f"Install apsw's wheel with {oldest} or newer.",
        )
    else:
        yield ok("sqlite", f"SQLite {engine}")


def _pinned() -> dict[str, str]:
    """The tested versions, by requirements.txt."""
    file = ROOT / "requirements.txt"
    text = file.read_text() if file.exists() else ""
    return dict(re.findall(r"^([a-z0-9._-]+)==([^ \\;]+)(?![^\n]*;)", text, re.MULTILINE))


def _needed() -> list[str]:
    """What requirements.in names."""
    file = ROOT / "requirements.in"
    text = file.read_text() if file.exists() else ""
    return re.findall(r"^([A-Za-z0-9._-]+)(?:\[[a-z,]+\])?(?:[<>=!~][^;\n]*)?$", text, re.MULTILINE)


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


# ---- settings


def _settings(settings: Settings) -> Iterator[Finding]:
    file = ROOT / ".env"
    known = {name.upper() for name in Settings.__struct_fields__}
    beside = [name for name in dotenv_values(file, interpolate=False) if name not in known] if file.exists() else []
    near = {name: difflib.get_close_matches(name, known, n=1) for name in beside}
    typos = [f"{name} (did you mean {close[0]}?)" for name, close in near.items() if close]
    if typos:
        yield warning(
            "settings", f".env has names that are no settings: {', '.join(typos)}.", "Mend the names in .env."
        )
    for sentence in doubts():
        said, _, cure = sentence.partition("; ")
        yield warning("settings", f"{said}.", f"{cure[:1].upper()}{cure[1:]}")
    where = f"{settings.message_bus_host}:{settings.message_bus_port}"
    keys = "with keys" if settings.auth_on else "without keys"
    if not typos and not doubts():
        yield ok("settings", f"They can be read: {where}, {keys}, durability {settings.durability}.")


# ---- where the log lives


def _folder(settings: Settings) -> Iterator[Finding]:
    folder = settings.database_path.parent
    if not folder.exists():
        parent = next(path for path in folder.parents if path.exists())
        if not os.access(parent, os.W_OK | os.X_OK):
            yield wrong(
                "folder",
                f"{folder} is not there, and {parent} can't be written.",
                "Make it, for this user, or set DATA_DIR.",
            )
        else:
            yield ok("folder", f"{folder} will be made at the first start.")
        return
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        yield wrong(
            "folder",
            f"{folder} can't be read and written by this user.",
            f"Say chown {_user()} {folder}, or run as its owner.",
        )
        return
    kind = _file_system(folder)
    if kind in NETWORK_FILE_SYSTEMS and not settings.is_on_postgresql:
        yield wrong(
            "folder",
            f"{folder} is on a network file system ({kind}), whose locks can't be trusted.",
            "Set DATA_DIR to a local disk.",
        )
        return
    files = [settings.database_path, *(Path(f"{settings.database_path}{end}") for end in ("-wal", "-shm"))]
    there = [file for file in files if file.exists()]
    denied = [file for file in there if not os.access(file, os.R_OK | os.W_OK)]
    if denied:
        yield wrong(
            "permissions",
            f"{denied[0]} can't be read and written by this user.",
            f"Say chown {_user()} {denied[0]}, or run as its owner.",
        )
    elif loose := [file for file in there if file.stat().st_mode & 0o077]:
        yield warning("permissions", f"Others on this machine may read {loose[0]}.", f"Say chmod 600 {loose[0]}.")
    else:
        yield ok("folder", f"{folder} ({kind or 'local'})")


def _user() -> str:
    return psutil.Process().username()


def _file_system(folder: Path) -> str:
    real = str(folder.resolve())
    mounts = [m for m in psutil.disk_partitions(all=True) if f"{real}/".startswith(m.mountpoint.rstrip("/") + "/")]
    return max(mounts, key=lambda m: len(m.mountpoint)).fstype.lower() if mounts else ""


def _store(settings: Settings) -> Iterator[Finding]:
    path = settings.database_path
    if not path.exists() or not path.stat().st_size:
        wal = Path(f"{path}-wal")
        if wal.exists() and wal.stat().st_size:
            yield wrong(
                "store",
                f"{path} is missing or empty, and {wal} is not.",
                "Restore the log from a copy: python -m bus restore FILE",
            )
        else:
            yield ok("store", f"{path} will be made at the first start.")
        return
    if not os.access(path, os.R_OK | os.W_OK):
        return  # told already
    try:
        with contextlib.closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
            connection.set_busy_timeout(5000)
            yield from _stored(connection, path)
    except apsw.Error as error:
        yield wrong(
            "store", f"{path} can't be read: {error}.", "Restore the log from a copy: python -m bus restore FILE"
        )


def _database(settings: Settings) -> Finding:
    try:
        open_store(settings, Clock(settings.data_path), Companions()).check()
    except StartRefused as refusal:
        return wrong("store", str(refusal), "Mend it, or DATABASE_URL (docs/postgresql.md).")
    return ok("store", "PostgreSQL answers, is new enough, and has connections left.")


def _stored(connection: apsw.Connection, path: Path) -> Iterator[Finding]:
    if path.stat().st_size <= CHECKED_WHOLE_BYTES:
        (finding,) = connection.execute("PRAGMA quick_check(1)").fetchall()[0]
        if finding != "ok":
            yield wrong(
                "store",
                f"{path} is damaged: {str(finding).splitlines()[-1]}.",
                "Restore the log from a copy: python -m bus restore FILE",
            )
            return
    head = connection.execute("SELECT seq FROM log_head").fetchall()
    last = connection.execute("SELECT max(stamp) FROM (SELECT stamp FROM messages ORDER BY seq DESC LIMIT 1000)").get
    (kept,) = connection.execute("SELECT count(*) FROM messages").fetchall()[0]
    wal = Path(f"{path}-wal")
    wal_bytes = wal.stat().st_size if wal.exists() else 0
    told = f"{path}: {kept:,} messages, up to seq {head[0][0] if head else 0}, {size(path.stat().st_size)}"
    if wal_bytes > LARGE_WAL_BYTES:
        cure = "A reader holds it: end old backups and shells that have the file open; else start the bus anew."
        yield warning("store", f"{told}, and its -wal file has grown to {size(wal_bytes)}.", cure)
    else:
        yield ok("store", told)
    ahead = (last / 1e6 if isinstance(last, int) else 0.0) - time.time()
    if ahead > AHEAD_SECONDS:
        cure = "Set it right (timedatectl set-ntp true), and start the bus then: deadlines rest on it."
        yield wrong("clock", f"The last message was stored {ahead:,.0f} s in the future of this machine's clock.", cure)
    else:
        yield ok("clock", time.strftime("%Y-%m-%dT%H:%M:%S%z"))


def _disk(settings: Settings) -> Iterator[Finding]:
    folder = next(path for path in (settings.database_path.parent, *settings.database_path.parents) if path.exists())
    usage = shutil.disk_usage(folder)
    least = max(settings.disk_alarm_bytes, usage.total * settings.disk_alarm_percent / 100)
    told = f"{size(usage.free)} of {size(usage.total)} are free"
    if usage.free < least:
        cure = "Make room, or set DATA_DIR to a larger disk: the bus goes on by itself."
        yield wrong("disk", f"{told}; below {size(int(least))} sends are refused.", cure)
    elif usage.free < 2 * least:
        cure = "Make room soon, or set MAX_LOG_BYTES or shorter policies (docs/retention.md)."
        yield warning("disk", f"{told}; below {size(int(least))} sends will be refused.", cure)
    else:
        yield ok("disk", told)


# ---- the machine


def _port(settings: Settings) -> Finding:
    host, port = settings.message_bus_host, settings.message_bus_port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), port))
        except OSError as error:
            holder = _holder(port)
            if holder is not None and "server_ws" in holder:
                return ok("port", f"{port} is the bus's own: {holder}")
            if holder is None and isinstance(error, PermissionError):
                return wrong("port", f"This user may not listen on {port}.", "Set MESSAGE_BUS_PORT to one above 1023.")
            said = f"{holder} has it" if holder else (error.strerror or "it can't be had")
            return wrong(
                "port", f"Port {port} of {host} is not free: {said}.", "End what has it, or set MESSAGE_BUS_PORT."
            )
    return ok("port", f"{port} of {host} is free.")


def _holder(port: int) -> str | None:
    """Who listens there, if this user may know: `nginx (812)`."""
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,) and connection.pid:
                process = psutil.Process(connection.pid)
                command = " ".join(process.cmdline())
                name = "server_ws" if "server_ws" in command else process.name()
                return f"{name} ({connection.pid})"
    return None


def _machine(settings: Settings) -> Iterator[Finding]:
    cores = os.cpu_count() or 1
    workers = settings.web_concurrency
    if workers > 2 * cores:
        yield warning("workers", f"{workers} workers share {cores} cores.", f"Set WEB_CONCURRENCY to {cores}, or less.")
    else:
        yield ok("workers", f"{workers} of {cores} cores")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = settings.max_connections
    if hard != resource.RLIM_INFINITY and wanted > hard - max(hard // 4, 128):
        cure = f"Raise it (ulimit -n, LimitNOFILE=, nofile) to {wanted * 4 // 3 + 1}, or lower MAX_CONNECTIONS."
        yield warning("files", f"A process may open {hard} files, too few for MAX_CONNECTIONS={wanted}.", cure)
    else:
        yield ok("files", f"A process may open {'any number of' if hard == resource.RLIM_INFINITY else hard} files.")
    if os.geteuid() == 0 and not Path("/.dockerenv").exists():
        yield warning(
            "user", "This is root, and the bus would run as it.", "Run it as a user of its own (docs/deployment.md)."
        )


def _proxies() -> Iterator[Finding]:
    names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    found = [name for name in (*names, *map(str.lower, names)) if os.environ.get(name)]
    if found:
        cure = "The command line goes through it to other machines; name the bus in NO_PROXY if it should not."
        yield warning("proxies", f"{', '.join(found)} is set. Webhooks go out without it.", cure)
