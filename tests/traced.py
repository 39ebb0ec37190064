"""An extension for tests: `GET /traced` says which of the tracing points of the answering worker are switched on."""

from __future__ import annotations

from flask import Blueprint, Flask, Response

from bus.bus import Bus
from bus.profile import Ways
from bus.tracing import Trace
from bus.transports.edge import json_answer
from bus.transports.profile import points

WRAPPER = f"{Trace.timed.__qualname__}.<locals>"


def register(app: Flask, bus: Bus) -> None:
    """Serve `/traced`."""

    def traced() -> Response:
        found = {}
        for point in points(app, Ways(lambda: 0)):
            held = point.owner
            for name in point.attribute.split("."):
                held = getattr(held, name)
            found[f"{point.owner}.{point.attribute}"] = WRAPPER in getattr(held, "__qualname__", "")
        left = [name for name in ("flush", "deliver", "_chunks") if name in vars(bus.hub)]
        return json_answer({"worker": bus.backplane.slot, "points": found, "left": left})

    blueprint = Blueprint("traced", __name__)
    blueprint.add_url_rule("/traced", view_func=traced)
    app.register_blueprint(blueprint)
