"""Writes docs/reference/rest.md and docs/reference/events.md from the code that serves and raises what they list.

    python docs/make_reference.py

Routes come from the OpenAPI document, events from bus/events.py, reasons from where they are said. A test compares the
pages with what this would write.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flask import Flask

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bus import events  # noqa: E402  # found by the line above
from bus.delivery.dead_letters import REASONS  # noqa: E402
from bus.settings import Settings  # noqa: E402
from bus.transports.openapi import describe  # noqa: E402
from server_ws import create_app  # noqa: E402
from webhooks import WebhookEvent  # noqa: E402

REST_HEAD = """\
# REST

<!-- Made from the code by `make docs`; edit there. -->

Every route of the bus but the WebSocket (`/ws/<client_id>`, see [protocol.md](../protocol.md)), as `/openapi.json` describes
it. Each path under `/api/` exists under `/api/v1/` too. *Needs* is the [scope](../identity.md#api-keys) that a credential
must have when auth is on; *open* routes ask for none, and *signed* ones for a sender's signature. A bold *where*: it has to
be given; a default stands in brackets.

What refusals look like, and every `code`, stands in [protocol.md](../protocol.md#errors). Any route may answer 503 while the
store can't serve, and with auth on 401, 403 and 429; one with a body 408, when that does not come. What the fields mean: of
a send and a message [protocol.md](../protocol.md#messages), of an endpoint [webhooks.md](../webhooks.md#endpoints), of an
integration [inbound_webhooks.md](../inbound_webhooks.md#integrations), of a key [identity.md](../identity.md#api-keys).

"""

EVENTS_HEAD = """\
# Events and reasons

<!-- Made from the code by `make docs`; edit there. -->

What the bus tells of, and the words that it gives as reasons. Frames and their fields are in
[protocol.md](../protocol.md), metrics in [metrics.md](../metrics.md).

## Events for webhooks

An [endpoint](../webhooks.md#events) names those that it wants. Names of your own work, too.

"""

CLASSES_HEAD = """
## Events for extensions

`Bus.on(Event, handler)` hears these, in the process where they happen; `Event` itself stands for all.

| class | told | fields |
|---|---|---|
"""

GROUPS = {
    "send": "Messages",
    "messages": "Messages",
    "log": "Messages",
    "threads": "Messages",
    "clear": "Messages",
    "request": "Requests",
    "requests": "Requests",
    "replay": "Replays",
    "replays": "Replays",
    "clients": "Clients and status",
    "status": "Clients and status",
    "queues": "Queues",
    "dead-letters": "Dead letters",
    "keys": "Credentials",
    "auth": "Credentials",
    "tickets": "Credentials",
    "session": "Credentials",
    "tokens": "Credentials",
    "stream": "Event streams",
    "webhooks": "Webhooks",
    "integrations": "Inbound webhooks",
    "ttl": "Retention and archive",
    "archive": "Retention and archive",
    "audit": "Audit",
    "llms": "Descriptions",
    "health": "Health and metrics",
    "ready": "Health and metrics",
    "metrics": "Health and metrics",
    "profile": "Health and metrics",
}
"""The heading of a path's first word. A word that is missing here is a heading of its own."""

DEAD = {
    "rejected": "a recipient said `reject`",
    "expired": "its ttl, or its type's policy, ended before it was acked",
    "max_attempts": "five counted attempts failed",
    "overflow": "its inbox or queue was full and gives up the oldest, or a cap took it out of the log",
    "no_recipient": "reserved; this version never says it",
    "invalid": "reserved; this version never says it",
}
WEBHOOKS = {
    "message.sent": "a message entered the log",
    "message.received": "a named recipient acked it, or its kept cursor passed it",
    "message.failed": "a delivery became a dead letter",
    "message.expired": "a message left the log, by its ttl or once it was delivered",
    "client.connected": "a WebSocket or a stream of a client was opened",
    "client.disconnected": "it ended; `close_code` says how",
    "error.occurred": "the server logged an error",
    "rate_limit.hit": "a caller was refused for asking too often",
    "system.started": "the server serves",
    "system.stopped": "the server begins to stop",
    "endpoint.disabled": "an endpoint gets nothing any more, and why",
}


FILES = {
    "/ws/<client_id>": "the WebSocket: [protocol.md](../protocol.md#a-connection)",
    "/": "leads a browser to the console and to these pages; JSON for all others",
    "/openapi.json": "all routes, as OpenAPI 3.1",
    "/docs": "the same as a page to read",
    "/console": "the [console](../console.md)",
    "/console/": "the same",
    "/console/parts.json": "which parts of the console the server has",
    "/console/<path:name>": "files of the console",
    "/client.js": "the client for JavaScript",
    "/static/<name>": "files of the pages",
    "/favicon.ico": "the icon",
}
"""What is served and is no operation of the API."""


def rest_page() -> str:
    """The text of docs/reference/rest.md."""
    app = create_app(Settings())
    document = describe(app.config["OPERATIONS"])
    groups: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        if not path.startswith("/api/v1/"):
            for method, about in methods.items():
                groups.setdefault(_group(path), []).append("\n".join(_operation(method, path, about, document)))
    links = " ·\n".join(f"[{title}](#{title.lower().replace(' ', '-')})" for title in groups)
    parts = [f"## {title}\n\n" + "\n".join(them) for title, them in groups.items()]
    parts.append("## Pages and files\n\n| path | |\n|---|---|\n" + "".join(_files(app)))
    return REST_HEAD + links + "\n\n" + "\n".join(parts)


def _files(app: Flask) -> Iterator[str]:
    described = {
        path for each in app.config["OPERATIONS"] for path in (each.path, each.path.replace("/api/", "/api/v1/"))
    }
    for rule in app.url_map.iter_rules():
        if rule.rule in described:
            continue
        if rule.rule not in FILES:
            raise SystemExit(
                f"{rule.rule} is no Operation, and has no sentence in docs/make_reference.py; give it one."
            )
        yield f"| `{rule.rule}` | {FILES[rule.rule]} |\n"


def _group(path: str) -> str:
    word = path.removeprefix("/api").split("/")[1].split(".")[0]
    return GROUPS.get(word, word.capitalize() or "Pages")


def _operation(method: str, path: str, about: dict[str, Any], document: dict[str, Any]) -> Iterator[str]:
    yield f"### `{method.upper()} {path}`\n"
    answers = {status: said for status, said in about["responses"].items() if said["description"] == "Done."}
    refusals = [status for status in about["responses"] if status not in (*answers, "401", "403", "408", "429", "503")]
    yield f"{about['summary']} Needs: *{about['x-right']}*.\n"
    rows = [(f"`{p['name']}`", _where(p), _form(p["schema"]), p.get("description", "")) for p in about["parameters"]]
    body = about.get("requestBody")
    if body is not None:
        rows += _fields(body["content"]["application/json"]["schema"], document)
    if rows:
        yield "| | where | form | |\n|---|---|---|---|"
        for row in rows:
            yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
        yield ""
    content = next(iter(answers.values()))["content"]
    said = ", ".join(f"`{name}`" for name in _names(next(iter(content.values()))["schema"], document))
    kinds = " or ".join(f"`{kind}`" for kind in content if kind != "application/json")
    told = f"Answers {', '.join(answers)}{f' as {kinds}' if kinds else ''}{f': {said}' if said else ''}."
    yield told + (f" Refuses with {', '.join(refusals)}." if refusals else "") + "\n"


def _where(parameter: dict[str, Any]) -> str:
    return f"**{parameter['in']}**" if parameter.get("required") else str(parameter["in"])


def _fields(schema: dict[str, Any], document: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """The rows of a body's fields; bold: it has to be there."""
    required = schema.get("required", ())
    found = _resolved(schema, document)
    needed = {*required, *found.get("required", ())}
    return [
        (f"`{name}`", "**body**" if name in needed else "body", _form(form), _default(form))
        for name, form in found.get("properties", {}).items()
    ]


def _names(schema: dict[str, Any], document: dict[str, Any]) -> list[str]:
    return list(_resolved(schema, document).get("properties", {}))


def _resolved(schema: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in schema:
        return schema
    found: dict[str, Any] = document["components"]["schemas"][schema["$ref"].removeprefix("#/components/schemas/")]
    return found


def _form(schema: dict[str, Any]) -> str:
    """A schema in a few words."""
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_form(each) for each in schema["anyOf"] if each.get("type") != "null"))
    if "$ref" in schema:
        return "object"
    kind = {"integer": "whole number", "string": "text", "array": "list", "boolean": "true or false"}.get(
        schema.get("type", ""), schema.get("type", "any JSON")
    )
    least = schema.get("minimum", schema.get("exclusiveMinimum"))
    most = schema.get("maximum")
    bounds = (
        ""
        if least is None and most is None
        else f", {'' if least is None else f'{least:g}'}–{'' if most is None else f'{most:g}'}"
    )
    return str(kind) + bounds


def _default(schema: dict[str, Any]) -> str:
    default = schema.get("default")
    told = str(schema.get("description", ""))
    if default in (None, "", [], {}):
        return told
    shown = str(default).lower() if isinstance(default, bool) else default
    return f"{told} [{shown}]".strip()


def events_page() -> str:
    """The text of docs/reference/events.md."""
    told = {*WEBHOOKS, *WebhookEvent}
    if unknown := told - set(WEBHOOKS):
        raise SystemExit(f"{min(unknown)} has no sentence in docs/make_reference.py; give it one.")
    if set(REASONS) != set(DEAD):
        raise SystemExit(f"The reasons of dead letters are {REASONS}; say each in docs/make_reference.py.")
    parts = [EVENTS_HEAD, _table(("name", "when"), WEBHOOKS), CLASSES_HEAD]
    for kind in _classes():
        sentence = " ".join((kind.__doc__ or "").split()).replace("|", "\\|")
        fields = ", ".join(f"`{name}`" for name in kind.__struct_fields__) or "–"
        parts.append(f"| `{kind.__name__}` | {sentence} | {fields} |\n")
    parts += ["\n## Why a message is a dead letter\n\n", _table(("reason", "what happened"), DEAD)]
    parts.append(
        "\nWhy a cursor has a gap, what becomes of a send, and why connections close:"
        " [gaps](../protocol.md#cursors-epochs-gaps), [fates](../protocol.md#outbound-frames),"
        " [close codes](../protocol.md#close-codes).\n"
    )
    return "".join(parts)


def _classes() -> list[type[events.Event]]:
    """The events, in the order of bus/events.py."""
    kinds = [kind for kind in vars(events).values() if isinstance(kind, type) and issubclass(kind, events.Event)]
    return [kind for kind in kinds if kind is not events.Event]


def _table(head: tuple[str, str], rows: dict[str, str]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|", *(f"| `{name}` | {text} |" for name, text in rows.items())]
    return "\n".join(lines) + "\n"


PAGES = {"rest.md": rest_page, "events.md": events_page}

if __name__ == "__main__":
    for name, make in PAGES.items():
        (ROOT / "docs" / "reference" / name).write_text(make())
