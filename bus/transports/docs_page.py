"""`/docs`: the OpenAPI document as a page to read, and to try. It is whole without its script, which filters and sends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from itertools import groupby
from typing import Any

GROUPS = {
    "send": "Sending",
    "messages": "Inboxes and messages",
    "request": "Requests",
    "requests": "Requests",
    "queues": "Queues",
    "clients": "Clients",
    "log": "Log and replay",
    "replay": "Log and replay",
    "replays": "Log and replay",
    "threads": "Log and replay",
    "search": "Search",
    "dead-letters": "Dead letters",
    "stream": "Event streams",
    "webhooks": "Webhooks",
    "integrations": "Inbound webhooks",
    "ingress": "Inbound webhooks",
    "ttl": "Retention",
    "archive": "Retention",
    "keys": "Keys, tickets, sessions",
    "tickets": "Keys, tickets, sessions",
    "session": "Keys, tickets, sessions",
    "tokens": "Keys, tickets, sessions",
    "auth": "Keys, tickets, sessions",
    "me": "Keys, tickets, sessions",
    "audit": "Audit",
    "health": "Health and metrics",
    "ready": "Health and metrics",
    "metrics": "Health and metrics",
    "status": "Health and metrics",
    "series": "Health and metrics",
}
"""Where a path stands, by its first name behind /api."""

REST = "Operating"
RIGHTS = {"open": "open to everybody", "signed": "a signature", "any": "any credential", "admin": "an administrator"}
STREAM = "text/event-stream"
_HELLO = {"from": "code", "to": "browser", "payload": {"text": "hi"}}
EXAMPLES: dict[str, Any] = {
    "/api/send": _HELLO,
    "/api/send/batch": {"messages": [_HELLO]},
    "/api/request": {**_HELLO, "wait": 10},
    "/stream/broadcast": {"event": "notification", "data": {"text": "hi"}},
}
"""Bodies that say more than the least."""

Schema = dict[str, Any]


def page(document: dict[str, Any]) -> str:
    """The page of an OpenAPI document."""
    operations = [
        (_group(path), method.upper(), path, described)
        for path, methods in document["paths"].items()
        if not path.startswith("/api/v1/")
        for method, described in methods.items()
    ]
    order = [*dict.fromkeys(GROUPS.values()), REST]
    operations.sort(key=lambda operation: order.index(operation[0]))
    groups = [(name, list(found)) for name, found in groupby(operations, key=lambda operation: operation[0])]
    schemas = document["components"]["schemas"]
    links = "".join(f'<li><a href="#{_anchor(name)}">{escape(name)}</a></li>' for name, _ in groups)
    sections = "".join(_section(name, found, schemas) for name, found in groups)
    version = escape(document["info"]["version"])
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>The API of multi-agent-bridge</title>
<link rel="icon" href="/static/icon.svg" type="image/svg+xml">
<link rel="stylesheet" href="/static/site.css">
<script type="module" src="/static/docs.js"></script>
</head>
<body class="docs">
<a class="skip" href="#operations">Skip to the operations</a>
<nav aria-label="Contents"><ul>{links}<li><a href="#schemas">Schemas</a></li></ul></nav>
<main id="operations">
<header>
<h1>The API <small>multi-agent-bridge {version}</small></h1>
<p>Every path under <code>/api/</code> exists under <code>/api/v1/</code> too. Bodies and answers are JSON; a refusal is
<a href="#schema-ErrorBody">a sentence and a stable code</a>. Programs read <a href="/openapi.json">/openapi.json</a>.</p>
<div class="tools" hidden>
<label>Filter <input id="filter" type="search" autocomplete="off"></label>
<label>API key, with auth on (stays in this page) <input id="key" type="password" autocomplete="off"></label>
</div>
</header>
{sections}
<section><h2 id="schemas">Schemas</h2>{"".join(_schema(name, schema) for name, schema in schemas.items())}</section>
</main>
</body>
</html>
"""


def _group(path: str) -> str:
    first = path.removeprefix("/api").lstrip("/").partition("/")[0]
    return GROUPS.get(first, REST)


def _anchor(name: str) -> str:
    return "group-" + "-".join(name.lower().replace(",", "").split())


def _section(name: str, operations: list[tuple[str, str, str, Schema]], schemas: dict[str, Schema]) -> str:
    shown = "".join(_operation(method, path, described, schemas) for _, method, path, described in operations)
    return f'<section class="group"><h2 id="{_anchor(name)}">{escape(name)}</h2>{shown}</section>'


