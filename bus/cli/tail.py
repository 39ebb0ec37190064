"""`tail`: follow a client's messages, print them, or run a command for each."""

from __future__ import annotations

from collections.abc import Callable

import click

from bus.cli.options import with_connection, with_json
from bus.cli.process import end_at_sigterm, log_to_stderr
from bus.cli.run import Runner
from bus.cli.show import plural, printer
from bus.client import Client, Message
from bus.client.rest import Rest


@click.command()
@click.option("--client", required=True, help="Whose messages.")
@click.option("--since", help="A cursor, an ISO time, latest or earliest; else where the bus last saw this client.")
@click.option("--topics", help="Topics to follow, too, by commas: builds.* is one level, builds.> all below.")
@click.option("--type", "type_", help="Show only this type; plain messages of others count as received all the same.")
@click.option("--count", type=click.IntRange(min=1), help="Stop after so many messages.")
@click.option("--exec", "command", help="Run this once a message, with the message's JSON on stdin, one after another.")
@with_json
@with_connection
def tail(  # noqa: PLR0913 - one for each option
    *,
    client: str,
    since: str | None,
    topics: str | None,
    type_: str | None,
    count: int | None,
    command: str | None,
    as_json: bool,
    url: str,
    api_key: str | None,
) -> None:
    """Follow a client's messages as that client: what it missed first, then what comes, through restarts of the bus.

    On a terminal they are shown for reading, in a pipe or with --json as JSON, one message a line.

    The bus keeps the place: another `tail` goes on where this one ended. A plain message counts as received when it
    was read from the network, so a crash (of this command, or of an --exec handler) may lose what was read and not
    yet handled. What must not be lost is sent so that it needs an ack: that is given when the message was printed, or
    when the command has succeeded; when the command fails it is delivered again, and its lease is kept as long as the
    command runs. With --type, what needs an ack and is of another type is left alone, for somebody else of this name.
    """
    Rest(url, api_key=api_key).get("/health", {}, object)
    log_to_stderr()
    handle = _exec(Runner(command)) if command else _print(as_json)
    shown = failed = 0
    end_at_sigterm()
    bus = Client(client, url, api_key=api_key, since=since, auto_ack=False)
    bus.subscribe(topics=[topic.strip() for topic in (topics or "").split(",") if topic.strip()])
    with bus:
        for message in bus:
            if type_ is not None and message.type != type_:
                continue
            with bus.holding(message):
                done = handle(message)
            failed += not done
            shown += 1
            if shown == count:
                break
        cursor = bus.cursor
    click.echo(f"Stopped after {plural(shown, 'message')}; --since {cursor} goes on behind them.", err=True)
    if failed:
        click.echo(f"The command failed on {plural(failed, 'message')}.", err=True)
        raise click.exceptions.Exit(1)


def _print(as_json: bool) -> Callable[[Message], bool]:
    show = printer(as_json)

    def handle(message: Message) -> bool:
        show(message)
        message.ack()
        return True

    return handle


def _exec(runner: Runner) -> Callable[[Message], bool]:
    def handle(message: Message) -> bool:
        code = runner.run(message, message.json_line())
        if code == 0:
            message.ack()
            return True
        click.echo(f"{runner.name} ended with {code} on {message.id}.", err=True)
        message.nack(reason=f"{runner.name} ended with {code}")
        return False

    return handle
