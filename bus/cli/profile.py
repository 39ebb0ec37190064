"""`profile`: where the time of messages goes in a running server."""

from __future__ import annotations

import click
import msgspec

from bus.cli.options import with_connection, with_json
from bus.client.rest import Rest
from bus.profile import MAX_SECONDS, Profile, Table


@click.command()
@click.option(
    "--seconds",
    default=5.0,
    show_default=True,
    type=click.FloatRange(0, MAX_SECONDS, min_open=True),
    help="How long to measure.",
)
@click.option("--workers", is_flag=True, help="Also the table of each worker.")
@with_json
@with_connection
def profile(*, seconds: float, workers: bool, as_json: bool, url: str, api_key: str | None) -> None:
    """Measure where the time of messages goes, stage by stage, while the bus works."""
    found = Rest(url, api_key=api_key).post(f"/api/profile?seconds={seconds}", None, Profile, wait=seconds)
    if as_json:
        click.echo(msgspec.json.encode(found))
        return
    show(found.total, f"{len(found.workers)} worker{'s' if len(found.workers) != 1 else ''}")
    for table in found.workers if workers else ():
        click.echo()
        show(table, f"worker {table.worker}")
    for missing in found.missing:
        click.echo(f"worker {missing.worker} is not in it: {missing.reason}", err=True)


def show(table: Table, title: str) -> None:
    """Print a table for people."""
    rate = table.messages / table.seconds if table.seconds else 0.0
    click.echo(f"{title}, {table.seconds:.1f} s: {table.messages:,} messages, {rate:,.0f} a second")
    thread = ""
    for stage in table.stages:
        if stage.thread != thread:
            thread = stage.thread
            cpu = f", {table.loop_cpu:.0%} on a core" if thread == "loop" else ""
            click.echo(
                f"\n{f'{thread}, {table.busy[thread]:.0%} busy{cpu}':32} {'us/message':>10} {'share':>7}", nl=False
            )
            click.echo(f" {'calls':>11} {'messages':>11}")
        each = f"{stage.us_a_message:.2f}" if stage.us_a_message is not None else "-"
        counts = f"{stage.calls or '-':>11} {stage.messages or '-':>11}"
        click.echo(f"  {stage.stage:30} {each:>10} {stage.share:>7.1%} {counts}")
    if table.waits:
        click.echo(f"\n{'waits':32} {'p50 ms':>10} {'p99 ms':>7}")
        for wait in table.waits:
            click.echo(f"  {wait.wait:30} {wait.p50_ms:>10.2f} {wait.p99_ms:>7.2f}")
    commits = table.commits
    if commits.count:
        click.echo(
            f"\n{commits.count:,} commits of {commits.mean:,.1f} messages"
            f" (p50 {commits.p50:,}, p99 {commits.p99:,}, at most {commits.max:,})"
        )
