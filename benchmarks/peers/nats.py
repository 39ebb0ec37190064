"""NATS: core over WebSocket and over its own protocol, JetStream with and without a sync before the answer."""

from __future__ import annotations

import json

from benchmarks.systems import CACHE, PLAIN, Kind, Place, System, needs, program, said

CONNECT = 'CONNECT {"verbose":false}\r\n'
NATS = ["--subscriber-speaks", "nats", "--publisher-speaks", "nats", "--idle-speaks", "nats"]
STREAM = json.dumps({"name": "bench", "subjects": ["ingest.>"], "storage": "file", "num_replicas": 1})


def greeting(who: str, lines: str) -> list[str]:
    """A role that says CONNECT, these lines and PING, and waits for the PONG."""
    return [f"--{who}-greeting", CONNECT + lines + "PING\r\n", f"--{who}-ready", "PONG"]


def core_load() -> dict[Kind, list[str]]:
    """Plain publish and subscribe."""
    publish = ["--message", PLAIN, "--envelope", "PUB bench{g} {length}\r\n{body}\r\n"]
    subscribe = greeting("subscriber", "SUB bench{g} 1\r\n")
    return {
        "deliver": [*NATS, *subscribe, *greeting("publisher", ""), *publish],
        "idle": [*NATS, *greeting("idle", "SUB idle{i} 1\r\n")],
    }


def stream_load() -> dict[Kind, list[str]]:
    """Publishing into a stream that answers; the receiver of `both` is a plain subscriber, the cheapest there is."""
    create = f"PUB $JS.API.STREAM.CREATE.bench inbox{{g}} {len(STREAM)}\r\n{STREAM}\r\n"
    ingest = [
        *("--publisher-greeting", CONNECT + "SUB inbox{g} 1\r\n" + create),
        *("--publisher-ready", "stream_create_response", "--failure", '"error"', "--ack", '"seq":'),
        *("--message", PLAIN, "--envelope", "PUB ingest.{g} inbox{g} {length}\r\n{body}\r\n"),
    ]
    receive = greeting("subscriber", "SUB ingest.{g} 1\r\n")
    return {"ingest": ["--tcp", *NATS, *ingest], "both": ["--tcp", *NATS, *receive, *ingest]}


def system(name: str, keeps: str, *, configuration: str, load: dict[Kind, list[str]]) -> System:
    """nats-server with a configuration in which {port} and {folder} are filled in."""
    binary = program("nats-server", CACHE / "python" / "bin")

    def command(place: Place) -> list[str]:
        file = place.folder / "nats.conf"
        text = configuration.replace("{port}", str(place.port)).replace("{folder}", str(place.folder / "store"))
        file.write_text(text)
        return [binary, "-c", str(file)]

    return System(
        name=name,
        keeps=keeps,
        command=command,
        load=load,
        version=said(binary, "-v"),
        missing="" if binary else needs("nats-server", fetched=True),
    )


def systems() -> list[System]:
    """Both transports of core NATS, and JetStream with an immediate fsync and as it comes."""
    over_tcp: dict[Kind, list[str]] = {kind: [*arguments, "--tcp"] for kind, arguments in core_load().items()}
    listen, websocket = 'listen: "127.0.0.1:{port}"\n', 'websocket { listen: "127.0.0.1:{port}", no_tls: true }\n'
    store = 'jetstream { store_dir: "{folder}"{sync} }\n'
    sync, later = store.replace("{sync}", ", sync_interval: always"), store.replace("{sync}", "")
    return [
        system("nats-ws", "nothing", configuration='listen: "127.0.0.1:-1"\n' + websocket, load=core_load()),
        system("nats-tcp", "nothing", configuration=listen, load=over_tcp),
        system("jetstream-sync", "file, fsync before answer", configuration=listen + sync, load=stream_load()),
        system("jetstream", "file, fsync every 2 minutes", configuration=listen + later, load=stream_load()),
    ]
