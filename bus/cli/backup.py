"""`backup` and `restore`: a copy of the log, taken while the bus runs, and put in place while it does not.

Both work on the files, so they run on the bus's machine, as its user, with its settings (DATA_DIR or DATABASE_URL).
"""

from __future__ import annotations

from pathlib import Path

import click

from bus.cli.show import plural, size
from bus.settings import Settings, load
from bus.storage.sqlite_backup import Copy, back_up, back_up_into, inspect, restore


@click.command()
@click.argument("target", metavar="FILE|FOLDER", type=click.Path(path_type=Path))
@click.option("--keep", type=click.IntRange(min=1), help="In a FOLDER, remove the oldest copies beyond so many.")
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
def backup(*, target: Path, keep: int | None, force: bool) -> None:
    """Write a copy of the log to FILE, or to a new file in FOLDER, while the bus runs.

    Everything that was acknowledged before is in it. It is checked before it gets its name.
    """
    database = _settings().database_path
    removed: list[Path] = []
    if target.is_dir():
        copy, removed = back_up_into(database, target, keep=keep)
    elif keep is not None:
        raise click.UsageError("--keep needs a folder, in which each copy is named by its time.")
    else:
        copy = back_up(database, target, replace=force)
    click.echo(f"Wrote {_told(copy)}.")
    for path in removed:
        click.echo(f"Removed {path}.")


@click.command("restore")
@click.argument("source", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--yes", is_flag=True, help="Do not ask.")
def restore_(*, source: Path, yes: bool) -> None:
    """Put the copy FILE in place of the log. The bus must not run.

    The log begins a new epoch: clients that have seen what came after the copy are told that it is gone. What stood there
    before is set aside, under another name in the same folder.
    """
    settings = _settings()
    copy = inspect(source)
    if not yes:
        click.confirm(f"Put {_told(copy)} in place of {settings.database_path}?", abort=True)
    done = restore(source, settings.database_path, settings.lock_folder)
    click.echo(f"Restored {_told(copy)}; the log goes on in epoch {done.epoch}.")
    if done.set_aside is not None:
        click.echo(f"What stood there before is {done.set_aside}.")


def _settings() -> Settings:
    """Those of a log in a file. Raises ClickException for one on PostgreSQL."""
    settings = load()
    if settings.is_on_postgresql:
        raise click.ClickException(
            "The log is on PostgreSQL, which has its own tools for copies: pg_dump while the bus runs, or pg_basebackup with"
            " an archive of the WAL for a copy of any moment. docs/postgresql.md tells how, and what to do after a restore."
        )
    return settings


def _told(copy: Copy) -> str:
    messages = plural(copy.messages, "message")
    return f"{copy.path}: {messages}, up to {copy.epoch}:{copy.seq}, {size(copy.size_bytes)}"
