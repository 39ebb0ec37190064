"""Requests to a receiver of webhooks: good ones, and every way of going wrong that a stranger can think of."""

from __future__ import annotations

import random
import string
from collections.abc import Iterator
from typing import Any

from bus.webhooks import signing

NOW = 1_800_000_000
SECRETS = ["whsec_" + "QUJDREVGR0hJSktMTU5PUFFSU1RVVldY", "webhook_secret_123"]
CHARACTERS = string.printable + "äß€\u202e🎉\x00\udc80 ,.=+/"


def good(draw: random.Random) -> tuple[dict[str, str], bytes]:
    """A request as the bus makes it."""
    raw = bytes(draw.randrange(256) for _ in range(draw.randrange(80)))
    stamp = NOW + draw.randrange(-300, 301)
    return signing.headers(f"evt-{draw.randrange(10**9)}", stamp, raw, SECRETS[: draw.randrange(1, 3)]), raw


def requests(seed: int, count: int) -> Iterator[tuple[dict[str, str], bytes, bool]]:
    """Headers, body, and whether they are right. About one in six is."""
    draw = random.Random(seed)
    for _ in range(count):
        headers, raw = good(draw)
        kind = draw.randrange(6)
        if kind == 0:
            names = {name: draw.choice([name, name.upper(), name.title()]) for name in headers}
            yield {names[name]: value for name, value in headers.items()}, raw, True
        elif kind == 1:
            changed = bytearray(raw or b"\x00")
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
            yield headers, bytes(changed) if raw else b"x", False
        elif kind == 2:
            late = signing.headers("evt-1", NOW + draw.choice([-301, 301, -(10**9), 10**9]), raw, SECRETS)
            yield late, raw, False
        elif kind == 3:
            del headers[draw.choice(["webhook-id", "webhook-timestamp", "webhook-signature"])]
            yield headers, raw, False
        else:
            name = draw.choice(["webhook-id", "webhook-timestamp", "webhook-signature"])
            yield headers | {name: garbage(draw, headers[name])}, raw, False


def garbage(draw: random.Random, value: str) -> str:
    """What is not this value, and never as good."""
    text = "".join(draw.choices(CHARACTERS, k=draw.randrange(60)))
    place = draw.randrange(len(value))
    made = draw.choice(
        [text, "v1," + text, "v1a," + value[3:], value[:place], value[:place] + "x" + value[place:], " ", ""]
    )
    unchanged = {value, *value.split(" ")} | set(value.split(" ")[:1])
    return "" if set(made.split(" ")) & unchanged else made


def odd_values() -> list[Any]:
    """What is no headers and no body."""
    return [
        None,
        5,
        "x",
        b"x",
        [],
        [("webhook-id", 1)],
        {},
        {"webhook-id": None},
        {1: 2},
        object(),
        {"webhook-id": ["a"]},
    ]
