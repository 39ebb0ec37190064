"""The product of `tests.model.product` on PostgreSQL: the same steps, two connections that write and one that reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bus.bus import MIGRATIONS
from bus.storage.postgres import PostgresStore
from tests.model.product import Product

_TABLES = """
SELECT string_agg(quote_ident(relname), ', ') FROM pg_class
 WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace
   AND relname NOT IN ('migrations', 'epochs', 'identity', 'log_head', 'policies')"""
_EMPTY_HEAD = "UPDATE log_head SET seq = 0, total_messages = 0, kept_bytes = 0, lost_through = 0"


class PostgresProduct(Product):
    """Its first life begins with empty tables, in the one database that `url` names."""

    url = ""

    def _open(self) -> None:
        clock: Any = SimpleNamespace(now_us=lambda: self.now, follow=lambda _: None)
        store = PostgresStore(self.url, clock, durability="relaxed", **self._limits)
        store.open([("core", MIGRATIONS)])
        if not self._lives:
            connection = store.connect(None)
            connection.run(f"TRUNCATE {connection.execute(_TABLES).get}")
            connection.run(_EMPTY_HEAD)
            connection.close()
        self.epochs = store.epochs
        self.writers = [store.writer(), store.writer()]  # type: ignore[misc, list-item]
        self.reader = store.reader()  # type: ignore[assignment]

    def kill(self) -> None:
        """End without a word: the server undoes what was not committed. Then start again."""
        self._shut()
        self._lives += 1
        self._open()

    def leave_open(self) -> None:
        """Begin a transaction that will never be committed, and do harm in it."""
        writer: Any = self.writers[0]
        connection, _ = writer._begin([])
        for table in ("deliveries", "dead_letters", "backlogs", "settled", "messages", "idempotency"):
            connection.execute(f"DELETE FROM {table}")
        connection.flush()


def product_on(url: str) -> Callable[[Path, Path, int, int], Product]:
    """A class of products in one database."""
    return type("Product", (PostgresProduct,), {"url": url})
