"""How senders sign, scheme by scheme: to try an integration out, and for tests. bus.ingress.schemes is the other side."""

from __future__ import annotations

import base64
import hmac

import msgspec

from bus.ingress.schemes import SCHEMES, signed_fields
from bus.ingress.signatures import Request
from bus.webhooks import signing


class Sending(msgspec.Struct, frozen=True, kw_only=True):
    """What is sent. `stamp`: Unix seconds, for botlyne also milliseconds. `delivery`, `event`: the sender's id of the event
    and its name, where they stand in headers. `request` has the URL where that is signed, and the Content-Type."""

    secret: str
    request: Request
    stamp: int
    delivery: str = "delivery-1"
    event: str = "push"

    def digest(self, scheme: str, *pieces: bytes) -> bytes:
        """HMAC-SHA256 of the pieces and the body."""
        return hmac.digest(SCHEMES[scheme].key(self.secret), b"".join(pieces) + self.request.body, "sha256")


def sign(scheme: str, sending: Sending) -> dict[str, str]:
    """The headers that a sender of this scheme adds. Raises Malformed for a secret that can't be one."""
    return _SIGNERS[scheme](sending)


def _botlyne(sending: Sending) -> dict[str, str]:
    stamp = str(sending.stamp)
    return {"X-Timestamp": stamp, "X-Signature": sending.digest("botlyne", stamp.encode(), b".").hex()}


def _standard(sending: Sending) -> dict[str, str]:
    key = SCHEMES["standard-webhooks"].key(sending.secret)
    return {
        "webhook-id": sending.delivery,
        "webhook-timestamp": str(sending.stamp),
        "webhook-signature": signing.sign(key, sending.delivery, sending.stamp, sending.request.body),
    }


def _github(sending: Sending) -> dict[str, str]:
    return {
        "X-GitHub-Delivery": sending.delivery,
        "X-GitHub-Event": sending.event,
        "X-Hub-Signature-256": f"sha256={sending.digest('github').hex()}",
    }


def _stripe(sending: Sending) -> dict[str, str]:
    return {"Stripe-Signature": f"t={sending.stamp},v1={sending.digest('stripe', b'%d.' % sending.stamp).hex()}"}


def _slack(sending: Sending) -> dict[str, str]:
    return {
        "X-Slack-Request-Timestamp": str(sending.stamp),
        "X-Slack-Signature": f"v0={sending.digest('slack', b'v0:%d:' % sending.stamp).hex()}",
    }


def _twilio(sending: Sending) -> dict[str, str]:
    content = sending.request.url.encode() + (signed_fields(sending.request) or b"")
    digest = hmac.digest(SCHEMES["twilio"].key(sending.secret), content, "sha1")
    return {"X-Twilio-Signature": base64.b64encode(digest).decode()}


_SIGNERS = {
    "botlyne": _botlyne,
    "standard-webhooks": _standard,
    "github": _github,
    "stripe": _stripe,
    "slack": _slack,
    "twilio": _twilio,
}
