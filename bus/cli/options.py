"""Options that several commands have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

DEFAULT_URL = "http://127.0.0.1:5001"
DEFAULT_NAME = "cli"
JSON_HELP = "JSON, one object a line."

Command = TypeVar("Command", bound=Callable[..., Any])


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
    return click.option("--json", "as_json", is_flag=True, help=JSON_HELP)(command)


def with_terms(command: Command) -> Command:
    """The options that say how a message is to be treated. They come as keyword arguments; `terms_of` reads them."""
    for option in reversed(_TERMS):
        command = option(command)
    return command


_TERMS = (
    click.option("--type", "type_", default="message", show_default=True, help="The message's type."),
    click.option(
        "--priority", help="critical, high, normal, low, bulk, or its number. For what waits and needs an ack."
    ),
    click.option("--require-ack", is_flag=True, help="Deliver it again until its recipient has acked it."),
    click.option(
        "--ack-wait", type=float, help="Seconds that a recipient has for its ack, or for saying it goes on. [30]"
    ),
    click.option("--ttl", type=float, help="Seconds after which it is of no use any more."),
    click.option("--delay", type=float, help="Deliver it in so many seconds, not before."),
    click.option("--correlation-id", help="What this belongs to, or answers."),
    click.option("--reply-to", help="Where answers should go."),
    click.option("--thread", "--thread-id", "thread_id", help="The conversation."),
)


def terms_of(given: dict[str, Any]) -> dict[str, object]:
    """What the options of `with_terms` said, as fields of a send."""
    fields = {name: value for name, value in given.items() if value is not None and value is not False}
    fields["type"] = fields.pop("type_")
    priority = fields.get("priority")
    if priority is not None and str(priority).isdigit():
        fields["priority"] = int(priority)
    return fields


def address_of(to: tuple[str, ...]) -> str | list[str]:
    """Where `--to`, given once or several times, sends."""
    return to[0] if len(to) == 1 else list(to)
