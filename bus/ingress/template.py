"""From the body that came to the payload that is sent: a template is JSON, and has no code in it.

    {"title": {"$": "/issue/title"}, "by": {"$": "/sender/login", "default": "nobody"}, "event": {"$header": "X-Event"}}

An object with `$` stands for what that JSON pointer (RFC 6901) finds in the body, byte for byte, `$header` for a header of
the request; `default`, or else null, stands for what is not there. All else stands for itself. Headers are not signed by
most senders, and those that carry credentials are not given away.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from bus.errors import Malformed, TooLarge
from bus.ingress.signatures import Request
from bus.message import check_depth
from bus.protocol import encode

MAX_TEMPLATE_BYTES = 16 * 1024
MAX_REFERENCES = 100
SECRET_HEADERS = frozenset({"authorization", "cookie", "proxy-authorization", "x-api-key"})

_HEADER = re.compile(r"[A-Za-z0-9-]{1,100}")
_INDEX = re.compile(r"0|[1-9][0-9]{0,8}")
_NULL = b"null"


class Document:
    """A body that was verified: JSON text in which pointers are looked up. What they find is not decoded any further."""

    def __init__(self, text: bytes) -> None:
        self.text = text
        self._levels: dict[tuple[str, ...], Any] = {(): text}

    def find(self, pointer: str) -> bytes | None:
        """The JSON text at a pointer; None when there is nothing."""
        tokens = tuple(token.replace("~1", "/").replace("~0", "~") for token in pointer.split("/")[1:])
        found = self._at(tokens)
        return None if found is None else bytes(found)

    def text_at(self, pointer: str, most: int) -> str | None:
        """The string at a pointer, if it is one of 1 to `most` characters."""
        found = self.find(pointer) if pointer else None
        if found is None or found[:1] != b'"':
            return None
        text = str(msgspec.json.decode(found))
        return text if 0 < len(text) <= most else None

    def _at(self, tokens: tuple[str, ...]) -> Any:
        """The text at a place. Each level on the way is taken apart once, however many pointers lead through it."""
        if tokens not in self._levels:
            parent, last = self._parts(tokens[:-1]), tokens[-1]
            if isinstance(parent, dict):
                found = parent.get(last)
            elif isinstance(parent, list):
                found = parent[int(last)] if _INDEX.fullmatch(last) and int(last) < len(parent) else None
            else:
                found = None
            self._levels[tokens] = found
        return self._levels[tokens]

    def _parts(self, tokens: tuple[str, ...]) -> Any:
        taken_apart = (*tokens, "\0")  # no place of a pointer: it stands beside the text
        if taken_apart not in self._levels:
            text = self._at(tokens)
            self._levels[taken_apart] = None if text is None else _taken_apart(bytes(text))
        return self._levels[taken_apart]


def _taken_apart(text: bytes) -> dict[str, msgspec.Raw] | list[msgspec.Raw] | None:
    first = text.lstrip()[:1]
    if first == b"{":
        return _decode_object(text)
    return _decode_array(text) if first == b"[" else None


def check(template: bytes) -> None:
    """Refuse a template that can't be meant. Raises Malformed."""
    if len(template) > MAX_TEMPLATE_BYTES:
        raise _bad(f"may have at most {MAX_TEMPLATE_BYTES} bytes")
    check_depth(template, "template")
    references = sum(1 for piece in _pieces(msgspec.json.decode(template)) if isinstance(piece, dict))
    if references > MAX_REFERENCES:
        raise _bad(f"refers to the request {references} times; {MAX_REFERENCES} are the most")


def fill(template: bytes, document: Document, request: Request, max_bytes: int) -> bytes:
    """The payload, as JSON text. Raises TooLarge beyond `max_bytes`: what is referred to twice is there twice."""
    parts: list[bytes] = []
    size = 0
    for piece in _pieces(msgspec.json.decode(template)):
        part = piece if isinstance(piece, bytes) else _looked_up(piece, document, request)
        size += len(part)
        if size > max_bytes:
            raise TooLarge(f"The template makes a payload of more than {max_bytes} bytes; let it refer to less.")
        parts.append(part)
    return b"".join(parts)


def _looked_up(reference: dict[str, Any], document: Document, request: Request) -> bytes:
    if "$" in reference:
        found = document.find(reference["$"])
    else:
        value = request.headers.get(reference["$header"])
        found = None if value is None else encode(value)
    if found is not None:
        return found
    return encode(reference["default"]) if "default" in reference else _NULL


def _pieces(value: Any) -> Iterator[bytes | dict[str, Any]]:
    """The template as text, with its references in between."""
    if isinstance(value, list):
        yield from _joined(b"[", (b"" for _ in value), value, b"]")
    elif not isinstance(value, dict):
        yield encode(value)
    elif any(name.startswith("$") for name in value):
        yield _checked(value)
    else:
        yield from _joined(b"{", (encode(name) + b":" for name in value), value.values(), b"}")


def _joined(
    begin: bytes, heads: Iterable[bytes], values: Iterable[Any], end: bytes
) -> Iterator[bytes | dict[str, Any]]:
    yield begin
    for at, (head, value) in enumerate(zip(heads, values, strict=True)):
        yield (b"," if at else b"") + head
        yield from _pieces(value)
    yield end


def _checked(reference: dict[str, Any]) -> dict[str, Any]:
    names = set(reference) - {"default"}
    pointer, header = reference.get("$"), reference.get("$header")
    if names == {"$"}:
        if not isinstance(pointer, str) or (pointer and not pointer.startswith("/")):
            raise _bad('holds a `$` that is no JSON pointer, such as "/issue/title"')
    elif names == {"$header"}:
        if not isinstance(header, str) or not _HEADER.fullmatch(header) or header.lower() in SECRET_HEADERS:
            raise _bad("holds a `$header` that is no header's name, or of one that carries a credential")
    else:
        raise _bad("holds an object with a `$`, which may have nothing beside it but `default`")
    return reference


def _bad(problem: str) -> Malformed:
    return Malformed(f"The template {problem}.", code="bad_template", field="template")


_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_array = msgspec.json.Decoder(list[msgspec.Raw]).decode
