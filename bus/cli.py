"""The command line, `python -m bus`: send, follow and look, at home in a pipe.

`send` and the commands that look speak REST, so they open no inbox: sending in the name of a client takes nothing of
what waits for it. `tail` is a client. What a program reads goes to stdout; what a person reads, beside it, to stderr.

Exit codes: 0 done, 1 something was refused or failed, 2 the bus can't be reached or the command is wrong, 128 + n
ended by signal n.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, TypeVar

import click
import msgspec

from bus import __version__
from bus.client import Client, Gap, Message, Offline, Receipt
from bus.client.bulk import BulkSender, GivenUp
from bus.client.received import message_of
from bus.client.rest import Rest
from bus.errors import BusError

DEFAULT_URL = "http://127.0.0.1:5001"
DEFAULT_SENDER = "cli"
READ_BYTES = 64 * 1024
PAGE = 1000

Command = TypeVar("Command", bound=Callable[..., Any])


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="multi-agent-bridge")
def cli() -> None:
    """Talk to a message bus from the shell."""


def with_connection(command: Command) -> Command:
    """The options that say where the bus is and who asks."""
    url = click.option("--url", envvar="MESSAGE_BUS_URL", default=DEFAULT_URL, show_default=True, help="The bus.")
    key = click.option(
        "--api-key",
        envvar=["MESSAGE_BUS_API_KEY", "API_KEY"],
        help="The key, if the bus wants one. Better in the environment: other users see command lines.",
    )
    return url(key(command))


def with_json(command: Command) -> Command:
    """The option that turns what a person reads into JSON lines."""
    return click.option("--json", "as_json", is_flag=True, help="JSON, one object a line.")(command)


# ---- send


@cli.command()
@click.argument("payload", required=False)
@click.option("--to", required=True, multiple=True, help="A client, all; give it again for several clients.")
@click.option("--from", "client", default=DEFAULT_SENDER, show_default=True, help="In whose name.")
@click.option("--type", "type_", default="message", show_default=True, help="The message's type.")
@click.option("--lines", is_flag=True, help='Each line of stdin is a message: {"line": text, "n": its number}.')
@click.option("--json", "as_json", is_flag=True, help="The payload, or each line, is JSON and goes as it is.")
@click.option("--priority", help="critical, high, normal, low, bulk, or its number.")
@click.option("--correlation-id", help="What this belongs to, or answers.")
@click.option("--reply-to", help="Where answers should go.")
@click.option("--thread-id", help="The conversation.")
@click.option("--patience", default=60.0, show_default=True, help="Seconds to go on trying while the bus is away.")
@with_connection
def send(  # noqa: PLR0913 - one for each option
    *,
    payload: str | None,
    to: tuple[str, ...],
    client: str,
    type_: str,
    lines: bool,
    as_json: bool,
    priority: str | None,
    correlation_id: str | None,
    reply_to: str | None,
    thread_id: str | None,
    patience: float,
    url: str,
    api_key: str | None,
) -> None:
    """Send PAYLOAD, or what comes on stdin, as one message, or with --lines as one message a line.

    Lines are sent as they come, in order, each stored once: a restart of the bus in between loses and repeats none.
    What is not UTF-8 in a line is sent as \\xNN.
    """
    if lines and payload is not None:
        raise click.UsageError("With --lines the messages come on stdin; leave PAYLOAD out.")
    optional = {"correlation_id": correlation_id, "reply_to": reply_to, "thread_id": thread_id}
    fields: dict[str, object] = {"from": client, "to": to[0] if len(to) == 1 else list(to), "type": type_}
    fields.update({name: value for name, value in optional.items() if value is not None})
    if priority is not None:
        fields["priority"] = int(priority) if priority.isdigit() else priority
    rest = Rest(url, api_key=api_key)
    rest.get("/health", {}, object)
    sender = BulkSender(rest, patience_seconds=patience)
    if lines:
        _send_lines(sender, fields, as_json=as_json)
    else:
        _send_one(sender, fields, payload, as_json=as_json)


def _send_one(sender: BulkSender, fields: dict[str, object], payload: str | None, *, as_json: bool) -> None:
    if payload is None:
        payload = _text_of(sys.stdin.buffer.read()).removesuffix("\n")
    body: dict[str, object] = _payload_of(payload.encode(), as_json) if as_json else {"payload": payload}
    (outcome,) = sender.send([{**fields, **body, "idempotency_key": secrets.token_hex(12)}])
    if isinstance(outcome, BusError):
        raise outcome
    click.echo(msgspec.json.encode(outcome))
    for fate in outcome.recipients:
        if fate.state == "unknown":
            click.echo(f"The bus has not met {fate.client} yet; the message waits for it.", err=True)


def _send_lines(sender: BulkSender, fields: dict[str, object], *, as_json: bool) -> None:
    run = secrets.token_hex(8)
    number = sent = failed = 0
    try:
        for lines in _lines(sys.stdin.fileno()):
            bodies: list[dict[str, object]] = []
            numbers: list[int] = []
            for line in lines:
                number += 1
                if as_json and not line.strip():
                    continue
                try:
                    body = _payload_of(line, as_json, number)
                except msgspec.DecodeError as error:
                    failed += _report(number, f"it is not JSON: {error}.")
                    continue
                bodies.append({**fields, **body, "idempotency_key": f"{run}-{number}"})
                numbers.append(number)
            outcomes = sender.send(bodies)
            refused = [(n, o) for n, o in zip(numbers, outcomes, strict=True) if isinstance(o, BusError)]
            failed += sum(_report(n, error.sentence) for n, error in refused)
            sent += len(outcomes) - len(refused)
    except GivenUp as error:
        sent += sum(isinstance(outcome, Receipt) for outcome in error.outcomes)
        raise click.ClickException(f"Given up after {sent} messages: {error.sentence}") from None
    finally:
        click.echo(f"{sent} sent{f', {failed} not sent' if failed else ''}.", err=True)
    if failed:
        raise click.exceptions.Exit(1)


def _report(number: int, why: str) -> int:
    click.echo(f"Line {number} was not sent: {why}", err=True)
    return 1


def _payload_of(line: bytes, as_json: bool, number: int = 1) -> dict[str, object]:
    if as_json:
        return {"payload": msgspec.json.decode(line, type=msgspec.Raw)}
    return {"payload": {"line": _text_of(line), "n": number}}


def _text_of(data: bytes) -> str:
    return data.decode("utf-8", errors="backslashreplace")


def _lines(descriptor: int) -> Iterator[list[bytes]]:
    """The lines of a stream as they come, without their ends: each list is what one read completed.

    While a batch is on its way the next gathers in the pipe, and a full pipe holds back whoever writes to it.
    """
    rest = b""
    while chunk := os.read(descriptor, READ_BYTES):
        *lines, rest = (rest + chunk).split(b"\n")
        if lines:
            yield lines
    if rest:
        yield [rest]


# ---- tail


@cli.command()
@click.option("--client", required=True, help="Whose messages.")
@click.option("--since", help="A cursor, an ISO time, latest or earliest; else where the bus last saw this client.")
@click.option("--type", "type_", help="Show only this type; the others count as received all the same.")
@click.option("--count", type=click.IntRange(min=1), help="Stop after so many messages.")
@click.option("--exec", "command", help="Run this once a message, with the message's JSON on stdin, one after another.")
@with_json
@with_connection
def tail(
    *,
    client: str,
    since: str | None,
    type_: str | None,
    count: int | None,
    command: str | None,
    as_json: bool,
    url: str,
    api_key: str | None,
) -> None:
    """Follow a client's messages as that client: what it missed first, then what comes, through restarts of the bus.

    On a terminal they are shown for reading, in a pipe or with --json as JSON, one message a line.

    The bus keeps the place: another `tail` goes on where this one ended. It counts a message as received when it was
    read from the network, so a crash (of this command, or of an --exec handler) may lose what was read and not yet
    handled; what must not be lost is sent so that it needs an ack, or followed with an own --since.
    """
    Rest(url, api_key=api_key).get("/health", {}, object)
    _log_to_stderr()
    show = _runner(command) if command else _printer(as_json or not sys.stdout.isatty())
    shown = failed = 0
    with _follow(client, url, api_key, since) as bus:
        for message in bus:
            if type_ is not None and message.type != type_:
                continue
            if show(message):
                bus.ack(message)
            else:
                failed += 1
            shown += 1
            if shown == count:
                break
        cursor = bus.cursor
    click.echo(f"Stopped after {shown} messages; --since {cursor} goes on behind them.", err=True)
    if failed:
        click.echo(f"The command failed on {failed} messages.", err=True)
        raise click.exceptions.Exit(1)


@contextlib.contextmanager
def _follow(client_id: str, url: str, api_key: str | None, since: str | None) -> Iterator[Client]:
    with Client(client_id, url, api_key=api_key, since=since) as bus:
        signal.signal(signal.SIGTERM, _interrupt)
        yield bus


def _interrupt(_signal: int, _frame: object) -> None:
    raise Ended(128 + signal.SIGTERM)


class Ended(Exception):
    """A signal asked to stop; `exit_code` tells which."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


