"""The bodies and answers of bus.transports.ingress as structs: what is sent, and what `/openapi.json` says is sent."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import UNSET, UnsetType

from bus.ingress.integrations import MAX_COUNT, NO_TEMPLATE, SchemeName

NOT_GIVEN = msgspec.Raw(b"")


class RateBody(msgspec.Struct):
    """`count` at once, then as many evenly spread over each `seconds`."""

    count: Annotated[int, msgspec.Meta(ge=1, le=MAX_COUNT)]
    seconds: float = 60.0


class Fields(msgspec.Struct, kw_only=True):
    """What becomes of a webhook. `type`, `require_ack`, `priority`, `ttl`: of its message; `sender`: whom that is from, null
    for a name made of the integration's id. `template`: how the payload is made of the body, null for the whole body.
    `allowed_ips`: addresses and networks that may send, null for ALLOWED_WEBHOOK_IPS. `public_url`: what stands before
    /api in the URL that the sender calls."""

    type: str | UnsetType = UNSET
    sender: str | UnsetType | None = UNSET
    description: str | UnsetType = UNSET
    require_ack: bool | UnsetType = UNSET
    priority: str | int | UnsetType | None = UNSET
    ttl: float | UnsetType | None = UNSET
    template: msgspec.Raw = msgspec.field(default_factory=lambda: NOT_GIVEN)
    allowed_ips: list[str] | UnsetType | None = UNSET
    rate: RateBody | UnsetType | None = UNSET
    public_url: str | UnsetType | None = UNSET


class IntegrationBody(Fields, kw_only=True):
    """`secret`: the sender's; left out, WEBHOOK_SIGNATURE_SECRET holds, or one is made where the scheme allows it."""

    scheme: SchemeName
    to: str | list[str]
    secret: str | None = None
    enabled: bool = True


class IntegrationChange(Fields, kw_only=True):
    """What is left out stays as it is."""

    to: str | list[str] | UnsetType = UNSET


class NewSecret(msgspec.Struct):
    """`secret`: the new one, else one is made. What was valid stays valid for `grace_seconds`."""

    secret: str | None = None
    grace_seconds: float = 86400.0


class Integration(msgspec.Struct):
    """An integration. `path` is where its sender posts to; `url` the same from outside, if that is known. `state`: enabled,
    paused, no_secret, or unreadable (its secrets were encrypted with another key). Secrets are masked; `secret` is
    there once."""

    id: str
    path: str
    url: str | None
    state: str
    scheme: str
    to: str | list[str]
    type: str
    sender: str | None
    description: str
    require_ack: bool
    priority: str | int | None
    ttl: float | None
    allowed_ips: list[str] | None
    rate: RateBody | None
    public_url: str | None
    created: str
    changed: str
    secrets: list[str]
    template: msgspec.Raw = msgspec.field(default_factory=lambda: NO_TEMPLATE)
    secret: str | UnsetType = UNSET


class Integrations(msgspec.Struct):
    integrations: list[Integration]
    cursor: str
    more: bool


class IntegrationDeleted(msgspec.Struct):
    status: str
    id: str


class IntegrationEvent(msgspec.Struct):
    """What came of a webhook: `outcome` accepted, duplicate, ping, challenge, or the code of the refusal. Refusals of one
    second that are alike are one event with a `count`. `event` and `delivery` are the sender's."""

    number: int
    integration: str
    timestamp: str
    outcome: str
    count: int
    address: str
    request_id: str
    bytes: int
    event: str | None
    delivery: str | None
    message_id: str | None


class IntegrationEvents(msgspec.Struct):
    events: list[IntegrationEvent]
    cursor: str
    more: bool
