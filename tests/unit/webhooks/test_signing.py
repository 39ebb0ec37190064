"""Signatures, seen by the reference library; bodies, and names of events."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import random
import string
import time
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from bus.errors import Malformed, TooLarge
from bus.webhooks import body, signing

NOW = int(time.time())
LETTERS = string.printable + "äß€שלוםمرحبا漢字🎉👩‍👩‍👧\u202e\u0000\ud800\udfff"


def reference(secret: str, headers: dict[str, str], text: bytes) -> bool:
    """What the reference library says. It raises other errors than its own for what it can't read."""
    try:
        Webhook(secret if secret.startswith("whsec_") else secret.encode()).verify(text, headers)
    except (WebhookVerificationError, ValueError):
        return False
    return True


def some_json(draw: random.Random, depth: int = 0) -> Any:
    kind = draw.randrange(7 if depth < 3 else 5)
    match kind:
        case 0:
            return draw.choice([True, False, None, 0, -1, 2**70, 1e300, -0.0])
        case 1:
            return draw.uniform(-1e9, 1e9)
        case 2:
            return draw.randrange(-(10**12), 10**12)
        case 3 | 4:
            return "".join(draw.choices(LETTERS, k=draw.randrange(20)))
        case 5:
            return [some_json(draw, depth + 1) for _ in range(draw.randrange(5))]
    return {"".join(draw.choices(LETTERS, k=5)): some_json(draw, depth + 1) for _ in range(draw.randrange(5))}


def test_10_000_payloads_are_verified_by_the_reference_and_none_with_a_changed_bit() -> None:
    draw = random.Random(20_261_121)
    secret = signing.new_secret()
    for number in range(10_000):
        data = some_json(draw)
        text = body.make("order.paid", f"evt-{number}", NOW * 10**6, body.encode(data))
        headers = signing.headers(f"evt-{number}", NOW, text, [secret])
        assert reference(secret, headers, text)
        assert signing.verify_signature(text, headers["X-Webhook-Signature"], secret)
        assert signing.verify_signature(json.loads(text), headers["X-Webhook-Signature"], secret)
        changed = bytearray(text)
        changed[draw.randrange(len(text))] ^= 1 << draw.randrange(8)
        assert not reference(secret, headers, bytes(changed))
        assert not signing.verify_signature(bytes(changed), headers["X-Webhook-Signature"], secret)


