"""`webhooks`: receivers that are told what happens; list, add, test, pause and delete them, look at their deliveries."""

from __future__ import annotations

import time
from typing import Any

import click

from bus.cli.listing import Listing, show_json
from bus.cli.options import with_connection, with_json
from bus.cli.progress import Progress
from bus.cli.show import moment, plural, printable
from bus.client.rest import Rest, segment

ROOT = "/api/webhooks"
LOOK_SECONDS = 0.2


@click.group("webhooks")
def webhooks() -> None:
    """Receivers of webhooks: who is told what happens, and what became of it.

    \b
    python -m bus webhooks add https://example.com/hook --event 'message.*'
    python -m bus webhooks deliveries --state dead
    python -m bus webhooks replay --webhook we-… --since 2026-02-21T17:00:00Z
    """


@webhooks.command("list")
@with_json
@with_connection
def list_(*, as_json: bool, url: str, api_key: str | None) -> None:
    """List the endpoints: state, kind, events, where."""
    rest, cursor, more = Rest(url, api_key=api_key), "0", True
    with Listing("ID", "STATE", "KIND", "EVENTS", "URL", as_json=as_json) as listing:
        while more:
            page = rest.get(ROOT, {"cursor": cursor}, dict[str, Any])
            for hook in page["webhooks"]:
                listing.add(hook, hook["id"], hook["state"], hook["kind"], ",".join(hook["events"]), hook["url"])
            cursor, more = page["cursor"], page["more"]


@webhooks.command()
@click.argument("target", metavar="URL")
@click.option(
    "--event", "events", multiple=True, default=("*",), show_default=True, help="A name, message.* or *; repeat it."
)
@click.option(
    "--kind", type=click.Choice(["http", "slack", "discord"]), help="What is there; by default, the URL says."
)
@click.option("--client", "clients", multiple=True, help="Only what this client sends, gets or does.")
@click.option("--topic", "topics", multiple=True, help="Only messages to topics that match this pattern.")
@click.option("--type", "types", multiple=True, help="Only messages of this type.")
@click.option("--ordered", type=click.Choice(["endpoint", "to", "from"]), help="Strictly one after another.")
@click.option("--ed25519", is_flag=True, help="Have a key pair sign, too; receivers get its public key.")
@click.option("--description", default="", help="What it is for.")
@with_connection
def add(*, target: str, url: str, api_key: str | None, **given: Any) -> None:
    """Add an endpoint at URL, and show it with its secret, this once."""
    body = {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}
    body = {name: value for name, value in body.items() if value}
    made = Rest(url, api_key=api_key).post(ROOT, {"url": target, **body}, dict[str, Any])
    show_json(made, as_json=False)


@webhooks.command()
@click.argument("webhook_id", metavar="ID")
@with_json
@with_connection
def show(*, webhook_id: str, as_json: bool, url: str, api_key: str | None) -> None:
    """Show an endpoint, and how it fares."""
    rest, path = Rest(url, api_key=api_key), f"{ROOT}/{segment(webhook_id)}"
    shown = rest.get(path, {}, dict[str, Any])
    shown["stats"] = rest.get(f"{path}/stats", {}, dict[str, Any])
    show_json(shown, as_json=as_json)


@webhooks.command()
@click.argument("webhook_id", metavar="ID")
@with_connection
def pause(*, webhook_id: str, url: str, api_key: str | None) -> None:
    """Send nothing to an endpoint; what is due to it is kept."""
    Rest(url, api_key=api_key).post(f"{ROOT}/{segment(webhook_id)}/pause", {}, object)
    click.echo("Paused.")


