"""`/docs` shows whatever a schema may be: tuples, maps, choices, names, and what is not said."""

from __future__ import annotations

import re
from typing import Any

import pytest

from bus.transports.docs_page import page

SCHEMAS: list[tuple[dict[str, Any], str]] = [
    ({"type": "integer", "minimum": 1, "maximum": 9}, "integer ≥ 1 ≤ 9"),
    ({"type": "array", "items": {"type": "string"}}, "list of string"),
    ({"type": "array", "items": False, "prefixItems": [{"type": "integer"}, {"type": "string"}]}, "[integer, string]"),
    ({"type": "array"}, "list of anything"),
    ({"type": "object", "additionalProperties": {"type": "number"}}, "object of number"),
    ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "string or null"),
    ({"enum": ["a", "b", 3]}, "a · b · 3"),
    ({"$ref": "#/components/schemas/Thing"}, "Thing"),
    ({}, "anything"),
]


def document(field: dict[str, Any]) -> dict[str, Any]:
    """One operation, whose body has one field, with all that a description may hold."""
    body = {"type": "object", "properties": {"field": field}, "required": ["field"], "description": "A <b>body</b>."}
    answer = {
        "description": "Done.",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Thing"}}},
    }
    operation = {
        "operationId": "post_api_things",
        "summary": "Make a <thing>.",
        "parameters": [],
        "responses": {"200": answer},
        "requestBody": {"content": {"application/json": {"schema": body}}},
        "x-right": "send",
    }
    return {
        "info": {"version": "1"},
        "paths": {"/api/things": {"post": operation}},
        "components": {"schemas": {"Thing": body}},
    }


@pytest.mark.parametrize(("schema", "shown"), SCHEMAS, ids=[shown for _, shown in SCHEMAS])
def test_a_type_is_told_in_a_few_words(schema: dict[str, Any], shown: str) -> None:
    row = re.search(r"<td><code>field</code>.*?</td><td>(.*?)</td>", page(document(schema)))
    assert row is not None
    assert re.sub(r"<[^>]+>", "", row[1]).replace("&gt;", ">") == shown


def test_what_is_described_is_no_markup() -> None:
    shown = page(document({"type": "string", "description": "<script>alert(1)</script>"}))
    assert "<thing>" not in shown
    assert "<b>body" not in shown
    assert shown.count("<script") == 1  # its own
