"""What logs leave out: secrets of every form, under every name, in messages, facts and exceptions; and forged lines."""

from __future__ import annotations

import json
import logging
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.logs import JsonFormatter, ReadableFormatter
from bus.masking import MAX_CHARACTERS, is_secret_name, masked, masked_value, one_line

SECRET = "Zx9canaryQw3rTy7canary5"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJjb2RlIn0.Zx9canaryQw3rTy7canary5"

LINES = [
    f"Authorization: Bearer {SECRET}",
    f"authorization: Basic {SECRET}==",
    f"Proxy-Authorization: Digest username={SECRET}",
    f"Cookie: a=b; bus_session={SECRET}; c=d",
    f"Set-Cookie: session={SECRET}; HttpOnly",
    f"{{'Cookie': 'x={SECRET}', 'Host': 'a'}}",
    f"('Authorization', 'Token {SECRET}')",
    f"X-API-Key: {SECRET}",
    f"[('Host', 'a'), ('X-API-Key', '{SECRET}'), ('Cookie', '{SECRET}')]",
    f'{{"api_key": "{SECRET}", "to": "b"}}',
    f"{{'API_KEY': '{SECRET}'}}",
    f"API_KEY={SECRET} python server_ws.py",
    f"WEBHOOK_SECRET={SECRET}",
    f"METRICS_TOKEN='{SECRET}'",
    f"GET /api/messages?to=a&token={SECRET}&limit=1",
    f"GET /ws/code?ticket={SECRET}",
    f"https://example.com/cb?key={SECRET}#x",
    f"https://example.com/cb?code={SECRET}",
    f"https://user:{SECRET}@example.com/x",
    f"postgresql://bus:{SECRET}@db:5432/bus",
    f"postgresql://bus:p/{SECRET}@x@db:5432/bus",
    f"redis://:{SECRET}@cache:6379/0",
    f"https://{SECRET}@example.com/",
    f"host=db password={SECRET} user=bus",
    f"bus_live_abcdefghijkl_{SECRET}{SECRET}_abcdef",
    f"cb_{SECRET}",
    f"whsec_{SECRET}+/=",
    f"the token is {JWT}",
    f"https://hooks.slack.com/services/T000/B000/{SECRET}",
    f"https://discord.com/api/webhooks/1234/{SECRET}",
    f"https://ptb.discordapp.com/api/v10/webhooks/1234/{SECRET}?wait=true",
    f"ghp_{SECRET}",
    f"xoxb-{SECRET}",
    f"sk_live_{SECRET}",
    f"-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----",
    f"X-Webhook-Signature: sha256={SECRET}",
    f"webhook-signature: v1,{SECRET}",
]


@pytest.mark.parametrize("line", LINES)
def test_a_secret_goes_wherever_it_stands(line: str) -> None:
    for text in (line, f"before {line} after", f"failed on {line!r}", json.dumps({"said": line})):
        assert SECRET not in masked(text), masked(text)


@pytest.mark.parametrize(
    "line",
    [
        "bus_webhook_delivery_lag_seconds is high, bus_messages_published_total 5",
        "The bus serves  action=started slot=0 epoch=6b01ca0aa573",
        "GET /api/messages?to=browser&since=6b01ca0aa573:12&limit=100",
        "msg-0000018ff3a1-00000000001b was dead-lettered for browser@example.com",
        "Listening at: http://127.0.0.1:17549 (31627)",
        "A key is needed; send it as X-API-Key or as Authorization.",
        "tokens per second: 60",
        "python -m bus claim builds --exec ./build.sh",
        "sqlite:///data/bus.db",
        "https://example.com/a@b/c",
    ],
)
def test_what_is_no_secret_stays(line: str) -> None:
    assert masked(line) == line


def test_a_key_still_says_which_one_it_is() -> None:
    assert masked(f"bus_live_abcdefghijkl_{SECRET}_abc") == "bus_live_abcdefghijkl_***"


@pytest.mark.parametrize(
    "name", ["token", "access_token", "Authorization", "cookie", "X-API-Key", "secret_key", "DB_PASSWORD"]
)
def test_what_is_called_a_secret_is_one(name: str) -> None:
    assert is_secret_name(name)
    assert masked_value(name, SECRET) == "***"
    assert SECRET not in str(masked_value("headers", {name: SECRET, "list": [{name: SECRET}]}))


@pytest.mark.parametrize("name", ["seq", "tokens", "slot", "action", "key_id", "session_count", "keys"])
def test_ordinary_facts_are_none(name: str) -> None:
    assert masked_value(name, "plain") == "plain"
    assert masked_value("n", [1, None, True, 2.5]) == [1, None, True, 2.5]


@given(st.text())
def test_any_text_becomes_one_line(text: str) -> None:
    line = one_line(text)
    assert len(line.splitlines()) <= 1
    assert not re.search("[\x00-\x08\x0a-\x1f\x7f-\x9f]", line)


@given(st.text(alphabet="a:/@=&?'\"\\ .-_ey J{}", max_size=300))
def test_masking_ends_and_never_fails(text: str) -> None:
    assert isinstance(masked(text), str)


def test_no_text_keeps_masking_busy() -> None:
    for text in ("a" * 100_000, "://" * 30_000, "token=" * 20_000, "a.b-" * 25_000, "eyJa-" * 20_000, "a:@" * 30_000):
        for cut in (text, text[:MAX_CHARACTERS]):
            assert len(masked(cut)) <= MAX_CHARACTERS + 100


def record(**how: object) -> logging.LogRecord:
    made = logging.LogRecord("bus", logging.ERROR, "file.py", 1, "Failed on %s", (f"cb_{SECRET}",), None)
    made.__dict__.update(how)
    return made


def exception() -> object:
    try:
        raise ValueError(f"Authorization: Bearer {SECRET}\r\n12:00:00.000 info    forged line")
    except ValueError:
        return sys.exc_info()


@pytest.mark.parametrize("formatter", [JsonFormatter(), ReadableFormatter()], ids=["json", "readable"])
def test_both_formats_mask_the_sentence_the_facts_and_the_exception(formatter: logging.Formatter) -> None:
    line = formatter.format(
        record(exc_info=exception(), url=f"https://a:{SECRET}@b/", token=SECRET, headers={"cookie": SECRET}, slot=3)
    )
    assert SECRET not in line
    assert "ValueError" in line
    assert line.count("***") >= 4


def test_no_text_forges_a_line_or_steers_a_terminal() -> None:
    text = "a\r\n12:00:00.000 info    The bus serves\x1b[2J\x85\u2028end"
    made = logging.LogRecord("bus", logging.INFO, "file.py", 1, text, (), None)
    made.__dict__["client"] = text
    assert len(JsonFormatter().format(made).splitlines()) == 1
    assert json.loads(JsonFormatter().format(made))["message"] == text
    readable = ReadableFormatter().format(made)
    assert len(readable.splitlines()) == 1
    assert "\x1b" not in readable
    lines = ReadableFormatter().format(record(exc_info=exception())).splitlines()
    assert all(line.startswith("    ") for line in lines[1:]), "What an exception says can't begin a line."
