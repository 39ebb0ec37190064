"""RabbitMQ: exchanges over AMQP 0-9-1; durable queues with persistent messages, each confirmed, over AMQP and STOMP."""

from __future__ import annotations

import shlex
from pathlib import Path

from benchmarks.systems import PLAIN, Kind, Place, System, free_port, needs, program

AMQP = ["--tcp", "--subscriber-speaks", "amqp", "--publisher-speaks", "amqp", "--message", PLAIN]

STOMP = ["--tcp", "--subscriber-speaks", "stomp", "--publisher-speaks", "stomp", "--message", PLAIN]
LISTENER = {"amqp": "listeners.tcp.1", "stomp": "listeners.tcp = none\nstomp.listeners.tcp.1"}
PLUGINS = {"amqp": "", "stomp": "rabbitmq_stomp"}
ERLANG = "+S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none -kernel inet_dist_use_interface {127,0,0,1}"
MAPPER = "epmd -port {port} -address 127.0.0.1 & until epmd -port {port} -names >/dev/null 2>&1; do sleep 0.05; done;"


def started(place: Place, *, speaks: str) -> list[str]:
    """The broker and a port mapper of its own, in one process group, with everything it writes in the folder.

    One scheduler on its one core, which does not spin while it waits.
    """
    settings = (
        f"{LISTENER[speaks]} = 127.0.0.1:{place.port}\n"
        "log.console = false\nlog.file.level = error\nconsumer_timeout = 3600000\n"
        "vm_memory_high_watermark.relative = 0.6\ndisk_free_limit.absolute = 50MB\n"
    )
    (place.folder / "rabbitmq.conf").write_text(settings)
    (place.folder / "plugins").write_text(f"[{PLUGINS[speaks]}].\n")
    mapper = free_port()
    names = {
        "HOME": place.folder,
        "ERL_CRASH_DUMP": place.folder / "crash",
        "ERL_EPMD_PORT": mapper,
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODENAME": f"bench{place.port}@localhost",
        "RABBITMQ_NODE_PORT": place.port,
        "RABBITMQ_DIST_PORT": free_port(),
        "RABBITMQ_MNESIA_BASE": place.folder / "mnesia",
        "RABBITMQ_LOG_BASE": place.folder / "log",
        "RABBITMQ_CONFIG_FILE": place.folder / "rabbitmq.conf",
        "RABBITMQ_ENABLED_PLUGINS_FILE": place.folder / "plugins",
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": ERLANG,
        "RABBITMQ_FEATURE_FLAGS_FILE": place.folder / "flags",
        "RABBITMQ_PID_FILE": place.folder / "pid",
    }
    exports = " ".join(f"{name}={shlex.quote(str(value))}" for name, value in names.items())
    server = Path(program("rabbitmq-server")).resolve()
    direct = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")  # Debian's wrapper on PATH would change the user
    return [
        *("/bin/sh", "-c"),
        f"export {exports}; {MAPPER.format(port=mapper)} exec {direct if direct.exists() else server}",
    ]


def version() -> str:
    """Found where Debian puts it: the program itself would have to be started to say it."""
    folders = sorted(Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*"))
    return "RabbitMQ " + (folders[-1].name.partition("-")[2] if folders else "of unknown version")


def system(name: str, keeps: str, *, speaks: str, load: dict[Kind, list[str]]) -> System:
    """The broker with one listener that is used."""
    missing = "" if program("rabbitmq-server") else needs("rabbitmq-server", debian="rabbitmq-server")
    return System(name, keeps, lambda place: started(place, speaks=speaks), load, version(), missing)


def systems() -> list[System]:
    """As a distributor of what nobody keeps, and as a keeper."""
    kept, receipts = [*AMQP, "--durable", "--ack", "-"], [*STOMP, "--ack", "-"]
    synced = "durable queue, synced before the confirm"
    return [
        system("rabbitmq", "nothing", speaks="amqp", load={"deliver": AMQP}),
        system("rabbitmq-durable", synced, speaks="amqp", load={"ingest": kept, "both": kept}),
        system("rabbitmq-stomp", synced, speaks="stomp", load={"ingest": receipts, "both": receipts}),
    ]
