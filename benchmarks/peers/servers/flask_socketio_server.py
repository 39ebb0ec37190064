"""A broadcast server on Flask-SocketIO with gevent: a client joins the room of its id, "send" goes to a room."""

from gevent import monkey

monkey.patch_all()

import sys  # noqa: E402  # gevent patches before anything else is imported
from datetime import UTC, datetime  # noqa: E402
from itertools import count  # noqa: E402
from typing import Any  # noqa: E402

from flask import Flask, request  # noqa: E402
from flask_socketio import SocketIO, join_room  # noqa: E402

app = Flask(__name__)
sockets = SocketIO(app, async_mode="gevent", cors_allowed_origins="*")
numbers = count(1)


@sockets.on("connect")
def connect() -> None:
    join_room(request.args["client"])


@sockets.on("send")
def send(sent: dict[str, Any]) -> None:
    timestamp = datetime.now(UTC).isoformat()
    message = {"id": f"msg-{next(numbers)}", "to": sent["to"], "payload": sent["payload"], "timestamp": timestamp}
    sockets.emit("message", message, to=sent["to"])


if __name__ == "__main__":
    sockets.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_output=False)
