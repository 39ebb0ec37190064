"""An extension that tells the audit trail what a test asks for: `GET /tests/audit?event=…`, the fields of `Audited`."""

from __future__ import annotations

import json
from typing import Any

from flask import Blueprint, Flask, Response, request

from bus.bus import Bus
from bus.events import Audited
from bus.transports.edge import json_answer

AUDITING = {"BUS_EXTENSIONS": "tests.auditing"}


def register(app: Flask, bus: Bus) -> None:
    """Emit on demand; `repeat` says how often."""

    def emit() -> Response:
        fields: dict[str, Any] = json.loads(request.args["event"])
        for _ in range(fields.pop("repeat", 1)):
            bus.emit(Audited(**fields))
        return json_answer({})

    blueprint = Blueprint("auditing", __name__)
    blueprint.add_url_rule("/tests/audit", view_func=emit)
    app.register_blueprint(blueprint)
    app.extensions["auditing"] = blueprint
