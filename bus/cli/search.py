"""`search`: find messages by the words in them."""

from __future__ import annotations

from typing import Literal

import click
import msgspec

from bus.cli.options import DEFAULT_NAME, with_connection, with_json
from bus.cli.show import moment, printable
from bus.client import Calls, Hit


@click.command()
@click.argument("words", nargs=-1)
@click.option("--from", "sender", help="Only this sender.")
@click.option("--type", "type_", help="Only this type.")
@click.option("--to", help="Only what is addressed to this client, all, topic:NAME or queue:NAME.")
@click.option("--since", help="A cursor or an ISO time.")
@click.option("--until", help="A cursor or an ISO time.")
@click.option(
    "--order", type=click.Choice(["newest", "rank"]), default="newest", show_default=True, help="Which first."
)
@click.option("--limit", default=20, show_default=True, type=click.IntRange(min=1), help="At most so many.")
@with_json
@with_connection
def search(
    *,
    words: tuple[str, ...],
    type_: str | None,
    sender: str | None,
    order: Literal["newest", "rank"],
    limit: int,
    as_json: bool,
    url: str,
    api_key: str | None,
    **given: str | None,
) -> None:
    """Find kept messages in which all WORDS stand, the newest first.

    A word in double quotes, inside the shell's, is a phrase; a star ends the beginning of a word. Case and accents make no
    difference.
    """
    calls = Calls(DEFAULT_NAME, url, api_key=api_key)
    found = calls.search(" ".join(words) or None, sender=sender, type=type_, order=order, limit=limit, **given)
    for hit in found.hits:
        click.echo(_json(hit) if as_json else _row(hit))
    if found.more:
        click.echo("There are more; --limit shows them.", err=True)
    if not found.complete:
        click.echo(f"What is behind {found.indexed_to} is not indexed yet.", err=True)


def _json(hit: Hit) -> bytes:
    snippet = {"text": hit.text, "matches": hit.matches}
    return msgspec.json.encode({"message": msgspec.Raw(hit.message.raw), "snippet": snippet})


def _row(hit: Hit) -> str:
    message, shown, at = hit.message, [], 0
    for begin, length in hit.matches:
        word = printable(hit.text[begin : begin + length])
        shown += [printable(hit.text[at:begin]), click.style(word, bold=True, fg="yellow")]
        at = begin + length
    text = "".join([*shown, printable(hit.text[at:])])
    return f"{moment(message.timestamp)}  {printable(f'{message.sender}  {message.type}  {message.id}')}\n    {text}"
