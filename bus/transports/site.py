"""What a browser finds beside the API: `/` says where things are, `/client.js` is the client, `/static/` has files of pages.

All of it is the same for everybody, so it is open, and read from the disk once. A page of another origin may import the
client: it holds nothing that is anybody's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from flask import Blueprint, Response, abort, request

from bus import __version__
from bus.settings import ROOT
from bus.transports.edge import json_answer
from bus.transports.modules import put_together

if TYPE_CHECKING:
    from flask import Flask

    from bus.bus import Bus

CLIENT = ROOT / "clients" / "javascript" / "client.js"
STATIC = Path(__file__).parent / "static"
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".html": "text/html; charset=utf-8",
}
FRESH_SECONDS = 300
"""How long a browser may use the client without asking whether there is a newer one."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
"""Of our own pages: only our own files, asked only of us, in nobody's frame, and no text becomes markup."""

PLACES = {
    "/console": "The console: what the bus does, live",
    "/docs": "The API, to read and to try",
    "/openapi.json": "The API, for programs",
    "/health": "Whether the bus is well",
    "/metrics": "What the bus counts, for Prometheus",
    "/client.js": "The client for browsers and Node",
}
"""What `/` names, as far as it is served."""


def kept(data: bytes, content_type: str, *, fresh_seconds: int = 0) -> Response:
    """An answer that a browser may keep; 304 when it has the same already."""
    response = Response(data, content_type=content_type)
    response.set_etag(hashlib.sha256(data).hexdigest()[:20])
    response.headers["Cache-Control"] = f"public, max-age={fresh_seconds}" if fresh_seconds else "no-cache"
    if content_type.startswith("text/html"):
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["Cross-Origin-Opener-Policy"] = "same-origin"
    response.make_conditional(request)
    return response


_read: Callable[[Path], bytes] = cache(Path.read_bytes)


@cache
def _client() -> bytes:
    head = f"// The client of multi-agent-bridge {__version__}, its modules as one: see docs/javascript.md."
    return f"{head}\n\n{put_together(CLIENT)}".encode()


def client() -> Response:
    """The client, for any page: one file, whose parts can't be of two versions."""
    response = kept(_client(), TYPES[".js"], fresh_seconds=FRESH_SECONDS)
    response.headers["Access-Control-Allow-Origin"] = "*"
    response.headers["Cross-Origin-Resource-Policy"] = "cross-origin"
    return response


def icon() -> Response:
    """The icon, also where a browser looks for one that no page named."""
    return kept(_read(STATIC / "icon.svg"), TYPES[".svg"], fresh_seconds=FRESH_SECONDS)


def static(name: str) -> Response:
    """A file of the pages."""
    if name not in {path.name for path in STATIC.iterdir() if path.suffix in (".css", ".js", ".svg")}:
        abort(404)
    return kept(_read(STATIC / name), TYPES[Path(name).suffix])


def landing(places: dict[str, str]) -> Response:
    """Where things are: a page for who would rather read one, else JSON."""
    if request.accept_mimetypes.best_match(["application/json", "text/html"]) == "text/html":
        rows = "".join(f'<li><a href="{path}"><code>{path}</code></a> {text}</li>' for path, text in places.items())
        page = _read(STATIC / "landing.html").decode().replace("{version}", __version__).replace("{places}", rows)
        response = kept(page.encode(), TYPES[".html"])
    else:
        response = json_answer({"name": "multi-agent-bridge", "version": __version__, "places": places})
    response.vary.add("Accept")
    return response


def register(app: Flask, bus: Bus) -> None:
    """Serve them."""

    def root() -> Response:
        served = {rule.rule for rule in app.url_map.iter_rules()}
        return landing({path: text for path, text in PLACES.items() if path in served})

    blueprint = Blueprint("site", __name__)
    blueprint.add_url_rule("/", view_func=root)
    blueprint.add_url_rule("/client.js", view_func=client)
    blueprint.add_url_rule("/favicon.ico", view_func=icon)
    blueprint.add_url_rule("/static/<name>", view_func=static)
    app.register_blueprint(blueprint)
    app.extensions["site"] = blueprint
