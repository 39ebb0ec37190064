"""The documented WebhookManager of a running bus, by HTTP: an extension for tests, loaded through BUS_EXTENSIONS."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Flask, Response, request

from bus.bus import Bus
from bus.events import RateLimitHit
from bus.transports.edge import json_answer
from webhooks import WebhookEndpoint


def register(app: Flask, bus: Bus) -> None:
    """`POST /manager/<verb>` calls a verb with the body's members; `limit` tells that a limit was hit."""
    manager = app.extensions["webhooks"]

    def call(verb: str) -> Response:
        given: dict[str, Any] = request.get_json()
        if verb == "limit":
            bus.emit(RateLimitHit("address", "192.0.2.1", 60.0))
            return json_answer({"value": None})
        value = manager.register(WebhookEndpoint(**given)) if verb == "register" else getattr(manager, verb)(**given)
        return json_answer({"value": value})

    blueprint = Blueprint("manager", __name__)
    blueprint.add_url_rule("/manager/<verb>", view_func=call, methods=["POST"])
    app.register_blueprint(blueprint)
    app.extensions["webhook_manager"] = call
