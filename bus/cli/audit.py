"""`audit`: who administered the bus and who was refused; list it, export it, and check that nothing of it was changed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from bus.audit.at_rest import NoTrail, exported, stored, stored_in
from bus.audit.record import Anchor, Broken, Chain, Record
from bus.cli.listing import Listing
from bus.cli.options import Command, with_connection, with_json
from bus.cli.show import moment, plural
from bus.client.rest import Rest
from bus.settings import load

EXPORT = "/api/audit/export"


@click.group()
def audit() -> None:
    """Who administered the bus, and who was refused: list, export, verify.

    \b
    python -m bus audit list --outcome refused --since 2026-02-21T17:00:00Z
    python -m bus audit export > audit.jsonl
    python -m bus audit verify
    """


def _with_filters(command: Command) -> Command:
    actor = click.option("--actor", help="Only what this caller did: anybody, admin, key:ID, jwt:SUBJECT.")
    action = click.option("--action", help="Only this operation; key.* for all that begin so.")
    outcome = click.option("--outcome", type=click.Choice(["done", "refused", "failed"]), help="Only these.")
    since = click.option("--since", help="Only from this ISO 8601 time on.")
    until = click.option("--until", help="Only up to this ISO 8601 time.")
    return actor(action(outcome(since(until(command)))))


@audit.command("list")
@_with_filters
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1, 1000), help="At most so many.")
@with_json
@with_connection
def list_(*, as_json: bool, url: str, api_key: str | None, **which: Any) -> None:
    """List records, the youngest first."""
    page = Rest(url, api_key=api_key).get("/api/audit", which, dict[str, Any])
    with Listing("WHEN", ">NUMBER", "WHO", "OUTCOME", ">TIMES", "WHAT", "ON", as_json=as_json) as listing:
        for record in page["records"]:
            on = ":".join(part for part in (record["table_name"], record["record_id"]) if part)
            told = (record[name] for name in ("number", "user_id", "outcome", "times", "operation"))
            listing.add(record, moment(record["timestamp"]), *told, on)
    if page["more"]:
        click.echo("There are more; --limit and --until show them.", err=True)


@audit.command()
@_with_filters
@with_connection
def export(*, url: str, api_key: str | None, **which: Any) -> None:
    """Write the trail to stdout as JSON lines, in order; the first line is the anchor that its chain begins with."""
    for line in Rest(url, api_key=api_key).lines(EXPORT, which):
        click.echo(line, nl=False)


def _noted(_: click.Context, __: click.Parameter, given: str | None) -> Anchor | None:
    if given is None:
        return None
    number, _colon, digest = given.partition(":")
    if not (number.isdigit() and len(digest) == 64):
        raise click.BadParameter("give it as NUMBER:HASH, as an earlier verify, or the log of the server, said it.")
    return Anchor(int(number), digest)


@audit.command()
@click.option("--file", "file", type=click.File("rb"), help="Verify an export instead; - for stdin.")
@click.option("--database", type=click.Path(path_type=Path), help="Verify the log in this file, or a backup of one.")
@click.option("--at-rest", is_flag=True, help="Verify the log of DATA_DIR or DATABASE_URL, without the server.")
@click.option("--expect", metavar="NUMBER:HASH", callback=_noted, help="A record as it was noted earlier.")
@with_connection
def verify(
    *, file: Any, database: Path | None, at_rest: bool, expect: Anchor | None, url: str, api_key: str | None
) -> None:
    """Check every record's hash: the running server's trail, or one at rest. Exits with 1 if it does not hold.

    Who can write the file can write the whole trail anew, or cut its end off. Note what this says, elsewhere, and give
    it to a later verify with --expect.
    """
    try:
        if database is not None or at_rest:
            settings = load()
            on_postgresql = database is None and settings.is_on_postgresql
            found = stored_in(settings.store_url) if on_postgresql else stored(database or settings.database_path)
            with found as (anchor, records):
                chain = _checked(anchor, records, expect)
        else:
            lines = file if file is not None else Rest(url, api_key=api_key).lines(EXPORT, {})
            chain = _checked(*exported(lines), expect)
    except (Broken, NoTrail) as finding:
        raise click.ClickException(str(finding)) from None
    click.echo(f"{plural(chain.records, 'record')}, unbroken. The last one is {chain.end.number}:{chain.end.hash}")


def _checked(anchor: Anchor, records: Iterable[Record], expect: Anchor | None) -> Chain:
    chain = Chain(anchor, expected=expect).add(records)
    chain.close()
    return chain
