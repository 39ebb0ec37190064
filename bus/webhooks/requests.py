"""A claim as the request that is sent: the body made once, signed as it is, and the headers around it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from bus.trace_context import trace_in
from bus.webhooks import body, signing
from bus.webhooks.chat import Note
from bus.webhooks.claims import Claim, Item
from bus.webhooks.endpoints import Endpoint, Sealed
from bus.webhooks.outbox import new_event_id
from bus.webhooks.outlet import compose, request_headers
from bus.webhooks.policy import Kind


class Request(msgspec.Struct, frozen=True):
    """Where it goes, and the very bytes."""

    url: str
    headers: dict[str, str]
    body: bytes


def request_of(claim: Claim, endpoint: Endpoint, now_us: int, default_secret: str | None) -> Request:
    """The request of a claim, for an endpoint that can be read. Raises BusError for what can't be sent."""
    sealed = endpoint.sealed
    assert sealed is not None
    item = claim.items[0]
    if endpoint.config.kind != "http":
        return _for_chat(endpoint.config.kind, sealed, claim.items)
    text = body.make(item.name, item.event_id, item.occurred_us, item.data, _ref_of(item))
    return _signed(sealed, item, text, now_us, default_secret)


def _for_chat(kind: Kind, sealed: Sealed, items: Sequence[Item]) -> Request:
    """A message for people: of one event, or a digest of several."""
    notes = [Note(item.name, msgspec.json.decode(item.data), item.occurred_us) for item in items]
    url, text = compose(kind, sealed.url, notes)
    return Request(url, request_headers(sealed.headers, {}), text)


def test_request(endpoint: Endpoint, now_us: int, wall: int, default_secret: str | None) -> Request:
    """A `webhook.test`, signed like any event."""
    data = body.encode({"webhook": endpoint.id, "note": "A test event, sent by hand."})
    item = Item(0, new_event_id(now_us), "webhook.test", now_us, None, data, 1, 0, now_us, wall, None, replay=False)
    return request_of(Claim(endpoint.number, "", now_us, [item]), endpoint, now_us, default_secret)


def _signed(sealed: Sealed, item: Item, text: bytes, now_us: int, default_secret: str | None) -> Request:
    secrets = sealed.valid(now_us) or ([default_secret] if default_secret else [])
    signed = signing.headers(item.event_id, item.stamp, text, secrets, sealed.private_keys(now_us))
    ours = {**signed, "webhook-attempt": str(item.attempts)}
    if item.sequence is not None:
        ours["webhook-sequence"] = str(item.sequence)
    if item.replay:
        ours["webhook-replay"] = "1"
    if item.name.startswith("message."):
        ours |= trace_in(item.data)
    return Request(sealed.url, request_headers(sealed.headers, ours), text)


def _ref_of(item: Item) -> str | None:
    """Where a message can be fetched that is too large to be sent: its text begins with its id."""
    if item.seq is None or not item.data.startswith(b'{"id":"'):
        return None
    message_id = item.data[7:].partition(b'"')[0].decode()
    return f"/api/messages/{message_id}"
