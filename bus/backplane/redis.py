"""The channel between nodes over Redis: pub/sub, which keeps nothing. Two greenlets: one tells, one listens.

Each has a connection of its own, and makes another when it is lost, sooner at first and later then. What was on its way is
lost with it; the members notice by the numbers of the loads.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from contextlib import closing
from typing import Any

import gevent
import redis
from gevent.event import Event

from bus.backplane.channel import Load
from bus.redis_client import ANSWER_SECONDS, client_of, without_secrets

log = logging.getLogger("bus.backplane")

SHORTEST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 5.0
"""Between two tries to connect: doubled each time, and drawn by chance up to that."""

SILENT_SECONDS = 5.0
"""Who hears nothing for so long, not even itself, connects anew."""

LOADS_AT_ONCE = 50
"""After so many in a row others have a turn."""

STOP_SECONDS = 0.5


class RedisChannel:
    """See `bus.backplane.channel.Channel`."""

    name = "redis"
    carries_rows = True

    def __init__(self, url: str, bus: str) -> None:
        """`bus` names the log: several may share one Redis."""
        self._url = url
        self._all = f"agent-bus:{bus}:all"
        self._to_one = f"agent-bus:{bus}:to:"
        self._wake = Event()
        self._greenlets: list[gevent.Greenlet[..., None]] = []
        self.connects = 0
        self.problem = ""

    def start(self, member: bytes, take: Callable[[], list[Load]], heard: Callable[[bytes], None]) -> None:
        self._member, self._take, self._heard = member, take, heard
        self._begin()

    def kick(self) -> None:
        self._wake.set()

    def reset(self) -> None:
        gevent.killall(self._greenlets, block=False)
        self._begin()

    def stop(self) -> None:
        teller, listener = self._greenlets
        listener.kill()
        self._stopping = True
        self._wake.set()
        teller.join(STOP_SECONDS)
        teller.kill()

    def _begin(self) -> None:
        self._stopping = False
        self._greenlets = [
            gevent.spawn(self._run, self._tell, ANSWER_SECONDS),
            gevent.spawn(self._run, self._listen, SILENT_SECONDS),
        ]

    def _run(self, work: Callable[[Any], None], answer_seconds: float) -> None:
        """Do it again and again, each time with a new connection."""
        tries = 0
        while not self._stopping:
            connects = self.connects
            try:
                with closing(client_of(self._url, answer_seconds)) as client:
                    work(client)
            except (redis.RedisError, OSError) as error:
                if not self.problem:
                    log.warning(
                        "Redis at %s does not answer: %s",
                        without_secrets(self._url),
                        error,
                        extra={"action": "redis_lost"},
                    )
                self.problem = f"{type(error).__name__}: {error}"
            tries = 0 if self.connects > connects else tries + 1
            pause = min(LONGEST_PAUSE_SECONDS, SHORTEST_PAUSE_SECONDS * 2 ** min(tries, 10))
            gevent.sleep(random.uniform(SHORTEST_PAUSE_SECONDS, pause))

    def _tell(self, client: Any) -> None:
        while not self._stopping or self._wake.is_set():
            self._wake.wait()
            self._wake.clear()
            for load in self._take():
                to = self._all if load.to is None else self._to_one + load.to.hex()
                client.publish(to, load.data)

    def _listen(self, client: Any) -> None:
        with closing(client.pubsub(ignore_subscribe_messages=True)) as heard:
            heard.subscribe(self._all, self._to_one + self._member.hex())
            self.connects += 1
            self.problem = ""
            for number, message in enumerate(heard.listen()):
                self._heard(message["data"])
                if number % LOADS_AT_ONCE == 0:
                    gevent.sleep(0)
