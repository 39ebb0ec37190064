"""Clients of Redis by URL: one server, a Sentinel's master, or a Cluster.

`redis://`, `rediss://` and `unix://` as redis-py reads them; `redis+sentinel://host:port,host:port/service/0` and
`redis+cluster://host:port,host:port`, with `rediss+…` for TLS. To be imported once gevent has patched the sockets.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import redis
import redis.cluster
import redis.sentinel
from redis.backoff import NoBackoff
from redis.retry import Retry

from bus.errors import StartRefused

CONNECT_SECONDS, ANSWER_SECONDS = 1.0, 1.0
"""A Redis that takes longer counts as away: nothing rests on it."""

_Sentinel: Any = redis.sentinel.Sentinel
_ClusterNode: Any = redis.cluster.ClusterNode  # the driver does not type them

FORMS = "redis://host:6379/0, rediss://…, unix:///path, redis+sentinel://host:26379,host:26379/service/0 or redis+cluster://…"


def check(url: str) -> None:
    """Raises StartRefused for a URL that no client can be made of. Connects to nothing."""
    try:
        client_of(url)
    except StartRefused:
        raise
    except Exception as error:  # noqa: BLE001  # what the driver makes of what somebody wrote
        raise StartRefused(f"REDIS_URL can't be used ({error}); give {FORMS}.") from None


def client_of(url: str, answer_seconds: float = ANSWER_SECONDS) -> Any:
    """A client that is not connected yet. It is for one greenlet; it raises redis.RedisError or OSError when it is used.

    `answer_seconds`: how long it waits for something to come."""
    scheme = urlsplit(url).scheme
    usual: dict[str, Any] = {
        "socket_connect_timeout": CONNECT_SECONDS,
        "socket_timeout": answer_seconds,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
    }
    if scheme in ("redis", "rediss", "unix"):
        return redis.Redis.from_url(url, **usual)
    if scheme.removesuffix("+sentinel") in ("redis", "rediss") and scheme.endswith("+sentinel"):
        return _of_sentinel(url, usual)
    if scheme.removesuffix("+cluster") in ("redis", "rediss") and scheme.endswith("+cluster"):
        return _Cluster(url, usual)
    raise StartRefused(f"REDIS_URL begins with {scheme or 'no scheme'!r}; give {FORMS}.")


def without_secrets(url: str) -> str:
    """The URL as it may be shown."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _of_sentinel(url: str, usual: dict[str, Any]) -> Any:
    parts = urlsplit(url)
    service, _, database = parts.path.strip("/").partition("/")
    if not service:
        raise StartRefused("REDIS_URL names no service of the Sentinel; give redis+sentinel://host:26379/service/0.")
    options = usual | _credentials(url) | {"db": int(database or 0)} | _tls(url)
    timeouts = {name: usual[name] for name in ("socket_connect_timeout", "socket_timeout")}
    asked = dict(parse_qsl(parts.query))
    secret = {"password": asked["sentinel_password"]} if "sentinel_password" in asked else {}
    return _Sentinel(_hosts(url, 26379), sentinel_kwargs=timeouts | secret, **options).master_for(service)


class _Cluster:
    """A Cluster's client, which connects on building: so it is built when it is used."""

    def __init__(self, url: str, usual: dict[str, Any]) -> None:
        self._nodes = [_ClusterNode(host, port) for host, port in _hosts(url, 6379)]
        self._options = {name: usual[name] for name in ("socket_connect_timeout", "socket_timeout", "protocol")}
        self._options |= _credentials(url) | _tls(url)
        self._client: Any = None

    def __getattr__(self, name: str) -> Any:
        if self._client is None:
            self._client = redis.cluster.RedisCluster(startup_nodes=self._nodes, **self._options)
        return getattr(self._client, name)

    def close(self) -> None:
        if self._client is not None:
            self._client.close()


def _hosts(url: str, port: int) -> list[tuple[str, int]]:
    found = []
    for item in urlsplit(url).netloc.rpartition("@")[2].split(","):
        one = urlsplit(f"//{item}")
        if not one.hostname:
            raise StartRefused(f"REDIS_URL names no host; give {FORMS}.")
        found.append((one.hostname, one.port or port))
    return found


def _credentials(url: str) -> dict[str, Any]:
    user, _, password = urlsplit(url).netloc.rpartition("@")[0].partition(":")
    found = {"username": unquote(user), "password": unquote(password)}
    return {name: value for name, value in found.items() if value}


def _tls(url: str) -> dict[str, Any]:
    return {"ssl": True} if url.startswith("rediss+") else {}
