"""Search: `GET /api/search` finds kept messages by the words in them, in an index that follows the log.

One process in the cluster fills it, any answers. A send never waits for it: an answer says up to where messages are indexed.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from bus import search
from bus.search.indexer import INTERVAL_SECONDS, Host, Indexer
from bus.search.postgres_index import POSTGRESQL
from bus.search.sqlite_index import SQLITE
from bus.transports.search import Searchers, serve_search
from bus.worker import Worker

if TYPE_CHECKING:
    from flask import Flask

    from bus.bus import Bus

MIGRATIONS = Path(search.__file__).parent / "migrations"


def register(app: Flask, bus: Bus) -> None:
    """Index what is kept, and serve the search over REST."""
    index = POSTGRESQL if bus.settings.is_on_postgresql else SQLITE
    host = Host(
        bus.read,
        lambda job: bus.writer.call(job, lazy=True),
        lambda: bus.hub.tail.delivered,
        lambda: bus.writer.waiting > 0,
        bus.pause,
        time.process_time,
        bus.metrics,
    )
    indexer, searchers = Indexer(host, index), Searchers(bus)
    bus.use_tables("search", MIGRATIONS)
    bus.add_worker(searchers)
    bus.add_worker(Worker("search", indexer.tick, interval_seconds=INTERVAL_SECONDS, exclusive=True))
    serve_search(app, bus, index, searchers)
    app.extensions["search"] = indexer
