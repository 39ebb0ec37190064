"""`health`: whether a running bus is well, as an exit code for scripts and containers."""

from __future__ import annotations

import sys

import click
import msgspec

from bus.cli.listing import coloured
from bus.cli.options import with_connection, with_json
from bus.cli.show import printable
from bus.client import Offline
from bus.client.rest import Rest


class _Check(msgspec.Struct):
    status: str
    message: str = ""


class _Body(msgspec.Struct):
    status: str
    checks: dict[str, _Check] = {}


@click.command()
@click.option("--live", "path", flag_value="/health/live", help="Ask whether it is to be restarted.")
@click.option("--ready", "path", flag_value="/health/ready", help="Ask whether it may be sent work.")
@click.option("--startup", "path", flag_value="/health/startup", help="Ask whether it is initialised.")
@click.option("--timeout", default=3.0, show_default=True, type=click.FloatRange(0, min_open=True), help="In seconds.")
@with_json
@with_connection
def health(*, path: str | None, timeout: float, as_json: bool, url: str, api_key: str | None) -> None:
    """Show how healthy the bus is. Exit code 0: healthy or degraded; 1: unhealthy; 2: no answer."""
    status, text = Rest(url, api_key=api_key, timeout_seconds=timeout).look(path or "/health/status")
    try:
        body = msgspec.json.decode(text, type=_Body)
    except msgspec.DecodeError:
        raise Offline(f"What answers at {url} tells nothing of its health.") from None
    click.echo(text if as_json else _shown(body))
    sys.exit(0 if status == 200 else 1)


def _shown(body: _Body) -> str:
    rows = [
        f"  {name:20} {coloured(check.status, f'{check.status:10}')} {printable(check.message)}"
        for name, check in body.checks.items()
    ]
    return "\n".join([coloured(body.status), *rows])
