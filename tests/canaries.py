"""An extension that fails in every way there is, with all that it was given in the exception: `GET /tests/fail?how=…`."""

from __future__ import annotations

import logging
import threading

import gevent
from flask import Blueprint, Flask, Response, request

from bus.bus import Bus
from bus.message import Message
from bus.threads import start_native
from bus.transports.edge import json_answer

WAYS_TO_FAIL = ("log", "view", "greenlet", "thread", "native", "callback")
FAILING = {"BUS_EXTENSIONS": "tests.canaries"}


def register(app: Flask, bus: Bus) -> None:
    """Fail on demand, careless of secrets."""

    def accept(message: Message) -> None:
        if message.type == "crash":
            raise RuntimeError(f"could not take {message.sender}'s message with {request.headers!r}")

    def fail() -> Response:
        text = f"{request.method} {request.url} {dict(request.headers)} {request.headers} {bus.settings}"
        how = request.args["how"]
        if how == "log":
            logging.getLogger("tests.canaries").info("Asked by %s", text, extra={"headers": dict(request.headers)})
        elif how == "greenlet":
            gevent.spawn(_raise, text)
        elif how == "callback":
            gevent.get_hub().loop.run_callback(_raise, text)
        elif how == "thread":
            threading.Thread(target=_raise, args=(text,)).start()
        elif how == "native":
            start_native(lambda: _raise(text))
        else:
            _raise(text)
        return json_answer({})

    bus.before_publish(accept)
    blueprint = Blueprint("canaries", __name__)
    blueprint.add_url_rule("/tests/fail", view_func=fail)
    app.register_blueprint(blueprint)
    app.extensions["canaries"] = blueprint


def _raise(text: str) -> None:
    raise RuntimeError(f"it was {text}")
