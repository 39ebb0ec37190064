"""An extension for tests: `GET /traced` says which tracing points of the answering worker are switched on.

`missing` is what the table of points names and is not there; `shadows` are instance attributes that hide methods.
"""

from __future__ import annotations

from flask import Blueprint, Flask, Response

from bus.bus import Bus
from bus.profile import Ways
from bus.tracing import Trace
from bus.transports.edge import json_answer
from bus.transports.profile import points

WRAPPER = f"{Trace.timed.__qualname__}.<locals>"


def is_method(owner: object, name: str) -> bool:
    """True when the class of an object has a method of this name."""
    return callable(getattr(type(owner), name, None))


def register(app: Flask, bus: Bus) -> None:
    """Serve `/traced`."""

    def traced() -> Response:
        found, missing = {}, []
        try:
            for point in points(app, Ways(lambda: 0)):
                held = point.owner
                for name in point.attribute.split("."):
                    held = getattr(held, name)
                found[f"{point.owner}.{point.attribute}"] = WRAPPER in getattr(held, "__qualname__", "")
        except AttributeError as error:
            missing.append(str(error))
        shadows = [name for owner in (app, bus, bus.hub, bus.courier) for name in vars(owner) if is_method(owner, name)]
        return json_answer({"worker": bus.backplane.slot, "points": found, "missing": missing, "shadows": shadows})

    blueprint = Blueprint("traced", __name__)
    blueprint.add_url_rule("/traced", view_func=traced)
    app.register_blueprint(blueprint)
