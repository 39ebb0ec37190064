"""`doctor`: what is wrong here, and what to do about it."""

from __future__ import annotations

import click
import msgspec

from bus.cli import local_checks, remote_checks
from bus.cli.findings import show, worst
from bus.cli.options import with_connection, with_json
from bus.client.rest import Rest


@click.command()
@click.option("--local", "which", flag_value="local", help="Look at this machine and its settings only.")
@click.option("--remote", "which", flag_value="remote", help="Ask the bus at the URL only.")
@with_json
@with_connection
def doctor(*, which: str | None, as_json: bool, url: str, api_key: str | None) -> None:
    """Look for what is wrong, and say the cure: settings, versions, store, disk, clock, port, limits, and the running bus.

    Without --local or --remote: this machine, and the bus at the URL if it answers. Nothing is changed.

    Exit code 0: all is well; 1: something should be looked at; 2: something is wrong.
    """
    rest = Rest(url, api_key=api_key, timeout_seconds=10)
    findings = [] if which == "remote" else list(local_checks.examine())
    if which != "local":
        told = list(remote_checks.examine(rest))
        if which == "remote" or told[0].level == "ok":
            findings += told
    if as_json:
        for finding in findings:
            click.echo(msgspec.json.encode(finding))
    else:
        show(findings)
    raise click.exceptions.Exit(worst(findings))