def _printer(as_json: bool) -> Callable[[Message], bool]:
    out = sys.stdout.buffer

    def show(message: Message) -> bool:
        out.write(message.json_line() if as_json else _readable(message))
        out.flush()
        return True

    return show


def _runner(command: str) -> Callable[[Message], bool]:
    arguments = shlex.split(command)
    if not arguments or shutil.which(arguments[0]) is None:
        raise click.UsageError(f"--exec names {command!r}, which is no program here; give a path or a name on PATH.")

    def show(message: Message) -> bool:
        code = subprocess.run(arguments, input=message.json_line(), check=False).returncode
        if code != 0:
            click.echo(f"{arguments[0]} ended with {code} on {message.id}.", err=True)
        return code == 0

    return show


def _readable(message: Message) -> bytes:
    """One line for a person. What could steer a terminal is shown as its code."""
    moment = datetime.fromisoformat(message.timestamp).astimezone().strftime("%H:%M:%S")
    to = message.to if isinstance(message.to, str) else ", ".join(message.to)
    payload = msgspec.json.encode(message.payload).decode()
    line = f"{moment}  {message.sender} -> {to}  {message.type}  {payload}"
    return (_printable(line) + "\n").encode()


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


# ---- looking


class _LogPage(msgspec.Struct):
    messages: list[msgspec.Raw]
    cursor: str
    more: bool = False
    gap: Gap | None = None