def test_the_vector_of_the_specification() -> None:
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    assert (
        signing.sign(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
        == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    )


def test_several_secrets_are_valid_at_once_and_version_1_2_has_time_with_the_oldest() -> None:
    new, old = signing.new_secret(), signing.new_secret()
    headers = signing.headers("evt-1", NOW, b"{}", [new, old])
    assert reference(new, headers, b"{}")
    assert reference(old, headers, b"{}")
    assert not reference(signing.new_secret(), headers, b"{}")
    assert headers["X-Webhook-Signature"] == hmac.new(old.encode(), b"{}", hashlib.sha256).hexdigest()


def test_a_key_pair_signs_beside_the_secrets_and_its_public_half_is_enough_to_check() -> None:
    private, other = signing.new_private_key(), signing.new_private_key()
    secret = signing.new_secret()
    made = signing.headers("evt-1", NOW, b"{}", [secret], [private, other])
    first, second, third = made["webhook-signature"].split()
    assert first == signing.sign(signing.key_of(secret), "evt-1", NOW, b"{}")
    for text, signature in ((private, second), (other, third)):
        raw = base64.b64decode(signing.public_key_of(text).removeprefix("whpk_"))
        signed = base64.b64decode(signature.removeprefix("v1a,"))
        Ed25519PublicKey.from_public_bytes(raw).verify(signed, b"evt-1.%d.{}" % NOW)
    key = signing.PublicKey(signing.public_key_of(private))
    assert key.verifies(second, "evt-1", NOW, b"{}")
    for wrong in (third, first, "v1a,", "v1a,AAAA", "v1a,\xe4", second.replace("=", ""), "v1," + second[4:]):
        assert not key.verifies(wrong, "evt-1", NOW, b"{}")
    assert not key.verifies(second, "evt-1", NOW, b"{ }")
    alone = signing.headers("evt-1", NOW, b"{}", [], [private])
    assert alone["webhook-signature"] == second
    assert "X-Webhook-Signature" not in alone


@pytest.mark.parametrize("text", ["", "whpk_", "whpk_AAAA", "whsec_" + "A" * 43 + "=", "whpk_\xe4", "A" * 43 + "="])
def test_what_is_no_key_of_a_pair_is_refused(text: str) -> None:
    with pytest.raises(Malformed, match="32 bytes"):
        signing.PublicKey(text)


def test_half_of_a_key_pair_is_no_secret() -> None:
    for half in (private := signing.new_private_key(), signing.public_key_of(private)):
        with pytest.raises(Malformed, match="key pair"):
            signing.key_of(half)


def test_a_secret_of_plain_text_is_its_own_key() -> None:
    headers = signing.headers("evt-1", NOW, b"{}", ["webhook_secret_123"])
    assert reference("webhook_secret_123", headers, b"{}")


def test_without_a_secret_nothing_is_signed() -> None:
    assert signing.headers("evt-1", NOW, b"{}", []) == {"webhook-id": "evt-1", "webhook-timestamp": str(NOW)}


@pytest.mark.parametrize("size", [24, 32, 64])
def test_keys_of_24_to_64_bytes_are_good(size: int) -> None:
    assert signing.key_of("whsec_" + base64.b64encode(bytes(size)).decode()) == bytes(size)


@pytest.mark.parametrize(
    "secret",
    [
        *("whsec_" + base64.b64encode(bytes(size)).decode() for size in (0, 23, 65)),
        "whsec_###",
        "whsec_ä",
        "",
        "\ud800",
        "x" * 257,
    ],
)
def test_other_secrets_are_refused_in_a_sentence_without_them(secret: str) -> None:
    with pytest.raises(Malformed) as refused:
        signing.key_of(secret)
    assert refused.value.field == "secret"
    assert len(secret) < 7 or secret not in refused.value.sentence


@pytest.mark.parametrize("event_id", ["", "evt.1", "a b", "é", "x" * 129, "a\nb"])
def test_an_id_that_could_be_taken_for_another_is_refused(event_id: str) -> None:
    with pytest.raises(Malformed):
        signing.headers(event_id, NOW, b"{}", ["s"])


# ---- verify_signature


def test_verify_signature_takes_bytes_text_and_what_was_parsed() -> None:
    data = {"z": "שלום", "a": [1.5, None, {"k": "\ud800"}]}
    text = body.encode(data)
    signature = signing.sign_body("secret123", text)
    for payload in (text, bytearray(text), memoryview(text), text.decode(), data, json.loads(text)):
        assert signing.verify_signature(payload, signature, "secret123")
        assert not signing.verify_signature(payload, signature, "secret124")
    assert signing.verify_signature(text, f" {signature}\n", "secret123")


def test_what_version_1_2_signed_is_verified() -> None:
    data = {"z": 1, "a": {"é": True}}
    digest = hmac.new(b"secret123", json.dumps(data, sort_keys=True).encode(), hashlib.sha256).hexdigest()
    assert signing.verify_signature(data, digest, "secret123")


anything = st.none() | st.text() | st.binary() | st.integers() | st.floats() | st.lists(st.text()) | st.just(object())


@given(payload=anything | st.dictionaries(st.text(), anything), signature=anything, secret=anything)
def test_verify_signature_says_false_to_garbage(payload: Any, signature: Any, secret: Any) -> None:
    assert signing.verify_signature(payload, signature, secret) is False


def test_what_can_not_be_written_as_json_has_no_signature() -> None:
    loop: list[Any] = []
    loop.append(loop)
    for payload in (loop, {"a": {1, 2}}, {("a",): 1}, float("nan"), "\ud800"):
        assert not signing.verify_signature(payload, "0" * 64, "secret123")


# ---- bodies


def test_a_body_has_the_names_of_today_and_those_of_version_1_2() -> None:
    made = json.loads(body.make("message.sent", "evt-1", 0, b'{"a":1}'))
    stamp = "1970-01-01T00:00:00.000000+00:00"
    assert made == {"type": "message.sent", "event": "message.sent", "timestamp": stamp, "data": {"a": 1}}


@pytest.mark.parametrize(("kilobytes", "thin"), [(19, False), (21, False), (255, False), (257, True)])
def test_a_body_that_is_too_large_goes_thin(kilobytes: int, thin: bool) -> None:
    data = b'"%b"' % (b"x" * kilobytes * 1024)
    made = json.loads(body.make("message.sent", "evt-1", 0, data, "/api/messages/msg-1"))
    if thin:
        assert "data" not in made
        assert (made["ref"], made["id"], made["bytes"]) == ("/api/messages/msg-1", "evt-1", len(data))
        with pytest.raises(TooLarge):
            body.make("message.sent", "evt-1", 0, data)
    else:
        assert len(made["data"]) == kilobytes * 1024


@pytest.mark.parametrize("data", [{1, 2}, object(), float("inf"), {("a",): 1}, b"bytes"])
def test_what_json_can_not_hold_is_refused(data: Any) -> None:
    with pytest.raises(Malformed):
        body.encode(data)


@pytest.mark.parametrize("name", ["", ".", "a.", ".a", "a..b", "a b", "a-b", "é", "x" * 129, "a\n", "a.*.b"])
def test_bad_names_of_events_are_refused(name: str) -> None:
    with pytest.raises(Malformed):
        body.check_name(name)
    with pytest.raises(Malformed):
        body.check_pattern(name)


@pytest.mark.parametrize(
    ("pattern", "matched", "unmatched"),
    [
        ("message.sent", ["message.sent"], ["message.failed", "message.sent.late"]),
        ("message.*", ["message.sent", "message.sent.late"], ["message", "messages.sent"]),
        ("*", ["message.sent", "x"], []),
    ],
)
def test_patterns(pattern: str, matched: list[str], unmatched: list[str]) -> None:
    body.check_pattern(pattern)
    assert all(body.matches([pattern], name) for name in matched)
    assert not any(body.matches([pattern], name) for name in unmatched)
