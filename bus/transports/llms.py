"""`/llms.txt`: the API on one page, for the context of a model. The file stands at the root of the project."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from flask import Blueprint, Flask, Response

from bus.errors import NotFound
from bus.identity.caller import Right
from bus.settings import ROOT
from bus.transports.openapi import Operation, serve

if TYPE_CHECKING:
    from bus.bus import Bus

FILE = ROOT / "llms.txt"


@cache
def text() -> str:
    """What the file says, read once. Raises NotFound where it was left out."""
    if not FILE.is_file():
        raise NotFound("llms.txt was not installed beside the server; /openapi.json says all of it.")
    return FILE.read_text(encoding="utf-8")


def llms() -> Response:
    return Response(text(), content_type="text/plain; charset=utf-8")


def register(app: Flask, bus: Bus) -> None:
    """Serve the page to everybody."""
    operation = Operation(
        "GET",
        "/llms.txt",
        llms,
        "The API on one page, for a model.",
        str,
        errors=(404,),
        media="text/plain",
        right=Right.OPEN,
    )
    serve(app, Blueprint("llms", __name__), [operation])
    app.extensions["llms"] = operation
