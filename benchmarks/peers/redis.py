"""Redis: publish and subscribe, and streams with the append-only file synced always or every second."""

from __future__ import annotations

from benchmarks.systems import PLAIN, Kind, Place, System, needs, program, said

RESP = ["--tcp", "--subscriber-speaks", "resp", "--publisher-speaks", "resp", "--idle-speaks", "resp"]
PUBLISH = "*3\r\n$7\r\nPUBLISH\r\n$6\r\nbench{g}\r\n${length}\r\n{body}\r\n"
ADD = "*5\r\n$4\r\nXADD\r\n$5\r\nbench\r\n$1\r\n*\r\n$1\r\nm\r\n${length}\r\n{body}\r\n"


def listen(who: str, channel: str) -> list[str]:
    """A role that subscribes to a channel."""
    return [f"--{who}-greeting", f"SUBSCRIBE {channel}\r\n", f"--{who}-ready", "subscribe"]


def system(name: str, keeps: str, *settings: str, load: dict[Kind, list[str]]) -> System:
    """redis-server on one port with these settings, and nothing written but what they say."""
    binary = program("redis-server")

    def command(place: Place) -> list[str]:
        network = ("--bind", "127.0.0.1", "--port", str(place.port), "--maxclients", "15000", "--tcp-backlog", "4096")
        backlogs = ("--client-output-buffer-limit", "pubsub 0 0 0")
        return [binary, *network, *backlogs, "--dir", str(place.folder), "--save", "", *settings]

    return System(
        name=name,
        keeps=keeps,
        command=command,
        load=load,
        version=" ".join(said(binary, "--version").split()[:3]),
        missing="" if binary else needs("redis-server", debian="redis-server"),
    )


def systems() -> list[System]:
    """A PUBLISH is answered by a number, an XADD by the entry's id: the only reply here that is a bulk string."""
    pubsub: dict[Kind, list[str]] = {
        "deliver": [*RESP, *listen("subscriber", "bench{g}"), "--message", PLAIN, "--envelope", PUBLISH],
        "idle": [*RESP, *listen("idle", "idle{i}")],
    }
    stream: dict[Kind, list[str]] = {"ingest": [*RESP, "--message", PLAIN, "--envelope", ADD, "--ack", "-"]}
    log = ("--appendonly", "yes", "--appendfsync")
    return [
        system("redis-pubsub", "nothing", load=pubsub),
        system("redis-stream-always", "append-only file, fsync before answer", *log, "always", load=stream),
        system("redis-stream", "append-only file, fsync every second", *log, "everysec", load=stream),
    ]
