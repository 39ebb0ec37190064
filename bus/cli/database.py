"""`migrate`, `copy` and `new-epoch`: the tables of the log, a move to PostgreSQL, and a log that was restored."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from bus.cli.show import plural
from bus.clock import Clock
from bus.companions import Companions
from bus.errors import StartRefused
from bus.settings import load
from bus.storage import Store
from bus.storage.opening import open_store


@click.command()
@click.option("--check", is_flag=True, help="Only say what is due; the exit code is 1 if anything is.")
def migrate(*, check: bool) -> None:
    """Bring the tables of the log up to this version, as every start of the bus does. Several may do so at once.

    It goes by the settings of the bus: DATABASE_URL, and which extensions are on. SQLite's log must not be open.
    """
    store, migrations = _store()
    due = store.due(migrations)
    if check:
        click.echo("\n".join(due) if due else "Nothing is due.")
        raise SystemExit(1 if due else 0)
    settings = load()
    settings.lock_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    store.check()
    store.open(migrations)
    click.echo(f"{plural(len(due), 'migration')} applied." if due else "Nothing was due.")


@click.command()
@click.argument("source")
@click.argument("target")
def copy(*, source: str, target: str) -> None:
    """Copy a log from SQLite into an empty database of PostgreSQL: messages, cursors, leases, outbox, all of it.

    \b
    python -m bus copy sqlite:///data/bus.db postgresql://bus:secret@db/bus

    The bus must be stopped. What arrived is compared with what was sent before anything is committed. Start the bus on it
    then: its clients go on with the cursors that they have. Files beside the log (keys, archives) stay in DATA_DIR.
    """
    from bus.storage import copying  # noqa: PLC0415  # the driver is loaded where it is used
    from bus.storage.postgres import PostgresStore  # noqa: PLC0415

    settings = load({"DATABASE_URL": source}, None)
    if settings.is_on_postgresql or not load({"DATABASE_URL": target}, None).is_on_postgresql:
        raise StartRefused("It copies from sqlite:///path to postgresql://host/database.")
    store = PostgresStore(target, _clock(), durability="full", inbox_limit=1, queue_limit=1)
    _, migrations = _store()

    def progress(table: str, rows: int) -> None:
        click.echo(f"\r{table}: {rows}", nl=False, err=True)

    copied = copying.copy(settings.database_path, store, migrations, settings.lock_folder, progress)
    click.echo("\r", nl=False, err=True)
    rows = sum(copied.rows.values())
    click.echo(
        f"Copied {plural(rows, 'row')} of {plural(len(copied.rows), 'table')}, up to seq {copied.seq}; all is as it was."
    )


@click.command("new-epoch")
@click.confirmation_option(prompt="Is every server of this log stopped, and was its database restored from a copy?")
def new_epoch() -> None:
    """After a restore of PostgreSQL from a snapshot of its disk: tell clients that what came after it is gone.

    A restore by pg_dump, of another cluster or timeline, is noticed by itself.
    """
    from bus.storage.postgres import PostgresStore  # noqa: PLC0415  # the driver is loaded where it is used

    store, _ = _store()
    if not isinstance(store, PostgresStore):
        raise StartRefused("A log in SQLite begins a new epoch by itself; `restore` puts a copy in its place.")
    click.echo(f"The log begins the epoch {store.begin_epoch()}.")


def _store() -> tuple[Store, Sequence[tuple[str, Path]]]:
    """The store of the settings, and the migrations of all that is switched on: the app itself says which."""
    app: Any = importlib.import_module("server_ws").create_app()
    return open_store(load(), _clock(), Companions()), app.extensions["bus"].migrations


def _clock() -> Clock:
    return Clock(Path())
