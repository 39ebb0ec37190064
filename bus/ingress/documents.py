"""What a verified body says: JSON, or the fields of a form as an object; and what its sender asks before it sends events."""

from __future__ import annotations

import msgspec

from bus.errors import Malformed
from bus.ingress.schemes import fields_of, is_form
from bus.ingress.signatures import Request, Scheme
from bus.ingress.template import Document
from bus.message import check_depth
from bus.protocol import encode, read

MAX_LABEL = 256
"""Characters of an event's name or id; a longer one is left out."""

MAX_CHALLENGE = 1000
SENDERS_OF_FORMS = frozenset({"github", "slack", "twilio"})
"""What others send is JSON, whatever its Content-Type says."""

_decode = msgspec.json.Decoder(msgspec.Raw).decode


def document_of(scheme: Scheme, request: Request) -> Document:
    """The body of a request that was verified. Raises Malformed.

    A form of GitHub or Slack with a field `payload` is the JSON in that field, as these send it.
    """
    text = request.body
    if scheme.name in SENDERS_OF_FORMS and is_form(request):
        fields = fields_of(request.body)
        if fields is None:
            raise Malformed("The body is not the form that its Content-Type says.", code="bad_form")
        wrapped = dict(fields).get("payload") if scheme.name in ("github", "slack") else None
        text = _object(fields) if wrapped is None else wrapped.encode()
    whole = bytes(read(_decode, text, "body"))
    check_depth(whole, "body")
    return Document(whole)


def event_of(scheme: Scheme, request: Request, document: Document) -> str | None:
    """The event's name, where the scheme has one."""
    if scheme.event_header:
        name = request.header(scheme.event_header)
        return name if 0 < len(name) <= MAX_LABEL else None
    return document.text_at(scheme.event_at, MAX_LABEL)


def delivery_of(scheme: Scheme, document: Document) -> str | None:
    """The sender's id of the event, where the body has it."""
    return document.text_at(scheme.delivery_at, MAX_LABEL)


def challenge_of(scheme: Scheme, document: Document) -> str | None:
    """What Slack wants to hear back before it sends events to a URL (`url_verification`)."""
    if scheme.name != "slack" or document.text_at("/type", MAX_LABEL) != "url_verification":
        return None
    return document.text_at("/challenge", MAX_CHALLENGE)


def is_ping(scheme: Scheme, event: str | None) -> bool:
    """True for the event by which GitHub tries a new webhook."""
    return scheme.name == "github" and event == "ping"


def _object(fields: list[tuple[str, str]]) -> bytes:
    """The fields as a JSON object; one that comes several times is a list."""
    found: dict[str, str | list[str]] = {}
    for name, value in fields:
        before = found.get(name)
        if before is None:
            found[name] = value
        elif isinstance(before, list):
            before.append(value)
        else:
            found[name] = [before, value]
    return encode(found)
