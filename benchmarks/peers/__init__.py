"""The peers: one file each, with how it is started, what is said to it, and what it keeps."""

from benchmarks.peers import mosquitto, nats, nchan, node, python, rabbitmq, redis
from benchmarks.systems import System


def all_peers() -> list[System]:
    """Every peer, in the order of the tables."""
    return [
        *nats.systems(),
        *redis.systems(),
        *rabbitmq.systems(),
        *nchan.systems(),
        *mosquitto.systems(),
        *node.systems(),
        *python.systems(),
    ]
