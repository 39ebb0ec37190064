"""Writes vectors.json anew: requests signed by the vendors' own libraries. To be run by hand, where these are installed.

    pip install stripe==16.1.0 twilio==9.13.0 slack_sdk==3.47.0 standardwebhooks==1.1.0
    npm install @octokit/webhooks-methods@6.0.0
    python tests/unit/ingress/make_vectors.py

They are no requirements of the tests, since they bring more than they are used for. What has no library of a vendor
(botlyne) is signed by openssl.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from slack_sdk.signature import SignatureVerifier
from standardwebhooks import Webhook

STAMP = 1_800_000_000
BODIES = [
    '{"a": [1.10, "x"]}',
    '{"text":"שלום 🌍 ünï"}',
    "{}",
    '{\n  "id": "evt_1",\n  "type": "a.b" }\r\n',
    "",
    "no json at all",
]
SECRETS = ["a secret of the vendor", "8f742231b10e8888abcd99yyyzzz85a5"]
JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
OCTOKIT = """
import { sign, verify } from "@octokit/webhooks-methods";
const [secret, body] = JSON.parse(process.argv[1]);
const signature = await sign(secret, body);
if (!(await verify(secret, body, signature))) throw new Error("not verified");
console.log(signature);
"""


class Fields(dict):
    """A form whose fields may come several times, as the library takes one."""

    def getall(self, name: str) -> list[str]:
        return self[name]


def vector(scheme: str, made_by: str, secret: str, headers: dict[str, str], body: str, url: str = "") -> dict[str, Any]:
    stamp = None if scheme in ("github", "twilio") else STAMP
    return {
        "scheme": scheme,
        "made_by": made_by,
        "secret": secret,
        "stamp": stamp,
        "url": url,
        "headers": headers,
        "body": body,
    }


def botlyne() -> list[dict[str, Any]]:
    made = []
    for secret in SECRETS:
        for body in BODIES:
            for stamp in (str(STAMP), f"{STAMP}123"):
                command = ["openssl", "dgst", "-sha256", "-hmac", secret]
                told = subprocess.run(command, input=f"{stamp}.{body}".encode(), capture_output=True, check=True)
                headers = {"X-Timestamp": stamp, "X-Signature": told.stdout.decode().split()[-1]}
                made.append(vector("botlyne", "openssl dgst", secret, {**JSON, **headers}, body))
    return made


def standard() -> list[dict[str, Any]]:
    by = f"standardwebhooks {version('standardwebhooks')}"
    secrets = ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_" + "QUJDREVGR0hJSktMTU5PUFFSU1RVVldY"]
    made = []
    for body in BODIES:
        at = datetime.fromtimestamp(STAMP, UTC)
        both = [Webhook(secret).sign("msg_p5jXN8AQM9LWM0D4loKWxJek", at, body) for secret in secrets]
        for secret, signature in [*zip(secrets, both, strict=True), *((secret, " ".join(both)) for secret in secrets)]:
            headers = {"webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek", "webhook-timestamp": str(STAMP),
                       "webhook-signature": signature}  # fmt: skip
            made.append(vector("standard-webhooks", by, secret, {**JSON, **headers}, body))
    return made


def github() -> list[dict[str, Any]]:
    made = []
    for secret in SECRETS:
        for body in [body for body in BODIES if body]:  # the library refuses an empty one
            command = ["node", "--input-type=module", "-e", OCTOKIT, json.dumps([secret, body])]
            told = subprocess.run(command, capture_output=True, check=True, text=True)
            headers = {"X-GitHub-Delivery": "72d3162e-cc78-11e3-81ab-4c9367dc0958", "X-GitHub-Event": "push",
                       "X-Hub-Signature-256": told.stdout.strip()}  # fmt: skip
            made.append(vector("github", "@octokit/webhooks-methods 6.0.0", secret, {**JSON, **headers}, body))
    return made


def stripe() -> list[dict[str, Any]]:
    from stripe import WebhookSignature  # noqa: PLC0415  # see the docstring

    made = []
    for body in BODIES:
        one, two = (WebhookSignature.generate_signature_header(body, secret, STAMP) for secret in SECRETS)
        rolled = f"{one},{two.partition(',')[2]},v0={'0' * 64}"
        for secret, header in ((SECRETS[0], one), (SECRETS[1], two), (SECRETS[0], rolled), (SECRETS[1], rolled)):
            assert WebhookSignature.verify_header(body, header, secret)
            headers = {**JSON, "Stripe-Signature": header}
            made.append(vector("stripe", f"stripe {version('stripe')}", secret, headers, body))
    return made


def slack() -> list[dict[str, Any]]:
    made = []
    for secret in SECRETS:
        verifier = SignatureVerifier(secret)
        for body in [
            *BODIES,
            "token=x&command=%2Fweather&text=94070",
            "payload=%7B%22type%22%3A%22block_actions%22%7D",
        ]:
            signature = verifier.generate_signature(timestamp=str(STAMP), body=body)
            headers = {"X-Slack-Request-Timestamp": str(STAMP), "X-Slack-Signature": signature}
            kind = FORM if "=" in body and "{" not in body else JSON
            made.append(vector("slack", f"slack_sdk {version('slack_sdk')}", secret, {**kind, **headers}, body))
    return made


def twilio() -> list[dict[str, Any]]:
    from twilio.request_validator import RequestValidator  # noqa: PLC0415  # see the docstring

    base = "https://bus.example.com/api/v1/integrations/webhook/in-1"
    forms = [
        {"CallSid": ["CA1234567890ABCDE"], "Caller": ["+14158675310"], "Digits": ["1234"], "To": ["+18005551212"]},
        {"Body": ["שלום 🌍 & more = all"], "From": ["whatsapp:+1415"], "NumMedia": [""]},
        {"MediaUrl": ["https://b", "https://a", "https://a"], "b": ["1"], "B": ["2"]},
        {},
    ]
    urls = [
        base,
        f"{base}?foo=1&bar=2",
        base.replace(".com", ".com:443"),
        base.replace("https", "http"),
        base.replace(".com", ".com:8443"),
    ]
    made = []
    for secret in SECRETS:
        validator = RequestValidator(secret)
        for url in urls:
            for form in forms:
                for algorithm in (None, "HMAC_SHA256"):
                    signature = validator.compute_signature(url, Fields(form), algorithm)
                    assert validator.validate(url, Fields(form), signature, algorithm)
                    headers = {**FORM, "X-Twilio-Signature": signature}
                    if algorithm:
                        headers["X-Twilio-Webhooks-Signature-Settings"] = f"key=webhooks_1,algorithm={algorithm}"
                    called = url.replace(":443", "")  # as the receiver knows it, whatever Twilio makes of the port
                    body = urlencode(form, doseq=True)
                    made.append(vector("twilio", f"twilio {version('twilio')}", secret, headers, body, called))
        body = '{"event": "ü"}'
        url = f"{base}?bodySHA256={hashlib.sha256(body.encode()).hexdigest()}"
        signature = validator.compute_signature(url, {})
        assert validator.validate(url, body, signature)
        headers = {**JSON, "X-Twilio-Signature": signature}
        made.append(vector("twilio", f"twilio {version('twilio')}", secret, headers, body, url))
    return made


if __name__ == "__main__":
    vectors = [*botlyne(), *standard(), *github(), *stripe(), *slack(), *twilio()]
    lines = ",\n".join(json.dumps(made, ensure_ascii=False) for made in vectors)
    Path(__file__).with_name("vectors.json").write_text(f"[\n{lines}\n]\n")
