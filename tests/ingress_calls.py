"""Integrations as tests make them, and signed webhooks as their senders post them."""

from __future__ import annotations

import itertools
import json
import time
from typing import Any

from bus.ingress.signatures import Request
from bus.ingress.signer import Sending, sign
from bus.testing import Answer, BusServer, eventually
from tests.calls import call

PUBLIC_URL = "https://bus.example.com/hooks"
JSON, FORM = "application/json", "application/x-www-form-urlencoded"
SECRET = "a secret of the vendor"
SCHEMES = ("botlyne", "standard-webhooks", "github", "stripe", "slack", "twilio")
_numbers = itertools.count(1)


def integrate(server: BusServer, scheme: str = "botlyne", to: object = "desk", **more: Any) -> dict[str, Any]:
    """An integration with a known secret."""
    body = {"scheme": scheme, "to": to, "secret": SECRET, **more}
    if scheme == "twilio":
        body.setdefault("public_url", PUBLIC_URL)
    made: dict[str, Any] = call(server, "POST", "/api/integrations", body)
    return made


def fresh_body(scheme: str = "botlyne") -> bytes:
    """A body that was never sent before, in the form of the scheme."""
    number = next(_numbers)
    if scheme == "twilio":
        return f"MessageSid=SM{number}&Body=a+%26+b".encode()
    return json.dumps({"id": f"evt_{number}", "event_id": f"Ev{number}", "type": "made.up", "n": number}).encode()


def headers_for(
    made: dict[str, Any], body: bytes, *, stamp: int | None = None, secret: str = SECRET, **more: Any
) -> dict[str, str]:
    """What the sender puts on a body."""
    scheme = made["scheme"]
    kind = {"Content-Type": FORM if scheme == "twilio" else JSON}
    more.setdefault("delivery", f"delivery-{next(_numbers)}")
    request = Request(kind, body, f"{PUBLIC_URL}{made['path']}")
    stamp = int(time.time()) if stamp is None else stamp
    return kind | sign(scheme, Sending(secret=secret, request=request, stamp=stamp, **more))


def post(server: BusServer, made: dict[str, Any], body: bytes | None = None, **how: Any) -> Answer:
    """Post a signed webhook; `how` as of `headers_for`."""
    body = fresh_body(made["scheme"]) if body is None else body
    return server.call("POST", made["path"], raw=body, headers=headers_for(made, body, **how))


def events(server: BusServer, made: dict[str, Any], **query: object) -> list[dict[str, Any]]:
    """What the log has of an integration, the youngest first."""
    found: list[dict[str, Any]] = call(server, "GET", f"/api/integrations/{made['id']}/events", **query)["events"]
    return found


def logged(server: BusServer, made: dict[str, Any], outcome: str, count: int = 1) -> list[dict[str, Any]]:
    """Wait until the log has so many of an outcome."""

    def enough() -> list[dict[str, Any]] | None:
        found = events(server, made, outcome=outcome)
        return found if sum(event["count"] for event in found) >= count else None

    return eventually(enough, what=f"{count} times {outcome}")
