"""The six ways in which senders sign, each held against its vendor's own library by the tests.

    botlyne            X-Timestamp, X-Signature: hex HMAC-SHA256 of `<timestamp>.<body>`
    standard-webhooks  webhook-id, webhook-timestamp, webhook-signature: base64 of `<id>.<timestamp>.<body>`
    github             X-Hub-Signature-256: hex HMAC-SHA256 of the body
    stripe             Stripe-Signature: `t=<timestamp>,v1=<hex>,…`, HMAC-SHA256 of `<timestamp>.<body>`
    slack              X-Slack-Request-Timestamp, X-Slack-Signature: `v0=<hex>` of `v0:<timestamp>:<body>`
    twilio             X-Twilio-Signature: base64 HMAC-SHA1 of the URL and the sorted fields of the form

Pure: no I/O, and nothing that a stranger sends raises.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Sequence
from urllib.parse import parse_qs, parse_qsl

from bus.errors import Malformed
from bus.ingress.signatures import Algorithm, Claim, Request, Scheme
from bus.webhooks import signing

MIN_SECRET, MAX_SECRET = 8, 256
MILLISECONDS_FROM = 10**11
"""An `X-Timestamp` of at least this counts milliseconds: as seconds it would be the year 5138."""

MAX_FIELDS = 1000
"""Of a form; beyond, it is not read."""

_SECONDS = re.compile(r"[0-9]{1,11}")
_STAMP = re.compile(r"[0-9]{1,14}")
_ID = re.compile(r"[\x21-\x7e]{1,256}")
_SHA256_HEX = re.compile(r"[0-9A-Fa-f]{64}")
_ORIGIN = re.compile(r"(https?)://([^/?#@]*?)(:[0-9]{1,5})?(?=[/?#]|$)")
_DIGEST_BYTES: dict[Algorithm, int] = {"sha256": 32, "sha1": 20}


class _Plain:
    """What most schemes have in common: the key is the secret's text, and nothing but the body names the event."""

    delivery_at = event_at = event_header = ""

    def key(self, secret: str) -> bytes:
        if not MIN_SECRET <= len(secret) <= MAX_SECRET or not secret.isprintable():
            raise Malformed(
                f"The secret must have {MIN_SECRET} to {MAX_SECRET} printable characters; one that is short can be guessed.",
                code="bad_secret",
                field="secret",
            )
        return secret.encode()


class Botlyne(_Plain):
    """`X-Timestamp` in Unix seconds or milliseconds, by its size."""

    name = "botlyne"
    timed = True

    def claim(self, request: Request) -> Claim | None:
        stamp, signature = request.header("X-Timestamp"), _hex(request.header("X-Signature"))
        if not _STAMP.fullmatch(stamp) or signature is None:
            return None
        unit = 1000 if int(stamp) >= MILLISECONDS_FROM else 1_000_000
        return Claim(((stamp.encode() + b".", request.body),), (signature,), int(stamp) * unit)


class StandardWebhooks:
    """https://www.standardwebhooks.com. The secret is `whsec_` and base64, or any other text."""

    name = "standard-webhooks"
    timed = True
    delivery_at = event_header = ""
    event_at = "/type"

    def key(self, secret: str) -> bytes:
        return signing.key_of(secret)

    def claim(self, request: Request) -> Claim | None:
        delivery, stamp = request.header("webhook-id"), request.header("webhook-timestamp")
        if not _ID.fullmatch(delivery) or not _SECONDS.fullmatch(stamp):
            return None
        given = [_base64(part[3:]) for part in request.header("webhook-signature").split(" ") if part.startswith("v1,")]
        signed = (f"{delivery}.{stamp}.".encode(), request.body)
        return Claim((signed,), _found(given), int(stamp) * 1_000_000, delivery)


class GitHub(_Plain):
    """The body alone is signed: no time, and neither of the headers that name the delivery and the event."""

    name = "github"
    timed = False
    event_header = "X-GitHub-Event"

    def claim(self, request: Request) -> Claim | None:
        sort, _, text = request.header("X-Hub-Signature-256").partition("=")
        signature = _hex(text)
        if sort != "sha256" or signature is None:
            return None
        delivery = request.header("X-GitHub-Delivery")
        return Claim(((request.body,),), (signature,), None, delivery if _ID.fullmatch(delivery) else None)


