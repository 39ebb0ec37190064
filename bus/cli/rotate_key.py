"""`rotate-key`: a new key for what is encrypted at rest."""

from __future__ import annotations

import click

from bus.errors import StartRefused
from bus.key_file import rotate
from bus.settings import load
from bus.webhooks.vault import key_path


@click.command("rotate-key")
def rotate_key() -> None:
    """Make a new key for what is encrypted at rest: secrets and URLs of webhooks, secrets of integrations.

    It works on the key file, so it runs on the bus's machine, as its user, with its settings. Start the bus anew then: it
    encrypts all with the new key, and says so in its log. With SECRET_KEY, put the old one into SECRET_KEY_PREVIOUS
    instead, and start.
    """
    settings = load()
    if settings.secret_key is not None:
        raise StartRefused(
            "SECRET_KEY is the key: put it into SECRET_KEY_PREVIOUS, a new one into SECRET_KEY, and start."
        )
    aside = rotate(key_path(settings))
    click.echo(f"There is a new key. Start the bus anew; when its log says that all is sealed anew, remove {aside}.")
