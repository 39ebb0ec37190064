"""Shows which requests Flask served, and has sends fail on demand. For tests of the lane; loaded through BUS_EXTENSIONS.

`X-Served-By: flask` is on what Flask answers. A message of type `unanswerable` is stored, and its answer fails;
`PUT /seams/overload` has the bus refuse all sends, `DELETE` ends that. The lane's deadlines are short.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flask import Flask, Response, request, request_finished

from bus.bus import Bus
from bus.errors import Unavailable
from bus.transports import patience
from bus.transports.edge import json_answer
from bus.transports.sends import Single

DEADLINE_SECONDS = 0.5


class Seams:
    """Whether the bus plays overloaded."""

    def __init__(self) -> None:
        self.overloaded = False

    def check_load(self) -> None:
        if self.overloaded:
            raise Unavailable("The bus is behind with its commits; nothing was stored.", retry_after_seconds=1)

    def overload(self) -> Response:
        self.overloaded = request.method == "PUT"
        return json_answer({})

    def mark(self, sender: Flask, response: Response, **_: object) -> None:
        response.headers["X-Served-By"] = "flask"


def answer(self: Single, outcomes: Sequence[Any], request_id: str) -> bytes:
    """As of `Single`, which fails for one type of message."""
    if self.drafts[0].message.type == "unanswerable":
        raise RuntimeError("a secret that no caller may see")
    return whole_answer(self, outcomes, request_id)  # type: ignore[return-value]


whole_answer = Single.answer


def register(app: Flask, bus: Bus) -> None:
    """Open every seam."""
    seams = Seams()
    app.extensions["seams"] = seams
    request_finished.connect(seams.mark, app)
    app.add_url_rule("/seams/overload", view_func=seams.overload, methods=["PUT", "DELETE"])
    bus.check_load = seams.check_load  # type: ignore[method-assign]
    Single.answer = answer  # type: ignore[method-assign]
    patience.MOMENT_SECONDS = DEADLINE_SECONDS
    patience.SLOWEST_BYTES_A_SECOND = 1024**3
