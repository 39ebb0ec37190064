"""Helpers of receivers, in Python and JavaScript: what is from the bus is taken once, the rest refused, nothing raises."""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from bus.client.webhooks import SeenIds, Verdict, WebhookReceiver
from bus.errors import Malformed
from bus.settings import ROOT
from bus.webhooks import body, signing
from tests.unit.webhooks.requests import NOW, SECRETS, good, odd_values, requests

QUICK, FULL = 3000, 100_000


def receiver(**more: Any) -> WebhookReceiver:
    return WebhookReceiver(*SECRETS, now=lambda: NOW, **more)


def hold(count: int) -> None:
    """Every request of the fuzzer gets the right verdict."""
    one = receiver()
    taken = 0
    for headers, raw, right in requests(seed=count, count=count):
        verdict = one.check(headers, raw)
        assert verdict.ok is right, (headers, raw, verdict)
        assert (verdict.reason is None) is right
        assert verdict.payload is None or right
        taken += right
    assert count / 10 < taken < count / 3


def test_strangers_are_refused_and_the_bus_is_not() -> None:
    hold(QUICK)


@pytest.mark.full
def test_of_100_000_requests_each_gets_the_right_verdict() -> None:
    hold(FULL)


def test_whatever_is_no_request_is_refused() -> None:
    headers, raw = good(random.Random(1))
    for odd in odd_values():
        assert not receiver().check(odd, raw).ok
        if not isinstance(odd, str | bytes):
            assert receiver().check(headers, odd).reason == "bad_body"
        assert receiver().receive(odd, raw, print) == 401
    assert receiver().check(headers, "\ud800").reason == "bad_body"


@pytest.mark.parametrize("age", [-300, -299, 0, 299, 300])
def test_stamps_within_five_minutes_are_good(age: int) -> None:
    assert receiver().check(signing.headers("evt-1", NOW - age, b"{}", SECRETS[:1]), b"{}").ok


@pytest.mark.parametrize(("age", "reason"), [(301, "too_old"), (-301, "too_new")])
def test_other_stamps_are_not(age: int, reason: str) -> None:
    assert receiver().check(signing.headers("evt-1", NOW - age, b"{}", SECRETS[:1]), b"{}").reason == reason


def test_any_of_the_secrets_is_good_and_text_is_as_good_as_its_bytes() -> None:
    text = body.make("order.paid", "evt-1", NOW * 10**6, body.encode({"name": "שלום"}))
    for secret in SECRETS:
        verdict = receiver().check(signing.headers("evt-1", NOW, text, [secret]), text.decode())
        assert (verdict.ok, verdict.id, verdict.timestamp) == (True, "evt-1", NOW)
        assert verdict.payload["data"] == {"name": "שלום"}
    assert not receiver().check(signing.headers("evt-1", NOW, text, [signing.new_secret()]), text).ok


def test_a_public_key_is_as_good_as_a_secret() -> None:
    private, other = signing.new_private_key(), signing.new_private_key()
    holder = WebhookReceiver("another secret", signing.public_key_of(private), now=lambda: NOW)
    for keys, good_ in (([private], True), ([other, private], True), ([other], False), ([], False)):
        assert holder.check(signing.headers("evt-1", NOW, b"{}", SECRETS, keys), b"{}").ok is good_
        assert not holder.check(signing.headers("evt-1", NOW, b"{}", SECRETS, keys), b"[]").ok


def test_a_header_that_is_there_twice_is_refused() -> None:
    headers = signing.headers("evt-1", NOW, b"{}", SECRETS[:1])
    assert receiver().check(headers | {"Webhook-Id": "evt-2"}, b"{}").reason == "no_header"


def test_a_receiver_needs_a_secret_that_is_one() -> None:
    with pytest.raises(ValueError, match="secret"):
        WebhookReceiver()
    for secret in ("whsec_AAAA", "whpk_AAAA", signing.new_private_key()):
        with pytest.raises(Malformed):
            WebhookReceiver(secret)


# ---- once


def request(event_id: str = "evt-1") -> tuple[dict[str, str], bytes]:
    return signing.headers(event_id, NOW, b"{}", SECRETS[:1]), b"{}"


def test_a_repeat_is_answered_without_being_handled() -> None:
    handled: list[Verdict] = []
    one = receiver()
    assert [one.receive(*request(), handled.append) for _ in range(3)] == [204, 200, 200]
    assert [verdict.id for verdict in handled] == ["evt-1"]


