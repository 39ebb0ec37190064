"""`keys` and `auth`: make, list, rotate and revoke API keys; who one is, and why something is allowed or not."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from bus.cli.listing import Listing, show_json
from bus.cli.options import with_connection, with_json
from bus.cli.show import moment, printable
from bus.client.rest import Rest, segment
from bus.identity.caller import SCOPES, USUAL
from bus.identity.policy import Action

ROOT = "/api/keys"
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class Span(click.ParamType[float]):
    """Seconds, or a number with s, m, h or d behind it."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float | int):
            return float(value)
        number, unit = (value[:-1], value[-1]) if value[-1:] in _UNITS else (value, "s")
        try:
            return float(number) * _UNITS[unit]
        except ValueError:
            self.fail(f"{value} is no time; write 90, 90s, 15m, 12h or 30d.", param, ctx)


@click.group("keys")
def keys() -> None:
    """API keys: who may act as whom, send to what, and read which topics and queues.

    \b
    python -m bus keys create --client alice
    python -m bus keys create --client 'ci-*' --scope send --send-to 'topic:builds.>' --expires-in 90d
    python -m bus keys rotate ID --grace 24h
    """


@keys.command("list")
@with_json
@with_connection
def list_(*, as_json: bool, url: str, api_key: str | None) -> None:
    """List the keys: state, last use, whom they stand for."""
    rest, cursor, more = Rest(url, api_key=api_key), "", True
    with Listing("ID", "STATE", "LAST USED", "SCOPES", "CLIENTS", "LABEL", as_json=as_json) as listing:
        while more:
            page = rest.get(ROOT, {"cursor": cursor}, dict[str, Any])
            for key in page["keys"]:
                used = moment(key["last_used_at"]) if key["last_used_at"] else "never"
                scopes, clients = " ".join(key["scopes"]), " ".join(key["clients"])
                listing.add(key, key["id"], key["state"], used, scopes, clients, key["label"])
            cursor, more = page["cursor"], page["more"]


@keys.command()
@click.option("--label", default="", help="What it is for.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    default=USUAL,
    show_default=True,
    type=click.Choice(SCOPES),
    help="What it may do.",
)
@click.option("--client", "clients", multiple=True, help="A name that it may act as; 'ci-*' for all that begin so.")
@click.option("--send-to", multiple=True, default=("*",), show_default=True, help="An address that it may send to.")
@click.option("--topic", "topics", multiple=True, default=(">",), show_default=True, help="What it may subscribe to.")
@click.option("--queue", "queues", multiple=True, default=("*",), show_default=True, help="What it may take from.")
@click.option("--rate-per-minute", type=click.IntRange(min=1), help="At most so many requests a minute.")
@click.option("--expires-in", type=Span(), help="When it ends: 90d, 12h. Without it, never.")
@with_connection
def create(*, url: str, api_key: str | None, **given: Any) -> None:
    """Make a key, and show it with its secret, this once."""
    _print(Rest(url, api_key=api_key).post(ROOT, {k: v for k, v in given.items() if v is not None}, dict[str, Any]))


@keys.command()
@click.argument("key_id", metavar="ID")
@click.option("--grace", default="24h", show_default=True, type=Span(), help="How long both keys stay valid.")
@click.option("--expires-in", type=Span(), help="When the new one ends.")
@with_connection
def rotate(*, key_id: str, grace: float, expires_in: float | None, url: str, api_key: str | None) -> None:
    """Make a successor of a key, and show it, this once; the old one ends after the grace."""
    body = {"grace": grace, **({} if expires_in is None else {"expires_in": expires_in})}
    _print(Rest(url, api_key=api_key).post(f"{ROOT}/{segment(key_id)}/rotate", body, dict[str, Any]))


@keys.command()
@click.argument("key_id", metavar="ID")
@with_connection
def revoke(*, key_id: str, url: str, api_key: str | None) -> None:
    """End a key now; sockets that were opened with it are closed."""
    Rest(url, api_key=api_key).post(f"{ROOT}/{segment(key_id)}/revoke", {}, dict[str, Any])
    click.echo(f"{key_id} is revoked.")


@keys.command()
@click.argument("key_id", metavar="ID")
@with_connection
def delete(*, key_id: str, url: str, api_key: str | None) -> None:
    """Forget a key, which ends it, too."""
    Rest(url, api_key=api_key).delete(f"{ROOT}/{segment(key_id)}", {}, dict[str, Any])
    click.echo(f"{key_id} is deleted.")


@click.group("auth")
def auth() -> None:
    """Who you are to the bus, and why something is allowed or not."""


@auth.command()
@with_json
@with_connection
def me(*, as_json: bool, url: str, api_key: str | None) -> None:
    """Say who the credential stands for, and what it grants."""
    show_json(Rest(url, api_key=api_key).get("/api/auth/me", {}, dict[str, Any]), as_json=as_json)


@auth.command()
@click.argument("action", type=click.Choice([action.value for action in Action]))
@click.argument("target", default="")
@click.option("--key", "key_id", metavar="ID", help="Explain it for the key with this id; else for the caller.")
@with_json
@with_connection
def explain(*, action: str, target: str, key_id: str | None, as_json: bool, url: str, api_key: str | None) -> None:
    """Say whether ACTION on TARGET is allowed, and why. Exit code 1: it is not."""
    body = {"action": action, "target": target, **({} if key_id is None else {"key_id": key_id})}
    found = Rest(url, api_key=api_key).post("/api/auth/explain", body, dict[str, Any])
    if as_json:
        click.echo(msgspec.json.encode(found))
    else:
        click.echo(printable(f"{'yes' if found['allowed'] else 'no'}: {found['why']}"))
    if not found["allowed"]:
        raise click.exceptions.Exit(1)


def _print(body: dict[str, Any]) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(body)))