class _ClientsPage(msgspec.Struct):
    clients: list[dict[str, Any]]
    cursor: str
    more: bool = False


@cli.command()
@click.option("--since", help="A cursor or an ISO time; else from the oldest kept.")
@click.option("--until", help="A cursor or an ISO time.")
@click.option("--type", "type_", help="Only this type.")
@click.option("--from", "sender", help="Only this sender.")
@click.option("--to", help="Only what is addressed to this client.")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(min=1), help="At most so many.")
@with_json
@with_connection
def log(  # noqa: PLR0913 - one for each option
    *,
    since: str | None,
    until: str | None,
    type_: str | None,
    sender: str | None,
    to: str | None,
    limit: int,
    as_json: bool,
    url: str,
    api_key: str | None,
) -> None:
    """Print the log of all messages, oldest first."""
    rest = Rest(url, api_key=api_key)
    show = _printer(as_json or not sys.stdout.isatty())
    query: dict[str, object] = {"since": since, "until": until, "type": type_, "from": sender, "to": to}
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


@cli.command()
@with_json
@with_connection
def clients(*, as_json: bool, url: str, api_key: str | None) -> None:
    """List who is known, who is online, and how much waits for each."""
    rest = Rest(url, api_key=api_key)
    if not as_json:
        click.echo(f"{'CLIENT':32} {'ONLINE':10} {'WAITING':>8}  LAST SEEN")
    cursor, more = None, True
    while more:
        page = rest.get("/api/clients", {"cursor": cursor, "limit": PAGE}, _ClientsPage)
        for each in page.clients:
            click.echo(msgspec.json.encode(each) if as_json else _client_row(each))
        cursor, more = page.cursor, page.more


def _client_row(client: dict[str, Any]) -> str:
    over = (client.get("over") or "yes") if client["online"] else "-"
    return f"{client['client']:32} {over:10} {client['waiting']:>8}  {_moment(client.get('last_seen'))}"


@cli.command()
@with_json
@with_connection
def status(*, as_json: bool, url: str, api_key: str | None) -> None:
    """Show how the bus is."""
    body = Rest(url, api_key=api_key).get("/api/status", {}, dict[str, Any])
    if as_json:
        click.echo(msgspec.json.encode(body))
        return
    metrics, connections, durability = body["metrics"], body["connections"], body["durability"]
    click.echo(f"status       {body['status']}, version {body['version']}, workers {body['workers']}")
    click.echo(f"messages     {metrics['total_messages']}, {metrics['messages_per_minute']} in the last minute")
    click.echo(f"last one     {_moment(metrics['last_message_time'])}")
    click.echo(f"connections  {connections['active']} of {len(connections['by_client'])} clients")
    click.echo(f"durability   {durability['setting']} ({durability['store']}): survives {durability['survives']}")
    click.echo(f"cursor       {body['cursor']}")


def _moment(stamp: str | None) -> str:
    return datetime.fromisoformat(stamp).astimezone().strftime("%Y-%m-%d %H:%M:%S") if stamp else "-"


# ---- the process


def _log_to_stderr() -> None:
    """Say when the connection goes and comes; on a terminal also that it is there."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr, level=logging.WARNING)
    if sys.stderr.isatty():
        logging.getLogger("bus.client").setLevel(logging.INFO)


def main() -> None:
    """Run the command line; turn refusals, signals and closed pipes into exit codes."""
    try:
        with cli.make_context("python -m bus", sys.argv[1:]) as context:
            cli.invoke(context)
        code = 0
    except click.exceptions.Exit as end:
        code = end.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = 128 + signal.SIGINT
    except Ended as end:
        code = end.exit_code
    except BusError as error:
        click.echo(error.sentence, err=True)
        code = 2 if isinstance(error, Offline) or error.field == "url" else 1
    except BrokenPipeError:
        # Nobody reads any more. What is left in the buffer must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE
    sys.exit(code)
