"""`integrations`: senders of webhooks whose signed requests become messages; add, try and delete them, see what came."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from shlex import quote
from typing import Any

import click
import msgspec

from bus.cli.listing import Listing, show_json
from bus.cli.options import with_connection, with_json
from bus.cli.show import moment
from bus.client.rest import Rest, segment
from bus.ingress.schemes import SCHEMES
from bus.ingress.signatures import Request
from bus.ingress.signer import Sending, sign

ROOT = "/api/integrations"
FORM = "application/x-www-form-urlencoded"


@click.group("integrations")
def integrations() -> None:
    """Senders of webhooks: whose signed requests become messages, and what came of each.

    \b
    python -m bus integrations add github --to builder --type github
    python -m bus integrations events --outcome bad_signature
    python -m bus integrations sign stripe --secret whsec_… --body '{"id": "evt_1"}'
    """


@integrations.command("list")
@with_json
@with_connection
def list_(*, as_json: bool, url: str, api_key: str | None) -> None:
    """List the integrations: state, scheme, where their messages go."""
    rest, cursor, more = Rest(url, api_key=api_key), "0", True
    with Listing("ID", "STATE", "SCHEME", "TO", "TYPE", "DESCRIPTION", as_json=as_json) as listing:
        while more:
            page = rest.get(ROOT, {"cursor": cursor}, dict[str, Any])
            for each in page["integrations"]:
                to = each["to"] if isinstance(each["to"], str) else ",".join(each["to"])
                listing.add(each, each["id"], each["state"], each["scheme"], to, each["type"], each["description"])
            cursor, more = page["cursor"], page["more"]


def _read_secret(given: str | None) -> str | None:
    """The secret of `--secret`; of `-`, the first line of standard input, where no other user sees it."""
    return sys.stdin.readline().rstrip("\r\n") if given == "-" else given


@integrations.command()
@click.argument("scheme", type=click.Choice(list(SCHEMES)))
@click.option(
    "--to", "to", multiple=True, required=True, help="A client, topic:…, queue:… or all; repeat it for several."
)
@click.option("--type", "type_", default="webhook", show_default=True, help="The messages' type.")
@click.option(
    "--secret", help="The sender's secret; - reads it from standard input. Left out, one is made if it may be."
)
@click.option("--from", "sender", help="Whom the messages are from; left out, a name made of the id.")
@click.option("--require-ack", is_flag=True, help="Deliver each again until it is acked.")
@click.option("--allow", "allowed_ips", multiple=True, help="An address or network that may send; repeat it.")
@click.option("--rate", type=int, help="At most so many a minute.")
@click.option("--template", help="JSON that makes the payload; @file reads it.")
@click.option("--public-url", help="What stands before /api in the URL that the sender calls; Twilio signs it.")
@click.option("--description", help="What it is for.")
@with_connection
def add(*, scheme: str, url: str, api_key: str | None, **given: Any) -> None:
    """Add an integration, and show it with its path and its secret, this once."""
    given["secret"] = _read_secret(given["secret"])
    made = Rest(url, api_key=api_key).post(ROOT, {"scheme": scheme, **_body(given)}, dict[str, Any])
    show_json(made, as_json=False)


@integrations.command()
@click.argument("integration_id", metavar="ID")
@with_json
@with_connection
def show(*, integration_id: str, as_json: bool, url: str, api_key: str | None) -> None:
    """Show an integration."""
    found = Rest(url, api_key=api_key).get(f"{ROOT}/{segment(integration_id)}", {}, dict[str, Any])
    show_json(found, as_json=as_json)


@integrations.command()
@click.argument("integration_id", metavar="ID")
@with_connection
def pause(*, integration_id: str, url: str, api_key: str | None) -> None:
    """Take nothing from it for now: its sender is asked to try again later."""
    Rest(url, api_key=api_key).post(f"{ROOT}/{segment(integration_id)}/pause", {}, object)
    click.echo("Paused.")


@integrations.command()
@click.argument("integration_id", metavar="ID")
@with_connection
def resume(*, integration_id: str, url: str, api_key: str | None) -> None:
    """Take what it sends again."""
    Rest(url, api_key=api_key).post(f"{ROOT}/{segment(integration_id)}/resume", {}, object)
    click.echo("Resumed.")


@integrations.command()
@click.argument("integration_id", metavar="ID")
@click.option("--secret", help="The new one; - reads it from standard input. Left out, one is made if it may be.")
@click.option(
    "--grace", type=float, default=86400.0, show_default=True, help="Seconds that the old secret stays valid."
)
@with_connection
def rotate(*, integration_id: str, secret: str | None, grace: float, url: str, api_key: str | None) -> None:
    """Give an integration a new secret, and print it, this once."""
    body = {"secret": _read_secret(secret), "grace_seconds": grace}
    path = f"{ROOT}/{segment(integration_id)}/rotate"
    click.echo(Rest(url, api_key=api_key).post(path, body, dict[str, Any])["secret"])


@integrations.command()
@click.argument("integration_id", metavar="ID")
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_connection
def delete(*, integration_id: str, yes: bool, url: str, api_key: str | None) -> None:
    """Delete an integration; what came stays in the log for its time."""
    if not yes:
        click.confirm(f"Delete {integration_id}?", abort=True, err=True)
    Rest(url, api_key=api_key).delete(f"{ROOT}/{segment(integration_id)}", {}, object)
    click.echo("Deleted.")


@integrations.command()
@click.argument("integration_id", metavar="[ID]", required=False)
@click.option("--outcome", help="accepted, duplicate, replayed, bad_signature, …: only these.")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1, 1000), help="At most so many.")
@with_json
@with_connection
def events(*, integration_id: str | None, as_json: bool, url: str, api_key: str | None, **which: Any) -> None:
    """What came of webhooks, the youngest first; of one integration, or of all."""
    path = f"{ROOT}/events" if integration_id is None else f"{ROOT}/{segment(integration_id)}/events"
    headings = ("TIME", "INTEGRATION", "OUTCOME", ">COUNT", "ADDRESS", "EVENT", "MESSAGE")
    with Listing(*headings, as_json=as_json) as listing:
        for each in Rest(url, api_key=api_key).get(path, which, dict[str, Any])["events"]:
            told = (each[name] for name in ("integration", "outcome", "count", "address", "event", "message_id"))
            listing.add(each, moment(each["timestamp"]), *told)


@integrations.command("sign")
@click.argument("scheme", type=click.Choice(list(SCHEMES)))
@click.option("--secret", required=True, help="What to sign with; - reads it from standard input.")
@click.option("--body", default="{}", show_default=True, help="The body; @file reads it.")
@click.option("--timestamp", type=int, help="Unix seconds, for botlyne also milliseconds. [now]")
@click.option("--delivery", default="delivery-1", show_default=True, help="The event's id, where a header has it.")
@click.option("--event", default="push", show_default=True, help="The event's name, where a header has it.")
@click.option("--target", default="", help="The URL of the webhook, which Twilio signs.")
@click.option("--curl", is_flag=True, help="A curl command for --target, instead of JSON.")
def sign_(*, scheme: str, body: str, target: str, timestamp: int | None, curl: bool, **given: Any) -> None:
    """A test vector: the headers that a sender puts on a body. Asks no server."""
    text = Path(body[1:]).read_bytes() if body.startswith("@") else body.encode()
    kind = {"Content-Type": FORM if scheme == "twilio" else "application/json"}
    stamp = int(time.time()) if timestamp is None else timestamp
    given["secret"] = _read_secret(given["secret"])
    headers = kind | sign(scheme, Sending(request=Request(kind, text, target), stamp=stamp, **given))
    if not curl:
        show_json({"headers": headers, "body": text.decode(errors="replace")}, as_json=False)
        return
    options = "".join(f" -H {quote(f'{name}: {value}')}" for name, value in headers.items())
    data = quote(f"@{body[1:]}" if body.startswith("@") else body)
    click.echo(f"curl -X POST {quote(target)}{options} --data-binary {data}")


def _body(given: dict[str, Any]) -> dict[str, Any]:
    """What the options of `add` say, as the body of a request."""
    body = {name: value for name, value in given.items() if value}
    body["type"] = body.pop("type_")
    body["to"] = body["to"][0] if len(body["to"]) == 1 else list(body["to"])
    if "allowed_ips" in body:
        body["allowed_ips"] = list(body["allowed_ips"])
    if "rate" in body:
        body["rate"] = {"count": body["rate"]}
    if "template" in body:
        text: str = body["template"]
        made = Path(text[1:]).read_bytes() if text.startswith("@") else text.encode()
        try:
            body["template"] = msgspec.json.decode(made)
        except msgspec.DecodeError:
            raise click.BadParameter("it is not JSON.", param_hint="--template") from None
    return body
