"""`dead-letters`: what could not be delivered; list it, look at it, send it on its way again, or remove it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
import msgspec

from bus.cli.listing import Listing, show_json
from bus.cli.options import DEFAULT_NAME, Command, with_connection, with_json
from bus.cli.progress import Progress
from bus.cli.show import moment, plural
from bus.client import Calls, DeadLetter, Swept


@click.group("dead-letters")
def dead_letters() -> None:
    """What could not be delivered: list it, look at it, redrive or purge it.

    A message ends here when its recipient rejected it, or failed on it five times, when it expired before it was
    acked, or when there was no room for it. Nothing leaves again by itself.

    \b
    python -m bus dead-letters list --owner queue:builds
    python -m bus dead-letters redrive --owner queue:builds --reason max_attempts
    """


def _with_filters(command: Command) -> Command:
    owner = click.option("--owner", help="Whose: a client, or queue:NAME.")
    reason = click.option(
        "--reason", help="rejected, expired, max_attempts, overflow, no_recipient or invalid: only these."
    )
    sender = click.option("--from", "sender", help="Only what this client sent.")
    return owner(reason(sender(command)))


@dead_letters.command("list")
@_with_filters
@click.option("--limit", default=100, show_default=True, type=click.IntRange(min=1), help="At most so many.")
@with_json
@with_connection
def list_(*, limit: int, as_json: bool, url: str, api_key: str | None, **which: str | None) -> None:
    """List dead letters: why, since when, and what was to be delivered to whom."""
    letters = Calls(DEFAULT_NAME, url, api_key=api_key).dead_letters(**which)
    with Listing("DIED", "OWNER", "REASON", ">TRIES", "FROM", "TYPE", "ID", as_json=as_json) as listing:
        for number, letter in enumerate(letters):
            if number == limit:
                click.echo("There are more; --limit shows them.", err=True)
                break
            message, tries = letter.message, len(letter.attempts)
            about = (letter.owner, letter.reason, tries, message.sender, message.type, letter.id)
            listing.add(_json(letter), moment(letter.died_at), *about)


@dead_letters.command()
@click.argument("message_id", metavar="ID")
@with_json
@with_connection
def show(*, message_id: str, as_json: bool, url: str, api_key: str | None) -> None:
    """Show the dead letters of message ID whole, as JSON: the message, and each attempt to deliver it."""
    for letter in Calls(DEFAULT_NAME, url, api_key=api_key).dead_letter(message_id):
        show_json(_json(letter), as_json=as_json)


def _json(letter: DeadLetter) -> bytes:
    """A dead letter as JSON; the message in it is spelled as it came."""
    fields: dict[str, Any] = {name: getattr(letter, name) for name in letter.__struct_fields__}
    fields["message"] = msgspec.Raw(letter.message.raw)
    return msgspec.json.encode(fields)


# ---- redrive and purge


@dead_letters.command()
@click.argument("message_id", metavar="[ID]", required=False)
@_with_filters
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_connection
def redrive(*, message_id: str | None, yes: bool, url: str, api_key: str | None, **which: str | None) -> None:
    """Send dead letters on their way again: message ID, or all that match. They begin anew, with attempt 1.

    Says first how many there are, and asks.
    """
    calls = Calls(DEFAULT_NAME, url, api_key=api_key)
    _sweep(calls, calls.redrive, message_id, which, verb="Redrive", yes=yes)


@dead_letters.command()
@click.argument("message_id", metavar="[ID]", required=False)
@_with_filters
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_connection
def purge(*, message_id: str | None, yes: bool, url: str, api_key: str | None, **which: str | None) -> None:
    """Remove dead letters for good: message ID, or all that match.

    Says first how many there are, and asks.
    """
    calls = Calls(DEFAULT_NAME, url, api_key=api_key)
    _sweep(calls, calls.purge, message_id, which, verb="Purge", yes=yes)


def _sweep(
    calls: Calls,
    sweep: Callable[..., Swept],
    message_id: str | None,
    which: dict[str, str | None],
    *,
    verb: str,
    yes: bool,
) -> None:
    """Count, ask, and do it."""
    if message_id is None:
        matched = sweep(**which, dry_run=True).matched
    elif which.get("reason") or which.get("sender"):
        raise click.UsageError("An ID says which message; only --owner can be given with it.")
    else:
        owner = which.get("owner")
        matched = sum(owner in (None, letter.owner) for letter in calls.dead_letter(message_id))
    if not matched:
        click.echo("No dead letter matches.", err=True)
        return
    if not yes:
        _ask(f"{verb} {plural(matched, 'dead letter')}?")
    given = which if message_id is None else {"owner": which.get("owner")}
    with Progress(_DOING[verb], matched if message_id is None else None) as progress:
        done = sweep(message_id, **given, on_progress=progress.to)
        progress.to(matched)
    click.echo(f"{plural(done.redriven or done.purged or 0, 'dead letter')} {_DONE[verb]}.")


_DONE = {"Redrive": "redriven", "Purge": "purged"}
_DOING = {"Redrive": "Redriving", "Purge": "Purging"}


def _ask(question: str) -> None:
    """Go on at a yes only. Whoever can't be asked has said nothing."""
    try:
        agreed = click.confirm(question, err=True)
    except click.Abort:
        raise click.ClickException("Nothing was changed; --yes says so without being asked.") from None
    if not agreed:
        raise click.ClickException("Nothing was changed.")
