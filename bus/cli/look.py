"""Looking: the log, a thread, who is there, what waits, how it is."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from bus.cli.listing import Listing, coloured
from bus.cli.options import DEFAULT_NAME, with_connection, with_json
from bus.cli.show import moment, plural, printer
from bus.client import Calls, Gap
from bus.client.received import message_of
from bus.client.rest import Rest

PAGE = 1000


class _LogPage(msgspec.Struct):
    messages: list[msgspec.Raw]
    cursor: str
    more: bool = False
    gap: Gap | None = None


class _ClientsPage(msgspec.Struct):
    clients: list[dict[str, Any]]
    cursor: str
    more: bool = False


@click.command()
@click.option("--since", help="A cursor or an ISO time; else from the oldest kept.")
@click.option("--until", help="A cursor or an ISO time.")
@click.option("--type", "type_", help="Only this type.")
@click.option("--from", "sender", help="Only this sender.")
@click.option("--to", help="Only what is addressed to this client.")
@click.option("--topic", help="Only these topics: builds.* is one level, builds.> all below.")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(min=1), help="At most so many.")
@with_json
@with_connection
def log(
    *,
    type_: str | None,
    sender: str | None,
    limit: int,
    as_json: bool,
    url: str,
    api_key: str | None,
    **given: str | None,
) -> None:
    """Print the log of all messages, oldest first."""
    rest = Rest(url, api_key=api_key)
    show = printer(as_json)
    query: dict[str, object] = {**given, "type": type_, "from": sender}
    left, more = limit, True
    while more and left > 0:
        page = rest.get("/api/log", {**query, "limit": min(left, PAGE)}, _LogPage)
        if page.gap is not None:
            click.echo(page.gap.sentence(), err=True)
        for raw in page.messages:
            show(message_of(bytes(raw)))
        left, more = left - len(page.messages), page.more
        query["since"] = page.cursor
    if more:
        click.echo(f"There is more; --since {query['since']} goes on.", err=True)


@click.command()
@click.argument("thread_id", metavar="ID")
@click.option("--limit", default=1000, show_default=True, type=click.IntRange(min=1), help="At most so many messages.")
@with_json
@with_connection
def thread(*, thread_id: str, limit: int, as_json: bool, url: str, api_key: str | None) -> None:
    """Print the conversation ID, oldest message first."""
    found = Calls(DEFAULT_NAME, url, api_key=api_key).thread(thread_id, limit=limit)
    show = printer(as_json)
    for message in found.messages:
        show(message)
    people = ", ".join(found.participants) or "nobody"
    lasted = f", {moment(found.started_at)} to {moment(found.last_activity)}" if found.count else ""
    click.echo(f"{plural(found.count, 'message')} of {people}{lasted}.", err=True)


@click.command()
@with_json
@with_connection
def clients(*, as_json: bool, url: str, api_key: str | None) -> None:
    """List who is known, who is online, and how much waits for each."""
    rest = Rest(url, api_key=api_key)
    cursor, more = None, True
    with Listing("CLIENT", "ONLINE", ">WAITING", "LAST SEEN", as_json=as_json) as listing:
        while more:
            page = rest.get("/api/clients", {"cursor": cursor, "limit": PAGE}, _ClientsPage)
            for each in page.clients:
                over = (each.get("over") or "yes") if each["online"] else None
                listing.add(each, each["client"], over, each["waiting"], moment(each.get("last_seen")))
            cursor, more = page.cursor, page.more


@click.command()
@with_json
@with_connection
def queues(*, as_json: bool, url: str, api_key: str | None) -> None:
    """List the queues: what waits, for how long, what is being worked on, and by how many."""
    headings = ("QUEUE", ">WAITING", ">OLDEST", ">IN FLIGHT", ">CONSUMERS", "LIMIT")
    with Listing(*headings, as_json=as_json) as listing:
        for each in Calls(DEFAULT_NAME, url, api_key=api_key).queues():
            oldest = None if each.oldest_seconds is None else f"{each.oldest_seconds:.0f} s"
            most = f"{each.limit}, then {each.on_full}" if each.limit is not None else None
            listing.add(each, each.queue, each.depth, oldest, each.in_flight, each.consumers, most)


@click.command()
@with_json
@with_connection
def status(*, as_json: bool, url: str, api_key: str | None) -> None:
    """Show how the bus is."""
    body = Rest(url, api_key=api_key).get("/api/status", {}, dict[str, Any])
    if as_json:
        click.echo(msgspec.json.encode(body))
        return
    metrics, connections, durability = body["metrics"], body["connections"], body["durability"]
    click.echo(f"status       {coloured(body['status'])}, version {body['version']}, workers {body['workers']}")
    click.echo(f"messages     {metrics['total_messages']}, {metrics['messages_per_minute']} in the last minute")
    click.echo(f"last one     {moment(metrics['last_message_time'])}")
    click.echo(f"connections  {connections['active']} of {len(connections['by_client'])} clients")
    click.echo(f"durability   {durability['setting']} ({durability['store']}): survives {durability['survives']}")
    click.echo(f"cursor       {body['cursor']}")