@webhooks.command()
@click.argument("webhook_id", metavar="ID")
@click.option("--set-aside", is_flag=True, help="What is held is not sent; `replay` sends it.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_connection
def resume(*, webhook_id: str, set_aside: bool, yes: bool, url: str, api_key: str | None) -> None:
    """Send to an endpoint again. Says first how much is held for it, and asks."""
    rest, path = Rest(url, api_key=api_key), f"{ROOT}/{segment(webhook_id)}/resume"
    held = rest.post(path, {"dry_run": True}, dict[str, Any])["held"]
    verb = "Set aside" if set_aside else "Send"
    if held and not yes:
        click.confirm(f"{verb} what is held, {_deliveries(held)}?", abort=True, err=True)
    rest.post(path, {"held": "set_aside" if set_aside else "deliver"}, object)
    click.echo("Resumed.")


@webhooks.command()
@click.argument("webhook_id", metavar="ID")
@click.option(
    "--grace", type=float, default=86400.0, show_default=True, help="Seconds that the old secret stays valid."
)
@with_connection
def rotate(*, webhook_id: str, grace: float, url: str, api_key: str | None) -> None:
    """Give an endpoint a new secret, and print it, this once."""
    path = f"{ROOT}/{segment(webhook_id)}/rotate"
    click.echo(Rest(url, api_key=api_key).post(path, {"grace_seconds": grace}, dict[str, Any])["secret"])


@webhooks.command()
@click.argument("webhook_id", metavar="ID")
@with_connection
def test(*, webhook_id: str, url: str, api_key: str | None) -> None:
    """Send a test event now, and say what came of it. Exits with 1 if it was not taken."""
    path = f"{ROOT}/{segment(webhook_id)}/test"
    came = Rest(url, api_key=api_key).post(path, {}, dict[str, Any], wait=35.0)
    click.echo(printable(f"{came['outcome']}  status {came['status']}  {came['total_ms']} ms  {came['detail']}"))
    if not came["ok"]:
        raise SystemExit(1)


@webhooks.command()
@click.argument("webhook_id", metavar="ID")
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_connection
def delete(*, webhook_id: str, yes: bool, url: str, api_key: str | None) -> None:
    """Delete an endpoint, and what it is owed."""
    if not yes:
        click.confirm(f"Delete {webhook_id} and what it is owed?", abort=True, err=True)
    Rest(url, api_key=api_key).delete(f"{ROOT}/{segment(webhook_id)}", {}, object)
    click.echo("Deleted.")


@webhooks.command()
@click.option("--webhook", help="Only of this endpoint.")
@click.option("--state", help="waiting, leased, behind, done or dead: only these.")
@click.option("--event", help="Only of this name.")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1, 1000), help="At most so many.")
@click.option("--id", "delivery_id", help="One delivery whole, with every attempt, as JSON.")
@with_json
@with_connection
def deliveries(*, delivery_id: str | None, as_json: bool, url: str, api_key: str | None, **which: Any) -> None:
    """List deliveries, the youngest first."""
    rest, path = Rest(url, api_key=api_key), f"{ROOT}/deliveries"
    if delivery_id is not None:
        found = rest.get(f"{path}/{segment(delivery_id)}", {}, dict[str, Any])
        show_json(found, as_json=as_json)
        return
    with Listing("CREATED", "ID", "EVENT", "STATE", ">TRIES", "CAUSE", "WEBHOOK", as_json=as_json) as listing:
        for each in rest.get(path, which, dict[str, Any])["deliveries"]:
            told = (each[name] for name in ("id", "event", "state", "attempts", "cause", "webhook"))
            listing.add(each, moment(each["created"]), *told)


@webhooks.command()
@click.argument("delivery_id", metavar="[DELIVERY]", required=False)
@click.option("--webhook", help="Only of this endpoint.")
@click.option("--state", type=click.Choice(["dead", "done"]), default="dead", show_default=True, help="Which.")
@click.option("--event", help="Only of this name.")
@click.option("--since", help="Only from this ISO 8601 time on.")
@click.option("--until", help="Only before this ISO 8601 time.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--no-wait", is_flag=True, help="Return when it has begun.")
@with_connection
def replay(*, delivery_id: str | None, yes: bool, no_wait: bool, url: str, api_key: str | None, **which: Any) -> None:
    """Send deliveries that ended again: one, or all that match. Says first how many there are, and asks."""
    rest = Rest(url, api_key=api_key)
    if delivery_id is not None:
        done = rest.post(f"{ROOT}/deliveries/{segment(delivery_id)}/replay", {}, dict[str, Any])["replayed"]
        click.echo(f"{_deliveries(done)} put back.")
        return
    body = {name: value for name, value in which.items() if value is not None}
    matched = rest.post(f"{ROOT}/replays", {**body, "dry_run": True}, dict[str, Any])["matched"]
    if not matched:
        click.echo("No delivery matches.", err=True)
        return
    if not yes:
        click.confirm(f"Send {_deliveries(matched)} again?", abort=True, err=True)
    made = rest.post(f"{ROOT}/replays", body, dict[str, Any])
    if not no_wait:
        with Progress("Putting back", matched) as progress:
            while made["status"] == "running":
                time.sleep(LOOK_SECONDS)
                made = rest.get(f"{ROOT}/replays/{segment(made['id'])}", {}, dict[str, Any])
                progress.to(made["replayed"])
    click.echo(f"{made['id']}: {made['status']}, {_deliveries(made['matched'])}.")


def _deliveries(count: int) -> str:
    return plural(count, "delivery").replace("deliverys", "deliveries")
