"""`search`: find messages by the words in them."""

from __future__ import annotations

import click
import msgspec

from bus.cli.options import with_connection, with_json
from bus.cli.show import moment, printable
from bus.client.received import message_of
from bus.client.rest import Rest

PAGE = 100


class _Snippet(msgspec.Struct):
    text: str
    matches: list[tuple[int, int]]


class _Result(msgspec.Struct):
    message: msgspec.Raw
    snippet: _Snippet


class _Page(msgspec.Struct):
    results: list[_Result]
    cursor: str
    more: bool
    indexed_to: str
    complete: bool


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
    rest = Rest(url, api_key=api_key)
    query: dict[str, object] = {**given, "q": " ".join(words) or None, "type": type_, "from": sender}
    left, more = limit, True
    while more and left > 0:
        page = rest.get("/api/search", {**query, "limit": min(left, PAGE)}, _Page)
        for result in page.results:
            click.echo(msgspec.json.encode(result) if as_json else _row(result))
        left, more, query["cursor"] = left - len(page.results), page.more, page.cursor
    if more:
        click.echo("There are more; --limit shows them.", err=True)
    if not page.complete:
        click.echo(f"What is behind {page.indexed_to} is not indexed yet.", err=True)


def _row(result: _Result) -> str:
    message = message_of(bytes(result.message))
    text, at = [], 0
    for begin, length in result.snippet.matches:
        word = printable(result.snippet.text[begin : begin + length])
        text += [printable(result.snippet.text[at:begin]), click.style(word, bold=True, fg="yellow")]
        at = begin + length
    shown = "".join([*text, printable(result.snippet.text[at:])])
    return f"{moment(message.timestamp)}  {printable(f'{message.sender}  {message.type}  {message.id}')}\n    {shown}"