def test_what_could_not_be_handled_may_come_again() -> None:
    one = receiver()

    def fail(verdict: Verdict) -> None:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        one.receive(*request(), fail)
    assert one.receive(*request(), lambda verdict: None) == 204


def test_two_at_once_are_handled_once() -> None:
    one, entered, leave = receiver(), threading.Event(), threading.Event()

    def slow(verdict: Verdict) -> None:
        entered.set()
        leave.wait(10)

    first = threading.Thread(target=one.receive, args=(*request(), slow))
    first.start()
    assert entered.wait(10)
    assert one.receive(*request(), slow) == 409
    leave.set()
    first.join(10)
    assert one.receive(*request(), slow) == 200


def test_what_is_remembered_is_bounded() -> None:
    seen = SeenIds(limit=100)
    for number in range(1000):
        assert seen.begin(f"evt-{number}") == "new"
        seen.end(f"evt-{number}", done=True)
    assert seen.begin("evt-999") == "done"
    assert seen.begin("evt-899") == "new"


# ---- JavaScript

NODE = """
import { createInterface } from "node:readline";
import { WebhookReceiver, SeenIds } from %s;
const receiver = new WebhookReceiver(%s, { now: () => %d, seen: new SeenIds(100) });
for await (const line of createInterface({ input: process.stdin })) {
  const { headers, body, receive } = JSON.parse(line);
  const raw = body === null ? null : Buffer.from(body, "base64");
  const said = receive
    ? await receiver.receive(headers, raw, () => { if (receive === "fail") throw new Error("x"); }).catch(() => 500)
    : await receiver.check(new Map(Object.entries(headers ?? {})), raw);
  console.log(JSON.stringify(said));
}
"""


def node(lines: list[dict[str, Any]], tmp_path: Path, *public_keys: str) -> list[Any]:
    """What the JavaScript helper says to each."""
    program = shutil.which("node")
    if program is None:
        if os.environ.get("CI") == "true":
            pytest.fail("node is missing; install it (ci-packages.txt).")
        pytest.skip("node is not installed")
    script = tmp_path / "ask.mjs"
    module = (ROOT / "clients" / "webhook_receiver.mjs").as_uri()
    script.write_text(NODE % (json.dumps(module), json.dumps([*SECRETS, *public_keys]), NOW))
    asked = "\n".join(json.dumps(line) for line in lines)
    done = subprocess.run([program, str(script)], input=asked, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def asked(headers: Any, raw: bytes | None, receive: str | None = None) -> dict[str, Any]:
    return {"headers": headers, "body": None if raw is None else base64.b64encode(raw).decode(), "receive": receive}


def hold_in_node(count: int, tmp_path: Path) -> None:
    cases = list(requests(seed=count + 1, count=count))
    said = node([asked(headers, raw) for headers, raw, _ in cases], tmp_path)
    assert [verdict["ok"] for verdict in said] == [right for _, _, right in cases]
    reasons = [receiver().check(headers, raw).reason for headers, raw, _ in cases]
    assert [verdict.get("reason") for verdict in said] == reasons


def test_javascript_says_the_same(tmp_path: Path) -> None:
    hold_in_node(QUICK, tmp_path)


@pytest.mark.full
def test_javascript_says_the_same_to_100_000(tmp_path: Path) -> None:
    hold_in_node(FULL, tmp_path)


def test_javascript_takes_public_keys(tmp_path: Path) -> None:
    private, other = signing.new_private_key(), signing.new_private_key()
    headers = [
        signing.headers("evt-1", NOW, b"{}", ["wrong"], keys) for keys in ([private], [other, private], [other], [])
    ]
    said = node(
        [asked(each, raw) for each in headers for raw in (b"{}", b"[]")], tmp_path, signing.public_key_of(private)
    )
    assert [verdict["ok"] for verdict in said] == [True, False, True, False, False, False, False, False]


def test_javascript_handles_each_event_once_and_refuses_what_is_no_request(tmp_path: Path) -> None:
    headers, raw = request()
    said = node(
        [
            asked(headers, raw, "fail"),
            asked(headers, raw, "well"),
            asked(headers, raw, "well"),
            asked(headers, None, "well"),
            asked(None, raw, "well"),
            asked({"webhook-id": ["a"]}, raw, "well"),
            asked(headers, b"x", "well"),
        ],
        tmp_path,
    )
    assert said == [500, 204, 200, 401, 401, 401, 401]
