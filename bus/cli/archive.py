"""`archive`: what has left the log and was kept; list its files, search it by time, put messages back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click
import msgspec

from bus.cli.listing import Listing
from bus.cli.options import Command, with_connection, with_json
from bus.cli.show import moment, plural
from bus.client.received import message_of
from bus.client.rest import Rest


class ArchiveFile(msgspec.Struct):
    """A file of the archive."""

    file: str
    reason: str
    messages: int
    bytes: int
    oldest: str
    youngest: str


class FilesPage(msgspec.Struct):
    """A page of files."""

    files: list[ArchiveFile]
    cursor: str
    more: bool


class Line(msgspec.Struct):
    """An archived message."""

    archived_at: str
    reason: str
    message: msgspec.Raw


class LinesPage(msgspec.Struct):
    """A page of archived messages."""

    messages: list[Line]
    cursor: str
    more: bool
    elsewhere: list[str] = []


class Restored(msgspec.Struct):
    """What came of a restore."""

    found: int
    restored: int
    elsewhere: list[str] = []


@click.group()
def archive() -> None:
    """What has left the log and was archived: list the files, search by time, restore messages.

    \b
    python -m bus archive list
    python -m bus archive search --since 2026-02-21T17:00:00Z --type error
    python -m bus archive restore --id msg-… --to browser
    """


def _with_filters(command: Command) -> Command:
    since = click.option("--since", help="Only messages of this time (ISO 8601) or later.")
    until = click.option("--until", help="Only messages of this time or earlier.")
    type_ = click.option("--type", "type", help="Only this type.")
    sender = click.option("--from", "from", help="Only what this client sent.")
    id_ = click.option("--id", "id", help="Only the message with this id.")
    return since(until(type_(sender(id_(command)))))


@archive.command("list")
@with_json
@with_connection
def list_(*, as_json: bool, url: str, api_key: str | None) -> None:
    """List the archive's files: how many messages, of what time."""
    rest = Rest(url, api_key=api_key)
    total, cursor, more = 0, "0", True
    with Listing("OLDEST", "YOUNGEST", ">MESSAGES", "REASON", "FILE", as_json=as_json) as listing:
        while more:
            page = rest.get("/api/archive/files", {"cursor": cursor}, FilesPage)
            cursor, more = page.cursor, page.more
            for file in page.files:
                total += file.messages
                listing.add(file, moment(file.oldest), moment(file.youngest), file.messages, file.reason, file.file)
    if not as_json:
        click.echo(f"{total:,} messages are archived.")


@archive.command()
@_with_filters
@click.option("--limit", default=100, show_default=True, type=click.IntRange(min=1), help="At most so many.")
@with_json
@with_connection
def search(*, limit: int, as_json: bool, url: str, api_key: str | None, **wanted: str | None) -> None:
    """Show archived messages, in the order in which they left the log."""
    lines = _lines(Rest(url, api_key=api_key), wanted)
    with Listing("SENT", "FROM", "TYPE", "ID", as_json=as_json) as listing:
        for number, line in enumerate(lines):
            if number == limit:
                click.echo("There are more; --limit shows them.", err=True)
                break
            message = message_of(bytes(line.message))
            listing.add(line, moment(message.timestamp), message.sender, message.type, message.id)


def _lines(rest: Rest, wanted: dict[str, str | None]) -> Iterator[Line]:
    cursor, more = "0:0", True
    while more:
        page = rest.get("/api/archive/messages", {**wanted, "cursor": cursor}, LinesPage)
        cursor, more = page.cursor, page.more
        yield from page.messages
        _tell_elsewhere(page.elsewhere)


def _tell_elsewhere(files: list[str]) -> None:
    if files:
        click.echo(
            f"{plural(len(files), 'file')} of the archive could not be read here, such as {files[0]}: another node wrote it."
            " Ask that node, or let all nodes have one folder for DATA_DIR/archive.",
            err=True,
        )


@archive.command()
@_with_filters
@click.option("--to", help="Send them to this client, instead of their first recipients.")
@click.option("--limit", default=1000, show_default=True, type=click.IntRange(1, 10_000), help="At most so many.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_connection
def restore(*, to: str | None, limit: int, yes: bool, url: str, api_key: str | None, **wanted: str | None) -> None:
    """Put archived messages into the log again, under their old ids. What is in the log is left alone."""
    given: dict[str, Any] = {name: value for name, value in wanted.items() if value is not None}
    if not yes and not click.confirm("Put them into their recipients' inboxes again?", err=True):
        raise click.ClickException("Nothing was changed.")
    if to is not None:
        given["to"] = to
    done = Rest(url, api_key=api_key).post("/api/archive/restore", {**given, "limit": limit}, Restored)
    click.echo(f"{plural(done.restored, 'message')} restored, of {done.found:,} found.")
    _tell_elsewhere(done.elsewhere)
