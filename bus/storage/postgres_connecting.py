"""Opens a connection of libpq's for a native thread. Where no server answers, that thread alone waits.

psycopg's own call keeps the interpreter's lock until the end, and with it the event loop.
"""

from __future__ import annotations

import random
import select
import time
from collections.abc import Iterator
from typing import Any

from gevent.monkey import get_original
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

_poll = get_original("select", "poll")


class NotOpened(Exception):
    """No server took the connection; the text is libpq's, or says that none answered."""


def opened(conninfo: str) -> pq.abc.PGconn:
    """A connection to the first of the hosts that takes one; each has `connect_timeout` seconds. Raises NotOpened."""
    failures = []
    for one in _hosts(conninfo):
        connection = pq.PGconn.connect_start(make_conninfo(**one).encode())
        seconds = float(one.get("connect_timeout") or 0)
        try:
            _wait(connection, time.monotonic() + seconds if seconds > 0 else None)
        except NotOpened as failure:
            connection.finish()
            failures.append(str(failure) or f"{one.get('host', 'the server')} did not answer within {seconds:g} s")
        else:
            return connection
    raise NotOpened(" ".join(failures))


def _hosts(conninfo: str) -> Iterator[dict[str, Any]]:
    """The parameters for each host: libpq goes on to the next one by itself, but not from one that is silent."""
    given = conninfo_to_dict(conninfo)
    lists = {name: str(given[name]).split(",") for name in ("host", "hostaddr", "port") if given.get(name)}
    order = list(range(max([1, *(len(values) for name, values in lists.items() if name != "port")])))
    if given.get("load_balance_hosts") == "random":
        random.shuffle(order)
    for at in order:
        yield {**given, **{name: values[at if len(values) > 1 else 0] for name, values in lists.items()}}


def _wait(connection: pq.abc.PGconn, deadline: float | None) -> None:
    """Until it is open. Raises NotOpened, without a text when the time is over."""
    status: int = pq.PollingStatus.WRITING
    while connection.status != pq.ConnStatus.BAD and status != pq.PollingStatus.OK:
        waiting = _poll()  # the socket may be another one each time
        waiting.register(connection.socket, select.POLLIN if status == pq.PollingStatus.READING else select.POLLOUT)
        left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        if not waiting.poll(left):
            raise NotOpened
        status = connection.connect_poll()
        if status == pq.PollingStatus.FAILED:
            break
    if status != pq.PollingStatus.OK:
        raise NotOpened(connection.get_error_message().strip().replace("\n", " "))
