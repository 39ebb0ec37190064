"""Mosquitto: MQTT over WebSocket, quality of service 0."""

from __future__ import annotations

from benchmarks.systems import PLAIN, Kind, Place, System, needs, program, said

MQTT = [
    *("--subprotocol", "mqtt"),
    *("--subscriber-speaks", "mqtt", "--publisher-speaks", "mqtt", "--idle-speaks", "mqtt"),
]
CONFIGURATION = """\
listener 0 {folder}/socket
listener {port} 127.0.0.1
protocol websockets
socket_domain ipv4
allow_anonymous true
persistence false
max_queued_messages 0
log_type error
"""


def command(place: Place) -> list[str]:
    """2.0 does not start with WebSockets alone, and on every address without `socket_domain`: hence the first listener.

    As root it would otherwise become a user that can't read the folder.
    """
    file = place.folder / "mosquitto.conf"
    file.write_text(CONFIGURATION.format(port=place.port, folder=place.folder) + "user root\n")
    return [program("mosquitto"), "-c", str(file)]


def systems() -> list[System]:
    load: dict[Kind, list[str]] = {
        "deliver": [*MQTT, "--message", PLAIN],
        "idle": [*MQTT, "--channel", "idle{i}"],
    }
    binary = program("mosquitto")
    missing = "" if binary else needs("mosquitto", debian="mosquitto")
    return [System("mosquitto-ws", "nothing", command, load, said(binary, "-h"), missing)]
