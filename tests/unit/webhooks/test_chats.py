"""Messages to chats: within the vendors' limits whatever the data is, harmless, and complete or said not to be."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from slack_sdk.models.blocks import Block

from bus.errors import Malformed
from bus.webhooks import discord, slack
from bus.webhooks.chat import Note, units

NASTY = [
    "`",
    "```",
    "~~~",
    "<!channel>",
    "<!everyone>",
    "<@U1>",
    "@everyone",
    "@here",
    "<@&1>",
    "&",
    "<",
    "שלום",
    "\u202e",
]
NASTY += ["🎉", "👩‍👩‍👧", "\ud800", "\udc00", "\x00", "\n", "\u200b", "*", "_", "[a](http://x)", "\\", "é", "漢", " "]


def check_slack(payload: dict[str, Any]) -> dict[str, Any]:
    """Hold a payload to Slack's limits, by the vendor's own models and by what is documented beside them."""
    json.dumps(payload, ensure_ascii=False).encode()  # it can be sent: no lone surrogates
    assert 0 < len(payload["text"]) <= 40_000
    blocks = Block.parse_all(payload["blocks"])
    assert len(blocks) == len(payload["blocks"]) <= 50
    for block in blocks:
        block.validate_json()
    texts = list(texts_of(payload["blocks"]))
    assert all(0 < units(text["text"]) <= 3000 for text in texts)
    assert sum(units(text["text"]) for text in texts) <= slack.MAX_BLOCKS_TOTAL
    assert len(json.dumps(payload["blocks"], ensure_ascii=False)) <= 13_000
    for block in payload["blocks"]:
        assert len(block.get("fields", ())) <= 10
        assert all(units(each["text"]) <= 2000 for each in block.get("fields", ()))
        if block["type"] == "header":
            assert units(block["text"]["text"]) <= 150
    for text in [payload["text"], *(text["text"] for text in texts)]:
        assert not re.search(r"<(?!https?://)", text), "only our own links are marked up"
        assert not re.search(r"&(?!amp;|lt;|gt;)", text), "everything else is escaped, and no escape is cut"
    for text in (text for text in texts if text["type"] == "mrkdwn"):
        assert text["verbatim"]
        assert text["text"].count("```") in (0, 2)
        assert text["text"].count("`") % 2 == 0 or "```" in text["text"]
    return payload


def texts_of(part: Any) -> Any:
    """All text objects of blocks."""
    if isinstance(part, list):
        for each in part:
            yield from texts_of(each)
    elif isinstance(part, dict):
        if part["type"] in ("mrkdwn", "plain_text"):
            yield part
        for each in part.values():
            if isinstance(each, dict | list):
                yield from texts_of(each)


def check_discord(payload: dict[str, Any]) -> dict[str, Any]:
    """Hold a payload to Discord's documented limits."""
    json.dumps(payload, ensure_ascii=False).encode()
    assert payload["allowed_mentions"] == {"parse": []}
    assert 1 <= len(payload["embeds"]) <= 10
    total = 0
    for embed in payload["embeds"]:
        assert len(embed.get("fields", ())) <= 25
        parts = [
            (embed.get("title"), 256),
            (embed.get("description"), 4096),
            (embed.get("footer", {}).get("text"), 2048),
        ]
        for entry in embed.get("fields", ()):
            assert entry["name"].strip()
            assert entry["value"].strip()
            parts += [(entry["name"], 256), (entry["value"], 1024)]
        for text, limit in parts:
            assert text is None or 0 < units(text) <= limit
            total += units(text or "")
        assert embed.get("description", "").count("```") in (0, 2)
        if "timestamp" in embed:
            datetime.fromisoformat(embed["timestamp"])
    assert total <= 6000
    return payload