class Stripe(_Plain):
    """Several `v1` while a secret is being changed; `v0` is of test clocks, and counts for nothing."""

    name = "stripe"
    timed = True
    delivery_at, event_at = "/id", "/type"

    def claim(self, request: Request) -> Claim | None:
        items = [item.strip().partition("=") for item in request.header("Stripe-Signature").split(",")]
        stamps = [value for name, _, value in items if name == "t"]
        if len(stamps) != 1 or not _SECONDS.fullmatch(stamps[0]):
            return None
        given = [_hex(value) for name, _, value in items if name == "v1"]
        return Claim(((stamps[0].encode() + b".", request.body),), _found(given), int(stamps[0]) * 1_000_000)


class Slack(_Plain):
    """Events, commands and interactions of a Slack app; the secret is the app's signing secret."""

    name = "slack"
    timed = True
    delivery_at, event_at = "/event_id", "/event/type"

    def claim(self, request: Request) -> Claim | None:
        stamp = request.header("X-Slack-Request-Timestamp")
        version, _, text = request.header("X-Slack-Signature").partition("=")
        signature = _hex(text)
        if not _SECONDS.fullmatch(stamp) or version != "v0" or signature is None:
            return None
        return Claim(((f"v0:{stamp}:".encode(), request.body),), (signature,), int(stamp) * 1_000_000)


class Twilio(_Plain):
    """The URL as Twilio has it, then the form's fields, sorted; of another body, its digest stands in the URL.

    Twilio is not consistent about the port in the URL, so both forms count, as in its library. A form has to be read to
    be verified, since its fields are what is signed: at most MAX_FIELDS.
    """

    name = "twilio"
    timed = False

    def claim(self, request: Request) -> Claim | None:
        settings = request.header("X-Twilio-Webhooks-Signature-Settings")
        algorithm: Algorithm = "sha256" if "algorithm=HMAC_SHA256" in settings.replace(" ", "").split(",") else "sha1"
        signature = _base64(request.header("X-Twilio-Signature"), algorithm)
        fields = signed_fields(request)
        if signature is None or fields is None or not _ORIGIN.match(request.url):
            return None
        forms = tuple((url.encode("utf-8", "replace"), fields) for url in _with_and_without_port(request.url))
        return Claim(forms, (signature,), algorithm=algorithm)


SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme for scheme in (Botlyne(), StandardWebhooks(), GitHub(), Stripe(), Slack(), Twilio())
}


def is_form(request: Request) -> bool:
    """True for the fields of an HTML form."""
    return request.header("Content-Type").partition(";")[0].strip().lower() == "application/x-www-form-urlencoded"


def fields_of(body: bytes) -> list[tuple[str, str]] | None:
    """The fields of a form, in order; None when it is no form, or has too many."""
    try:
        return parse_qsl(body.decode(), keep_blank_values=True, errors="strict", max_num_fields=MAX_FIELDS)
    except ValueError:  # not UTF-8, or too many
        return None


def signed_fields(request: Request) -> bytes | None:
    """What Twilio signs of a body, behind the URL; None when the signature would say nothing about the body."""
    if is_form(request):
        fields = fields_of(request.body)
        if fields is None or not all(name for name, _ in fields):  # a field without name and value would be unsigned
            return None
        return "".join(name + value for name, value in sorted(set(fields))).encode()
    if not request.body:
        return b""
    digests = parse_qs(request.url.partition("?")[2]).get("bodySHA256", [""])
    actual = hashlib.sha256(request.body).hexdigest()
    return b"" if hmac.compare_digest(digests[0].encode("utf-8", "replace"), actual.encode()) else None


def _with_and_without_port(url: str) -> tuple[str, str]:
    origin = _ORIGIN.match(url)
    assert origin is not None
    scheme, host, port = origin.groups()
    rest = url[origin.end() :]
    port = port or (":443" if scheme == "https" else ":80")
    return f"{scheme}://{host}{rest}", f"{scheme}://{host}{port}{rest}"


def _hex(text: str) -> bytes | None:
    return bytes.fromhex(text) if _SHA256_HEX.fullmatch(text) else None


def _base64(text: str, algorithm: Algorithm = "sha256") -> bytes | None:
    try:
        digest = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    canonical = base64.b64encode(digest).decode() == text  # the last character has bits that mean nothing
    return digest if canonical and len(digest) == _DIGEST_BYTES[algorithm] else None


def _found(given: Sequence[bytes | None]) -> tuple[bytes, ...]:
    return tuple(signature for signature in given if signature is not None)
