"""What processes of one bus say to one another, in msgpack: the same over the sockets of a machine and between nodes.

A frame is an array whose first item is its kind. Kinds that are not known are passed over, and so is what stands behind
the items that are: so a release understands the one before it and the one after it.
"""

from __future__ import annotations

from typing import Any

import msgspec

from bus.message import Kind, Message, Terms, correlation_of

HELLO, BLOCK, HINT, EPHEMERAL, PRESENCE, NOTE, TOPICS = range(7)

MAX_BLOCK_BYTES = 1024 * 1024
"""A commit larger than this goes as a hint: reading it from the store is as quick."""

encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder().decode


def block(first: int, last: int, messages: list[Message]) -> bytes:
    """The frame of a commit, or, if that is large, of a hint at it."""
    if sum(len(message.rendered) for message in messages) > MAX_BLOCK_BYTES:
        return encode([HINT, last])
    return encode([BLOCK, first, last, [pack(message) for message in messages]])


def pack(message: Message) -> tuple[Any, ...]:
    """A rendered message as an item of a frame."""
    plain = (message.seq, message.kind, message.names, message.sender, message.type, message.stamp_us, message.rendered)
    if not message.flags and message.terms is None and message.kind < Kind.TOPIC:
        return plain
    more = (message.flags, message.address, message.leased_to, correlation_of(message), message.excluded)
    return (*plain, *more, None if message.terms is None else message.terms.ttl_us)


def unpack(packed: list[Any]) -> Message:
    """The message of an item."""
    seq, kind, names, sender, type_, stamp_us, rendered, *more = packed
    message = Message(kind, "", tuple(names), sender, type_, b"", stamp_us, seq=seq, rendered=rendered)
    if len(more) >= 6:
        message.flags, message.address, leased_to, correlation_id, excluded, ttl_us = more[:6]
        message.excluded = tuple(excluded)
        message.leased_to = None if leased_to is None else tuple(leased_to)
        message.terms = Terms(correlation_id=correlation_id, ttl_us=ttl_us)
    return message