def check(note: Note, link: str | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    return check_slack(slack.message(note, link)), check_discord(discord.message(note, link))


def shown(payload: dict[str, Any]) -> str:
    return json.dumps(payload, ensure_ascii=False)


text = st.lists(st.sampled_from(NASTY) | st.text(max_size=8), max_size=60).map("".join)
scalar = st.none() | st.booleans() | st.integers() | st.floats() | text
values = st.recursive(
    scalar, lambda inner: st.lists(inner, max_size=6) | st.dictionaries(text, inner, max_size=12), max_leaves=40
)


SLOW_TO_MAKE = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
TOLD = {"name": text, "data": values, "occurred_us": st.none() | st.integers(0, 4 * 10**15)}
DIGEST = {
    "notes": st.lists(st.builds(Note, text, values), max_size=12),
    "kinds": st.dictionaries(text, st.integers(1, 10**6), max_size=40),
}


def check_digests(notes: list[Note], kinds: dict[str, int]) -> None:
    check_slack(slack.digest(notes, kinds or {"a": 1}, "https://bus.example/?a=1&b=2"))
    check_discord(discord.digest(notes, kinds or {"a": 1}))


@settings(max_examples=40, **SLOW_TO_MAKE)
@given(**TOLD)
def test_whatever_is_told_is_within_the_limits_and_harmless(name: str, data: Any, occurred_us: int | None) -> None:
    check(Note(name, data, occurred_us))


@settings(max_examples=10, **SLOW_TO_MAKE)
@given(**DIGEST)
def test_so_is_every_digest(notes: list[Note], kinds: dict[str, int]) -> None:
    check_digests(notes, kinds)


@pytest.mark.slow
@settings(max_examples=120, **SLOW_TO_MAKE)
@given(**TOLD)
def test_so_it_is_of_many_examples(name: str, data: Any, occurred_us: int | None) -> None:
    check(Note(name, data, occurred_us))


@pytest.mark.slow
@settings(max_examples=40, **SLOW_TO_MAKE)
@given(**DIGEST)
def test_so_is_every_digest_of_many(notes: list[Note], kinds: dict[str, int]) -> None:
    check_digests(notes, kinds)


@pytest.mark.parametrize(
    "size", [0, 1, 199, 200, 201, 1023, 1024, 1025, 1999, 2000, 2001, 2999, 3000, 3001, 4096, 100_000, 10**6]
)
def test_every_size_from_nothing_to_a_megabyte_fits_and_what_is_cut_is_said(size: int) -> None:
    for filler in ("x", "`", "&", "<", "🎉", "שלום", "\\", "*", "\ud800", "<!channel> ", "a b\n"):
        check_size(size, filler)


def check_size(size: int, filler: str) -> None:
    long = (filler * (size // len(filler) + 1))[:size]
    for data in ({"text": long}, long, {long: 1}, [long] * 3, {"a": {"b": long}}):
        for payload in check(Note("message.sent", data)):
            if size > 4096:
                assert re.search(r"truncated, \d{4,} bytes", shown(payload))
            elif size < 200 and filler == "x":
                assert "truncated" not in shown(payload)
                assert long in shown(payload)


@pytest.mark.parametrize(
    "data", [{}, [], "", None, {"a": ""}, {"a": " "}, {"": 1}, {" ": 1}, {"a": {}}, 0, False, {"a": None}]
)
def test_next_to_nothing_is_told_too(data: Any) -> None:
    check(Note("system.started", data))


def test_many_long_facts_stay_within_the_sum() -> None:
    for filler in ("x", "&", "<", "*", "\\", "🎉"):
        check(
            Note("x" * 128, {f"{n}{filler * 55}"[:59]: filler * 100 for n in range(40)}, 0),
            "https://x.example/" + "&" * 490,
        )


def test_facts_stand_in_fields_and_the_rest_in_a_code_block() -> None:
    note = Note("message.sent", {"from": "code", "urgent": True, "payload": {"text": "שלום"}}, 0)
    first, second = check(note)
    assert [text["text"] for text in first["blocks"][1]["fields"]] == ["*from*\n`code`", "*urgent*\n`true`"]
    assert first["blocks"][2]["text"]["text"] == '```\n{\n  "payload": {\n    "text": "שלום"\n  }\n}\n```'
    assert second["embeds"][0]["fields"][0] == {"name": "from", "value": "code", "inline": True}
    assert second["embeds"][0]["description"].startswith("```json\n{")
    assert second["embeds"][0]["timestamp"] == "1970-01-01T00:00:00.000000+00:00"
    assert first["text"].startswith("Message sent: from: code")


def test_what_is_more_than_json_is_shown_as_text() -> None:
    for payload in check(
        Note("error.occurred", {"at": datetime(2026, 2, 21, tzinfo=UTC), "odd": {1: {2, 3}}, "n": float("nan")})
    ):
        assert "2026-02-21" in shown(payload)


def test_what_has_no_form_is_refused() -> None:
    loop: dict[str, Any] = {}
    loop["loop"] = loop
    for data in (loop, {"a": {("b",): 1}}):
        for form in (slack.message, discord.message):
            with pytest.raises(Malformed):
                form(Note("error.occurred", data))


def test_a_link_leads_to_all_of_it() -> None:
    first, second = check(Note("a.b", {}), "https://bus.example/api/messages?id=1&v=2")
    assert "<https://bus.example/api/messages?id=1&amp;v=2|all of it>" in shown(first)
    assert second["embeds"][0]["url"] == "https://bus.example/api/messages?id=1&v=2"


@pytest.mark.parametrize(
    "link", ["javascript:alert(1)", "http://x|y", "http://x> <!channel", "http://ä", "http://", "https://x y"]
)
def test_a_link_that_is_none_is_refused(link: str) -> None:
    for form in (slack.message, discord.message):
        with pytest.raises(Malformed):
            form(Note("a.b", {}), link)


def test_600_events_in_one_digest_add_up() -> None:
    counts = {"message.sent": 450, "error.occurred": 100} | {f"k{n}.x": 1 for n in range(50)}
    notes = [Note("message.sent", {"from": "code", "to": f"b{n}"}) for n in range(20)]
    for payload in (check_slack(slack.digest(notes, counts)), check_discord(discord.digest(notes, counts))):
        told = shown(payload)
        assert "600 events" in told
        assert sum(int(count) for count in re.findall(r"(\d+) × ", told)) == 600
        assert len(re.findall("• Message sent", told)) + int(re.search(r"\+(\d+) more", told)[1]) == 600


def test_discord_is_asked_to_say_whether_it_kept_the_message() -> None:
    url = "https://discord.com/api/webhooks/1/abc"
    assert discord.address(url) == f"{url}?wait=true"
    assert discord.address(f"{url}?thread_id=5&wait=false") == f"{url}?thread_id=5&wait=true"
