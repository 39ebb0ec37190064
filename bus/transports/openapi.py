"""`/openapi.json` and `/docs`: the whole HTTP surface, described from the code that serves it.

A view is documented where it is routed: `Operation` holds its path, its summary, its parameters and the structs of
its body and answer; the schemas are msgspec's own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import msgspec
from flask import Blueprint, Flask, Response

from bus import __version__
from bus.delivery.dead_letters import REASONS
from bus.identity.caller import Right
from bus.message import MAX_NAME_LENGTH
from bus.profile import MAX_SECONDS
from bus.protocol import MAX_WAIT_SECONDS
from bus.series import DAY_SECONDS
from bus.transports.docs_page import page
from bus.transports.edge import json_answer
from bus.transports.parameters import MAX_LIMIT
from bus.transports.site import TYPES, kept

if TYPE_CHECKING:
    from bus.bus import Bus


class Parameter(msgspec.Struct, frozen=True):
    """One parameter, in the query or in a header."""

    name: str
    description: str
    type: str = "string"
    required: bool = False
    place: str = "query"


class Operation(msgspec.Struct, frozen=True):
    """One method of one path. `errors` are the statuses it may refuse with, beside 401 and 403; `statuses` those of its
    answer. `name` is the view's, unless given; `media` is what the answer is made of, `more` other forms.

    `right` is what the caller needs; the edge asks for it before the view runs."""

    method: str
    path: str
    view: Callable[..., Any]
    summary: str
    answer: Any
    body: Any = None
    parameters: Sequence[Parameter] = ()
    errors: Sequence[int] = ()
    statuses: Sequence[int] = (200,)
    name: str = ""
    media: str = "application/json"
    more: dict[str, Any] = {}
    right: Right = Right.ADMIN


class ErrorBody(msgspec.Struct):
    """Every refusal: a sentence that says the cure, a stable code, the field to blame."""

    error: str
    code: str
    request_id: str
    field: str | None = None


_NAME = {"pattern": f"^[A-Za-z0-9._:@-]{{1,{MAX_NAME_LENGTH}}}$"}
FORMS: dict[str, dict[str, Any]] = {
    "client_id": _NAME,
    "queue": _NAME,
    "limit": {"minimum": 0, "maximum": MAX_LIMIT},
    "wait": {"minimum": 0, "maximum": MAX_WAIT_SECONDS},
    "seconds": {"exclusiveMinimum": 0, "maximum": MAX_SECONDS},
    "last_seconds": {"minimum": 1, "maximum": DAY_SECONDS},
    "step_seconds": {"minimum": 1, "maximum": DAY_SECONDS},
    "on_gap": {"enum": ["oldest", "latest"]},
    "format": {"enum": ["text", "json"]},
    "order": {"enum": ["newest", "rank"]},
    "reason": {"enum": list(REASONS)},
}
"""What a parameter of this name may be, beyond its type."""


def describe(operations: Sequence[Operation]) -> dict[str, Any]:
    """The OpenAPI 3.1 document of `operations`; each /api path also stands under /api/v1."""
    types = [t for o in operations for t in (o.answer, o.body, *o.more.values()) if t is not None]
    schemas, components = msgspec.json.schema_components(
        [*types, ErrorBody], ref_template="#/components/schemas/{name}"
    )
    by_type = dict(zip([id(t) for t in [*types, ErrorBody]], schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        path = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", operation.path)
        for prefixed in _twins(path):
            paths.setdefault(prefixed, {})[operation.method.lower()] = _operation(operation, prefixed, by_type)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "multi-agent-bridge",
            "version": __version__,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
        },
    }


def _is_keyed(operation: Operation) -> bool:
    """True when a credential is asked for, with auth on."""
    return operation.right not in (Right.OPEN, Right.SIGNED)


def _twins(path: str) -> list[str]:
    return [path, path.replace("/api/", "/api/v1/", 1)] if path.startswith("/api/") else [path]


def _operation(operation: Operation, path: str, by_type: dict[int, Any]) -> dict[str, Any]:
    error = {"application/json": {"schema": by_type[id(ErrorBody)]}}
    media = {operation.media: operation.answer, **operation.more}
    answer = {"description": "Done.", "content": {name: {"schema": by_type[id(t)]} for name, t in media.items()}}
    responses: dict[str, Any] = {str(status): answer for status in operation.statuses}
    refused = {*operation.errors, 503, *((401, 403, 429) if _is_keyed(operation) else ())}
    refused |= {408} if operation.body is not None else set()
    for status in sorted(refused - set(operation.statuses)):
        responses[str(status)] = {"description": "Refused.", "content": error}
    described: dict[str, Any] = {
        "operationId": f"{operation.method.lower()}{re.sub(r'[^a-z0-9]+', '_', path)}",
        "summary": operation.summary,
        "parameters": [_parameter(parameter) for parameter in operation.parameters]
        + [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string", **FORMS.get(name, {})}}
            for name in re.findall(r"{(\w+)}", path)
        ],
        "responses": responses,
    }
    if operation.body is not None:
        content = {"application/json": {"schema": by_type[id(operation.body)]}}
        described["requestBody"] = {"required": True, "content": content}
    described["x-right"] = operation.right.value
    if _is_keyed(operation):
        described["security"] = [{}, {"key": []}, {"bearer": []}]
    return described


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": parameter.place,
        "description": parameter.description,
        "required": parameter.required,
        "schema": {"type": parameter.type, **FORMS.get(parameter.name, {})},
    }


def serve(app: Flask, blueprint: Blueprint, operations: Sequence[Operation]) -> None:
    """Route operations, each /api path under /api/v1 too, and have them described."""
    for operation in operations:
        methods: list[Any] = [operation.method]
        endpoint = operation.name or operation.view.__name__
        for suffix, path in zip(("", "_v1"), _twins(operation.path), strict=False):
            blueprint.add_url_rule(path, endpoint + suffix, operation.view, methods=methods)
    app.config.setdefault("OPERATIONS", []).extend(operations)
    app.register_blueprint(blueprint)


def register(app: Flask, bus: Bus) -> None:
    """Serve the description of everything that put its operations into `app.config["OPERATIONS"]`."""
    blueprint = Blueprint("openapi", __name__)
    operations: list[Operation] = app.config.setdefault("OPERATIONS", [])
    blueprint.add_url_rule("/openapi.json", view_func=lambda: json_answer(describe(operations)), endpoint="document")

    @cache
    def rendered() -> bytes:
        return page(describe(operations)).encode()

    def docs() -> Response:
        return kept(rendered(), TYPES[".html"])

    blueprint.add_url_rule("/docs", view_func=docs)
    app.register_blueprint(blueprint)
    app.extensions["openapi"] = operations
