"""`replay`: put a part of the log into an inbox again; `replays`: how far that is."""

from __future__ import annotations

import time
from typing import Literal

import click
import msgspec

from bus.cli.listing import Listing
from bus.cli.options import DEFAULT_NAME, with_connection, with_json
from bus.cli.progress import Progress
from bus.cli.show import plural
from bus.client import Calls, Replay

LOOK_SECONDS = 0.2


@click.command()
@click.option("--to", required=True, help="Into whose inbox.")
@click.option("--since", required=True, help="From here: a cursor or an ISO time.")
@click.option("--until", help="Up to here: a cursor or an ISO time; else up to now.")
@click.option("--type", "type_", help="Only this type.")
@click.option("--from", "sender", help="Only what this client sent.")
@click.option("--topic", help="Only these topics: builds.* is one level, builds.> all below.")
@click.option(
    "--source",
    type=click.Choice(["inbox", "log"]),
    default="inbox",
    show_default=True,
    help="What was addressed to that client, or to anybody.",
)
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Messages a second. [500]")
@click.option("--no-wait", is_flag=True, help="Return when it has begun; `replays` says how far it is.")
@with_json
@with_connection
def replay(  # noqa: PLR0913 - one for each option
    *,
    to: str,
    since: str,
    type_: str | None,
    no_wait: bool,
    as_json: bool,
    url: str,
    api_key: str | None,
    until: str | None,
    sender: str | None,
    topic: str | None,
    source: Literal["inbox", "log"],
    rate: float | None,
) -> None:
    """Put a part of the log into an inbox again, as new messages that are marked `replayed`.

    Ctrl-C stops looking, not the replay; `replays --cancel ID` stops it.
    """
    calls = Calls(DEFAULT_NAME, url, api_key=api_key)
    narrow = {"until": until, "type": type_, "sender": sender, "topic": topic}
    made = calls.replay(to, since, **narrow, rate=rate, source=source)
    if not no_wait:
        with Progress("Replaying") as progress:
            while made.status == "running":
                time.sleep(LOOK_SECONDS)
                made = calls.fetch_replay(made.replay_id)
                progress.to(*_passed(made))
    click.echo(msgspec.json.encode(made) if as_json else f"{made.replay_id}  {_told(made)}")


@click.command()
@click.option("--cancel", "replay_id", metavar="ID", help="Stop this one; what was copied stays.")
@with_json
@with_connection
def replays(*, replay_id: str | None, as_json: bool, url: str, api_key: str | None) -> None:
    """List the replays, or --cancel one."""
    calls = Calls(DEFAULT_NAME, url, api_key=api_key)
    if replay_id is not None:
        calls.cancel_replay(replay_id)
        click.echo(f"{replay_id} is cancelled.", err=True)
        return
    with Listing("ID", "STATUS", ">COPIED", "INTO", "AT", "UNTIL", as_json=as_json) as listing:
        for each in calls.replays():
            listing.add(each, each.replay_id, each.status, each.copied, each.to, each.cursor, each.until)


def _told(replay: Replay) -> str:
    return f"{replay.status}, {plural(replay.copied, 'message')} into {replay.to}"


def _passed(replay: Replay) -> tuple[int, int]:
    """How much of the log it has passed, and how much there is to pass."""
    start, at, end = (_seq(cursor) for cursor in (replay.start, replay.cursor, replay.until))
    return max(at - start, 0), max(end - start, 0)


def _seq(cursor: str | None) -> int:
    return int((cursor or "").rpartition(":")[2] or 0)
