"""Templates of payloads: pointers into the body, byte for byte, and nothing that could do harm."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.errors import Malformed, TooLarge
from bus.ingress import template
from bus.ingress.signatures import Request
from bus.ingress.template import Document

BODY = b"""{"a": {"b/c": [10, {"d~e": 1.10}], "": "empty", "0": "zero"}, "n": 12345678901234567890123,
 "s": "\\u05e9 \xd7\xa9", "nil": null, "list": [[], [false]], "twice": 1, "twice": 2}"""
NO_HEADERS = Request({}, b"")


def filled(made: Any, body: bytes = BODY, request: Request = NO_HEADERS, most: int = 10_000) -> str:
    text = json.dumps(made).encode()
    template.check(text)
    return template.fill(text, Document(body), request, most).decode()


@pytest.mark.parametrize(
    ("pointer", "found"),
    [
        ("/a/b~1c/0", "10"),
        ("/a/b~1c/1/d~0e", "1.10"),
        ("/a/b~1c/1", '{"d~e": 1.10}'),
        ("/a/", '"empty"'),
        ("/a/0", '"zero"'),
        ("/n", "12345678901234567890123"),
        ("/s", '"\\u05e9 ש"'),
        ("/nil", "null"),
        ("/list/1/0", "false"),
        ("/twice", "2"),
        ("/list/2", "null"),
        ("/list/-", "null"),
        ("/list/01", "null"),
        ("/list/x", "null"),
        ("/n/0", "null"),
        ("/none/deeper", "null"),
        ("/a/\0", "null"),
        ("", BODY.decode()),
    ],
)
def test_a_pointer_brings_the_very_text(pointer: str, found: str) -> None:
    assert filled({"$": pointer}) == found


def test_all_else_stands_for_itself() -> None:
    made = {"x": [1, "ü", None, {"y": {"$": "/a/b~1c/0"}}, []], "z": {"$": "/no", "default": {"w": 1}}, "e": {}}
    assert filled(made) == '{"x":[1,"ü",null,{"y":10},[]],"z":{"w":1},"e":{}}'


def test_a_header_can_be_taken_but_no_credential() -> None:
    request = Request({"X-Event": 'a "b"\\'}, b"")
    assert filled({"$header": "X-Event"}, request=request) == json.dumps('a "b"\\')
    assert filled([{"$header": "X-None"}, {"$header": "X-None", "default": 1}], request=request) == "[null,1]"
    for name in ("Authorization", "cookie", "X-API-Key", "a b", "", 1, None):
        with pytest.raises(Malformed):
            filled({"$header": name})


@pytest.mark.parametrize(
    "made",
    [
        {"$": "a"},
        {"$": 1},
        {"$": "/a", "b": 1},
        {"$eval": "1"},
        {"$": "/a", "$header": "b"},
        [{"$x": 1}],
        {"a": {"$": None}},
    ],
)
def test_what_can_not_be_meant_is_refused(made: Any) -> None:
    with pytest.raises(Malformed):
        filled(made)


def test_size_depth_and_references_are_bounded() -> None:
    for made in ([{"$": "/a"}] * 101, "x" * 20_000, json.loads("[" * 40 + "]" * 40)):
        with pytest.raises(Malformed):
            filled(made)
    large = b'{"a": "%b"}' % (b"x" * 1000)
    assert len(filled([{"$": "/a"}] * 9, large)) > 9000
    with pytest.raises(TooLarge):
        filled([{"$": "/a"}] * 10, large)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


def places(value: Any, pointer: str = "") -> list[tuple[str, Any]]:
    """Every place in a value, with its pointer."""
    found = [(pointer, value)]
    if isinstance(value, dict):
        for name, inner in value.items():
            found += places(inner, f"{pointer}/{name.replace('~', '~0').replace('/', '~1')}")
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            found += places(inner, f"{pointer}/{at}")
    return found


@given(values)
def test_every_place_of_any_document_is_found(value: Any) -> None:
    document = Document(json.dumps(value).encode())
    for pointer, inner in places(value):
        found = document.find(pointer)
        assert found is not None
        assert json.loads(found) == inner
