"""Which store the settings name, and how many threads read from it."""

from __future__ import annotations

from bus.clock import Clock
from bus.companions import Companions
from bus.settings import Settings
from bus.storage import Store
from bus.storage.sqlite import SqliteStore

SQLITE_READERS = 2


def open_store(settings: Settings, clock: Clock, companions: Companions) -> Store:
    """The store of DATABASE_URL; nothing is opened yet. Raises StartRefused for a URL that can't be read."""
    if not settings.is_on_postgresql:
        return SqliteStore(
            settings.database_path,
            settings.lock_folder,
            clock.now_us,
            durability=settings.durability,
            inbox_limit=settings.inbox_limit,
            queue_limit=settings.queue_limit,
            companions=companions,
        )
    from bus.storage.postgres import Pool, PostgresStore  # noqa: PLC0415  # the driver is loaded where it is used

    return PostgresStore(
        settings.store_url,
        clock,
        durability=settings.durability,
        inbox_limit=settings.inbox_limit,
        queue_limit=settings.queue_limit,
        pool=Pool(
            settings.db_statement_timeout,
            settings.db_connect_timeout,
            settings.web_concurrency * (1 + settings.db_pool_size),
        ),
        companions=companions,
    )


def readers(settings: Settings) -> tuple[int, int]:
    """(threads that read, how many more may for a while)."""
    return (settings.db_pool_size, settings.db_max_overflow) if settings.is_on_postgresql else (SQLITE_READERS, 0)
