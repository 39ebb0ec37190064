"""Signatures of six sorts of senders: right where the vendor's own library made them, and wrong in every other way."""

from __future__ import annotations

import json
import random
import string
from pathlib import Path
from typing import Any

import pytest
from slack_sdk.signature import SignatureVerifier
from standardwebhooks import Webhook
from werkzeug.datastructures import Headers

from bus.errors import Malformed
from bus.ingress.schemes import SCHEMES
from bus.ingress.signatures import Request, verify
from bus.ingress.signer import Sending, sign

VECTORS: list[dict[str, Any]] = json.loads(Path(__file__).with_name("vectors.json").read_text())
NOW = 1_800_000_000
URL = "https://bus.example.com/api/v1/integrations/webhook/in-1"
SECRET = "a secret of the vendor"
WRONG = "whsec_" + "AAAA" * 8
OTHER = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def request_of(vector: dict[str, Any], **changed: Any) -> Request:
    made = {**vector, **changed}
    body = made["body"] if isinstance(made["body"], bytes) else made["body"].encode()
    return Request(Headers(made["headers"]), body, made["url"])


def outcome(scheme: str, request: Request, *secrets: str, now: float = NOW) -> str:
    return verify(SCHEMES[scheme], request, secrets, int(now * 1e6))[0]


def signed(scheme: str, body: bytes = b'{"id": "evt_1"}', stamp: int = NOW, **more: Any) -> Request:
    """A request as a sender of this scheme makes it."""
    unsigned = Request(Headers({"Content-Type": "application/x-www-form-urlencoded"}), body, URL)
    made = sign(scheme, Sending(secret=SECRET, request=unsigned, stamp=stamp, **more))
    return Request(Headers({"Content-Type": "application/x-www-form-urlencoded", **made}), body, URL)


# ---- what vendors make


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_the_vendors_library_signed_is_right(scheme: str) -> None:
    vectors = [vector for vector in VECTORS if vector["scheme"] == scheme]
    assert len(vectors) >= 10
    for vector in vectors:
        assert outcome(scheme, request_of(vector), vector["secret"]) == "right", vector
        assert outcome(scheme, request_of(vector), OTHER, vector["secret"]) == "right"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_another_secret_or_other_bytes_are_wrong(scheme: str) -> None:
    for vector in [vector for vector in VECTORS if vector["scheme"] == scheme]:
        assert outcome(scheme, request_of(vector), WRONG, "nobody's secret") == "bad_signature"
        body = vector["body"].encode()
        for changed in (body + b" ", body + b"&x=1", body[:-2] if body else b"x", body.swapcase() + b"x"):
            assert outcome(scheme, request_of(vector, body=changed), vector["secret"]) == "bad_signature", vector
        if body[:1] == b"{" and json.dumps(json.loads(body)).encode() != body:
            written_anew = json.dumps(json.loads(body)).encode()
            assert outcome(scheme, request_of(vector, body=written_anew), vector["secret"]) == "bad_signature"


def test_each_header_that_is_signed_counts() -> None:
    for vector in VECTORS:
        unsigned = {"Content-Type", "X-GitHub-Delivery", "X-GitHub-Event"}
        for name in set(vector["headers"]) - unsigned:
            headers = {key: value for key, value in vector["headers"].items() if key != name}
            assert outcome(vector["scheme"], request_of(vector, headers=headers), vector["secret"]) == "bad_signature"
    twilio = [vector for vector in VECTORS if vector["scheme"] == "twilio"]
    for vector in twilio:
        elsewhere = request_of(vector, url=vector["url"].replace("in-1", "in-2"))
        assert outcome("twilio", elsewhere, vector["secret"]) == "bad_signature"


def test_we_sign_as_the_vendors_do() -> None:
    """So a test vector of `python -m bus integrations sign` is as good as one of theirs."""
    for vector in VECTORS:
        request = request_of(vector)
        headers = vector["headers"]
        stamp = int(headers.get("X-Timestamp", vector["stamp"] or NOW))
        delivery = headers.get("webhook-id") or headers.get("X-GitHub-Delivery") or ""
        made = sign(vector["scheme"], Sending(secret=vector["secret"], request=request, stamp=stamp, delivery=delivery))
        again = Request(Headers({"Content-Type": headers["Content-Type"], **made}), request.body, request.url)
        assert outcome(vector["scheme"], again, vector["secret"]) == "right"


def test_the_vendors_verifiers_take_what_we_sign() -> None:
    body = '{"type": "x", "text": "ü"}'.encode()
    made = sign("standard-webhooks", Sending(secret=OTHER, request=Request({}, body), stamp=2**31))
    with pytest.raises(Exception, match="too new"):  # all else is right
        Webhook(OTHER).verify(body, made)
    made = sign("slack", Sending(secret=SECRET, request=Request({}, body), stamp=NOW))
    expected = SignatureVerifier(SECRET).generate_signature(timestamp=str(NOW), body=body)
    assert made["X-Slack-Signature"] == expected


def test_a_form_that_can_not_be_read_is_not_signed_by_its_url_alone() -> None:
    request = signed("twilio", b"")
    assert outcome("twilio", request, SECRET) == "right"
    for body in (b"\xff", b"a=%ff", b"&".join([b"a=1"] * 1001), b"=", b"a"):
        assert outcome("twilio", Request(request.headers, body, request.url), SECRET) == "bad_signature"


