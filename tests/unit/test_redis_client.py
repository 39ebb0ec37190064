"""Clients of Redis by URL: a server, a Sentinel's master, a Cluster; and what is no URL of any."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from bus.errors import StartRefused
from bus.redis_client import check, client_of, without_secrets
from bus.testing import HOST, eventually, free_port
from tests.redis_servers import RedisServer


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    """A server."""
    with RedisServer() as server:
        yield server


def is_heard(url: str) -> bool:
    """True when what is published by a client of the URL comes to another one, and a script counts."""
    with closing(client_of(url)) as teller, closing(client_of(url)) as client:
        with closing(client.pubsub(ignore_subscribe_messages=True)) as listener:
            listener.subscribe("here")
            eventually(lambda: teller.publish("here", b"\x00\xff") == 1 or None, what="somebody who listens")
            heard = next(iter(listener.listen()))
        script = teller.register_script("return redis.call('INCR', KEYS[1])")
        counted = script(keys=["{n}"]), script(keys=["{n}"])
    return bool(heard["data"] == b"\x00\xff" and counted[1] == counted[0] + 1)


def test_one_server(redis: RedisServer) -> None:
    assert is_heard(redis.url)


def test_the_master_that_a_sentinel_names(redis: RedisServer, tmp_path: Path) -> None:
    settings = tmp_path / "sentinel.conf"
    settings.write_text(f"sentinel monitor main {HOST} {redis.port} 1\n")
    with RedisServer(str(settings), "--sentinel") as sentinel:
        dead = free_port()
        assert is_heard(f"redis+sentinel://{HOST}:{dead},{HOST}:{sentinel.port}/main/0")


def test_a_cluster() -> None:
    with RedisServer("--cluster-enabled", "yes", "--cluster-port", str(free_port())) as node:
        node.say("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        eventually(lambda: "cluster_state:ok" in node.say("CLUSTER", "INFO"), what="a cluster that serves")
        assert is_heard(f"redis+cluster://{HOST}:{node.port}")


@pytest.mark.parametrize(
    "url",
    [
        "http://redis:6379",
        "redis.internal:6379",
        "redis://host:port",
        "redis+sentinel://host:26379",
        "redis+cluster://",
        "memcached+cluster://host",
    ],
)
def test_what_is_no_url_of_a_redis_is_refused_with_its_forms(url: str) -> None:
    with pytest.raises(StartRefused, match="REDIS_URL"):
        check(url)


@pytest.mark.parametrize(
    "url",
    ["redis://h", "rediss://:p@h:1/2", "unix:///tmp/r.sock?db=1", "redis+sentinel://u:p@h/s", "rediss+cluster://h,i:2"],
)
def test_a_url_is_checked_without_a_connection(url: str) -> None:
    check(url)


def test_a_password_is_not_shown() -> None:
    assert without_secrets("rediss://bus:secret@host:6380/1") == "rediss://host:6380/1"
