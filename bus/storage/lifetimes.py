"""How long messages live, by type: what the writer stamps them with, as of its transaction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from bus.message import Kind, Message

DEFAULT = "$default"
"""The policy of every type that has none of its own."""

NEVER = 0
"""Stands in `Message.expires_us` for what its type's policy keeps, for ever or until it is delivered."""


class Lifetime(msgspec.Struct, frozen=True, gc=False):
    """`ttl_us` from the commit; None: for ever. `immediate`: until it is delivered, where somebody is named."""

    ttl_us: int | None
    immediate: bool = False

    def ends_with_delivery(self, message: Message) -> bool:
        """What goes to all, or to a topic, is never known to be delivered: the default policy holds for it."""
        return self.immediate and message.kind not in (Kind.ALL, Kind.TOPIC)


class Lifetimes(msgspec.Struct, gc=False):
    """The policies of messages, at one `version`. Without any, nothing expires but by its sender's ttl."""

    version: int = -1
    default_us: int | None = None
    by_type: dict[str, Lifetime] = {}

    def of(self, message: Message) -> Lifetime:
        """What holds for a message."""
        lifetime = self.by_type.get(message.type)
        if lifetime is None or (lifetime.immediate and not lifetime.ends_with_delivery(message)):
            return Lifetime(self.default_us)
        return lifetime


def read_lifetimes(execute: Callable[[str], Any], version: int) -> Lifetimes:
    """The policies as they stand in the store."""
    default_us, by_type = None, {}
    for type_, name, ttl_us in execute("SELECT type, name, ttl FROM policies"):
        if type_ == DEFAULT:
            default_us = ttl_us
        elif not type_.startswith("$"):
            by_type[type_] = Lifetime(ttl_us, name == "immediate")
    return Lifetimes(version, default_us, by_type)
