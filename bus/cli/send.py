"""`send`: a message, or the lines of a stream; `request`: a message whose answer is waited for."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator
from typing import Any, cast

import click
import msgspec

from bus.cli.options import DEFAULT_NAME, address_of, terms_of, with_connection, with_terms
from bus.cli.show import printer
from bus.client import Calls, Receipt, Reply, SendOptions
from bus.client.bulk import BulkSender, GivenUp
from bus.client.rest import Rest
from bus.errors import BusError

READ_BYTES = 64 * 1024


@click.command()
@click.argument("payload", required=False)
@click.option(
    "--to", required=True, multiple=True, help="A client, all, topic:NAME, queue:NAME; again for several clients."
)
@click.option("--from", "client", default=DEFAULT_NAME, show_default=True, help="In whose name.")
@click.option("--lines", is_flag=True, help='Each line of stdin is a message: {"line": text, "n": its number}.')
@click.option("--json", "as_json", is_flag=True, help="The payload, or each line, is JSON and goes as it is.")
@click.option("--patience", default=60.0, show_default=True, help="Seconds to go on trying while the bus is away.")
@with_terms
@with_connection
def send(
    *,
    payload: str | None,
    to: tuple[str, ...],
    client: str,
    lines: bool,
    as_json: bool,
    patience: float,
    url: str,
    api_key: str | None,
    **terms: Any,
) -> None:
    """Send PAYLOAD, or what comes on stdin, as one message, or with --lines as one message a line.

    Lines are sent as they come, in order, each stored once: a restart of the bus in between loses and repeats none.
    What is not UTF-8 in a line is sent as \\xNN.
    """
    if lines and payload is not None:
        raise click.UsageError("With --lines the messages come on stdin; leave PAYLOAD out.")
    fields: dict[str, object] = {"from": client, "to": address_of(to), **terms_of(terms)}
    rest = Rest(url, api_key=api_key)
    rest.get("/health", {}, object)
    sender = BulkSender(rest, patience_seconds=patience)
    if lines:
        _send_lines(sender, fields, as_json=as_json)
    else:
        _send_one(sender, fields, payload, as_json=as_json)


def _send_one(sender: BulkSender, fields: dict[str, object], payload: str | None, *, as_json: bool) -> None:
    body: dict[str, object] = {"payload": _payload_given(payload, as_json=as_json)}
    (outcome,) = sender.send([{**fields, **body, "idempotency_key": secrets.token_hex(12)}])
    if isinstance(outcome, BusError):
        raise outcome
    click.echo(msgspec.json.encode(outcome))
    for fate in outcome.recipients:
        if fate.state == "unknown":
            click.echo(f"The bus has not met {fate.client} yet; the message waits for it.", err=True)


def _payload_given(payload: str | None, *, as_json: bool) -> object:
    """The payload of the command line, or of stdin."""
    if payload is None:
        payload = _text_of(sys.stdin.buffer.read()).removesuffix("\n")
    if not as_json:
        return payload
    try:
        return msgspec.json.decode(payload, type=msgspec.Raw)
    except msgspec.DecodeError as error:
        raise click.UsageError(f"With --json the payload must be JSON: {error}.") from None


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


# ---- request


@click.command()
@click.argument("payload", required=False)
@click.option("--to", multiple=True, help="Who is asked: a client; again for several, or queue:NAME for one of many.")
@click.option("--from", "client", default=DEFAULT_NAME, show_default=True, help="In whose name; replies go there, too.")
@click.option("--json", "as_json", is_flag=True, help="The payload is JSON and goes as it is.")
@click.option("--wait", default=25.0, show_default=True, type=click.FloatRange(0, 50), help="Seconds to wait.")
@click.option("--require-online", is_flag=True, help="Send nothing when nobody who is asked is connected.")
@click.option("--fetch", "request_id", help="Send nothing: wait for what is missing of an earlier request, by its id.")
@with_terms
@with_connection
def request(  # noqa: PLR0913 - one for each option
    *,
    payload: str | None,
    to: tuple[str, ...],
    client: str,
    as_json: bool,
    wait: float,
    require_online: bool,
    request_id: str | None,
    url: str,
    api_key: str | None,
    **terms: Any,
) -> None:
    """Send PAYLOAD, or what comes on stdin, and print the reply. 0 when all who were asked replied, 3 when not yet.

    Who is asked replies by sending to the asker with the request's correlation id; `Client.reply` in Python does.
    A request that nobody answered in time waits for its recipient, and --fetch waits for the answer.
    """
    if bool(to) == bool(request_id):
        raise click.UsageError("Say who is asked by --to, or which request by --fetch.")
    calls = Calls(client, url, api_key=api_key)
    calls.health()
    if request_id:
        reply = calls.fetch_reply(request_id, wait=wait)
    else:
        options = cast(SendOptions, terms_of(terms))
        given = _payload_given(payload, as_json=as_json)
        reply = calls.request(address_of(to), given, wait=wait, require_online=require_online, **options)
    _show_reply(reply, wait)


def _show_reply(reply: Reply, wait: float) -> None:
    show = printer(as_json=False)
    for message in reply.replies:
        show(message)
    if reply.status == "answered":
        return
    missing = ", ".join(reply.missing) or "whoever was asked"
    click.echo(f"No reply from {missing} within {wait:g} s; --fetch {reply.request_id} waits for it.", err=True)
    raise click.exceptions.Exit(3)