def _operation(method: str, path: str, described: Schema, schemas: dict[str, Schema]) -> str:
    is_stream = any(STREAM in answer["content"] for answer in described["responses"].values())
    body = described.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    example = json.dumps(EXAMPLES.get(path) or _example(body, schemas), indent=2) if body is not None else None
    right = described["x-right"]
    parts = [f'<p class="soft">Asks for {escape(RIGHTS.get(right, f"the right {right}"))}.</p>']
    if described["parameters"]:
        parts.append(_table("Parameters", [_parameter(each) for each in described["parameters"]]))
    if body is not None:
        parts.append(f"<h3>Body: {_type(body)}</h3>")
        parts.append(_fields(_resolved(body, schemas)))
    parts.append(_table("Answers", list(_answers(described["responses"]))))
    parts.append(f"<h3>With curl</h3><pre>{escape(_curl(method, path, example, is_stream=is_stream))}</pre>")
    if not is_stream:
        parts.append('<div class="here"></div>')
    fields = [
        {"name": each["name"], "place": each["in"], "required": each["required"]} for each in described["parameters"]
    ]
    summary = escape(described["summary"])
    data = f' data-method="{method}" data-path="{escape(path)}" data-fields="{escape(json.dumps(fields))}"'
    if example is not None:
        data += f' data-body="{escape(example)}"'
    return (
        f'<details class="operation" id="{described["operationId"]}"{data}><summary>'
        f'<span class="method {method}">{method}</span><code>{escape(path)}</code><span>{summary}</span>'
        f"</summary><div>{''.join(parts)}</div></details>"
    )


def _table(title: str, rows: list[tuple[str, str, str]]) -> str:
    cells = "".join(f"<tr><td>{one}</td><td>{two}</td><td>{three}</td></tr>" for one, two, three in rows)
    return f"<h3>{title}</h3><table>{cells}</table>"


def _parameter(parameter: Schema) -> tuple[str, str, str]:
    must = ' <span class="must">needed</span>' if parameter["required"] else ""
    place = "" if parameter["in"] == "query" else f" <small>in the {escape(parameter['in'])}</small>"
    name = f"<code>{escape(parameter['name'])}</code>{must}{place}"
    return name, _type(parameter["schema"]), escape(parameter.get("description", ""))


def _answers(responses: dict[str, Schema]) -> Iterator[tuple[str, str, str]]:
    """Statuses that mean the same, and bring the same, stand in one row."""
    for content, alike in groupby(responses.items(), key=lambda item: (item[1]["description"], item[1]["content"])):
        description, media = content
        statuses = " ".join(f"<code>{status}</code>" for status, _ in alike)
        types = dict.fromkeys(_type(each["schema"]) for each in media.values())
        yield statuses, " or ".join(types), f"{escape(description)} <small>{escape(', '.join(media))}</small>"


def _schema(name: str, schema: Schema) -> str:
    about = escape(schema.get("description", ""))
    return (
        f'<details class="operation" id="schema-{escape(name)}"><summary><span class="method">type</span>'
        f"<code>{escape(name)}</code><span>{about.partition('. ')[0]}</span></summary>"
        f"<div><p>{about}</p>{_fields(schema)}</div></details>"
    )


def _fields(schema: Schema) -> str:
    properties = schema.get("properties")
    if properties is None:
        return f"<p>{_type(schema)}</p>"
    needed = set(schema.get("required", ()))
    rows = [
        (
            f"<code>{escape(name)}</code>" + (' <span class="must">needed</span>' if name in needed else ""),
            _type(field),
            escape(field.get("description", "")) + _default(field),
        )
        for name, field in properties.items()
    ]
    return _table("Fields", rows)


def _default(field: Schema) -> str:
    if field.get("default") in (None, {}, [], ""):
        return ""
    return f" <small>{escape(json.dumps(field['default']))} if not given</small>"


def _type(schema: Schema) -> str:
    """A type in a few words, with links to what has a name."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#schema-{name}">{name}</a>'
    if "enum" in schema:
        return " · ".join(f"<code>{escape(str(value))}</code>" for value in schema["enum"])
    for joint in ("anyOf", "oneOf"):
        if joint in schema:
            return " or ".join(dict.fromkeys(_type(each) for each in schema[joint]))
    if "prefixItems" in schema:
        return f"[{', '.join(_type(each) for each in schema['prefixItems'])}]"
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items') or {})}"
    if schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_type(schema['additionalProperties'])}"
    return " ".join([escape(str(schema.get("type", "anything"))), *_bounds(schema)])


def _bounds(schema: Schema) -> Iterator[str]:
    signs = {"minimum": "≥", "exclusiveMinimum": "&gt;", "maximum": "≤", "exclusiveMaximum": "&lt;"}
    for name, sign in signs.items():
        if name in schema:
            yield f"<small>{sign} {schema[name]}</small>"


def _resolved(schema: Schema, schemas: dict[str, Schema]) -> Schema:
    return schemas[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema


def _example(schema: Schema, schemas: dict[str, Schema], depth: int = 0) -> Any:
    """The least that a body may be."""
    schema = _resolved(schema, schemas)
    for joint in ("anyOf", "oneOf"):
        if joint in schema:
            return _example(schema[joint][0], schemas, depth)
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type")
    if kind == "object":
        needed = schema.get("required", ()) if depth < 3 else ()
        return {name: _example(schema["properties"][name], schemas, depth + 1) for name in needed}
    if kind == "array":
        return [_example(schema["items"], schemas, depth + 1)] if schema.get("items") and depth < 3 else []
    return {"string": "text", "integer": 1, "number": 1, "boolean": True}.get(str(kind))


def _curl(method: str, path: str, example: str | None, *, is_stream: bool) -> str:
    words = ["curl", "-N" if is_stream else "-s"]
    words += [] if method == "GET" else ["-X", method]
    words.append(f"http://127.0.0.1:5001{path}")
    if example is not None:
        words += ["-H 'Content-Type: application/json'", f"-d '{json.dumps(json.loads(example))}'"]
    return " ".join(words)