def test_a_signature_has_one_spelling() -> None:
    """Base64 of 20 or 32 bytes ends in bits that mean nothing: another last character would decode to the same."""
    alphabet = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/"
    for scheme, name in (("twilio", "X-Twilio-Signature"), ("standard-webhooks", "webhook-signature")):
        request = signed(scheme)
        value = request.header(name)
        last = alphabet.index(value[-2])
        headers = Headers({**dict(request.headers), name: f"{value[:-2]}{alphabet[last ^ 1]}="})  # type: ignore[call-overload]
        assert outcome(scheme, request, SECRET) == "right"
        assert outcome(scheme, Request(headers, request.body, request.url), SECRET) == "bad_signature"


# ---- time


@pytest.mark.parametrize("scheme", [name for name, scheme in SCHEMES.items() if scheme.timed])
@pytest.mark.parametrize("way", [-1, 1])
def test_a_time_may_be_300_seconds_off_and_no_more(scheme: str, way: int) -> None:
    for seconds, expected in ((0, "right"), (299, "right"), (300, "right"), (300.000001, "stale"), (301, "stale")):
        assert outcome(scheme, signed(scheme), SECRET, now=NOW + way * seconds) == expected
    assert outcome(scheme, signed(scheme), OTHER, now=NOW + 301) == "bad_signature"


def test_botlyne_takes_seconds_and_milliseconds() -> None:
    for stamp, now, expected in (
        (NOW * 1000, NOW, "right"),
        (NOW * 1000 - 299_999, NOW, "right"),
        (NOW * 1000 - 300_001, NOW, "stale"),
        (NOW * 1000 + 300_001, NOW, "stale"),
        (10**11 - 1, 10**11 - 1, "right"),
        (10**11, 10**8, "right"),
    ):
        assert outcome("botlyne", signed("botlyne", stamp=stamp), SECRET, now=now) == expected


# ---- rotation, nonces


def test_every_valid_secret_counts_and_the_nonce_is_the_same_for_all() -> None:
    for vector in VECTORS:
        scheme = SCHEMES[vector["scheme"]]
        request = request_of(vector)
        _, one = verify(scheme, request, [vector["secret"]], NOW * 1_000_000)
        _, two = verify(scheme, request, [OTHER, vector["secret"], "and a third"], NOW * 1_000_000)
        assert one == two is not None


def test_a_nonce_tells_apart_what_was_signed_and_nothing_else() -> None:
    body = b'{"id": "evt_1"}'
    nonces = set()
    for stamp in (NOW, NOW + 1):
        for each in (body, body + b" "):
            for given in ("signature", "SIGNATURE"):
                request = signed("stripe", each, stamp)
                header = request.header("Stripe-Signature")
                if given.isupper():
                    stamp_part, _, signature = header.partition(",v1=")
                    header = f"{stamp_part},v0=0,v1={signature.upper()}"
                result, proof = verify(
                    SCHEMES["stripe"], Request(Headers({"Stripe-Signature": header}), each), [SECRET], NOW * 1_000_000
                )
                assert result == "right"
                assert proof is not None
                nonces.add(proof.nonce)
    assert len(nonces) == 4


def test_without_a_secret_nothing_is_right() -> None:
    for scheme in SCHEMES:
        assert outcome(scheme, signed(scheme)) == "no_secret"
        empty_key = Request(signed(scheme).headers, b'{"id": "evt_1"}', URL)
        assert outcome(scheme, empty_key) == "no_secret"


@pytest.mark.parametrize("secret", ["", "short", "x" * 257, "with\nnewline"])
def test_a_secret_that_can_be_guessed_or_sent_by_no_one_is_refused(secret: str) -> None:
    for name in ("botlyne", "github", "stripe", "slack", "twilio"):
        with pytest.raises(Malformed):
            SCHEMES[name].key(secret)


# ---- strangers


CHARACTERS = string.printable + "äß€\u202e🎉\x00\udc80 ,.=+/"


def test_garbage_is_wrong_and_never_an_exception() -> None:
    draw = random.Random(12)
    for _ in range(20_000):
        vector = dict(draw.choice(VECTORS))
        headers = dict(vector["headers"])
        name = draw.choice(list(headers))
        value = headers[name]
        at = draw.randrange(len(value) + 1)
        text = "".join(draw.choices(CHARACTERS, k=draw.randrange(40)))
        headers[name] = draw.choice([text, value[:at] + text + value[at:], value[:at], value * 2, value + "," + text])
        body = draw.choice([vector["body"].encode(), bytes(draw.choices(range(256), k=draw.randrange(60)))])
        changed = (headers[name], body) != (value, vector["body"].encode())
        request = Request(_Anything(headers), body, draw.choice([vector["url"], "", "https://[", text]))
        result = outcome(vector["scheme"], request, vector["secret"])
        if changed and name.lower().endswith(("timestamp", "webhook-id")):
            assert result != "right" or value == headers[name]


class _Anything(dict[str, str]):
    """Headers with values that no server would let through."""

    def get(self, name: str) -> str | None:  # type: ignore[override]
        return next((value for key, value in self.items() if key.lower() == name.lower()), None)


def test_an_integer_of_other_digits_is_no_time() -> None:
    for scheme, name in (("botlyne", "X-Timestamp"), ("slack", "X-Slack-Request-Timestamp")):
        request = signed(scheme)
        for stamp in ("١٨٠٠٠٠٠٠٠٠", "1_800_000_000", "+1800000000", " 1800000000", "1.8e9", "9" * 30, ""):
            headers = {**dict(request.headers), name: stamp}  # type: ignore[call-overload]
            assert outcome(scheme, Request(_Anything(headers), request.body), SECRET) == "bad_signature"
