"""The console at `/console`: one page of plain modules and styles, that asks the same API as everybody.

It has no rights of its own: what it shows is what the reader's credential may read. The files are the same for all, so
they need no key; nothing is built, and nothing comes from another host. The policy that goes with them lets only these
files run, and only this server be asked; what came in messages gets into the page as text alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flask import Blueprint, Flask, Response, abort, jsonify

from bus.transports.site import TYPES, kept

if TYPE_CHECKING:
    from bus.bus import Bus

FOLDER = Path(__file__).parent / "static"
OPTIONAL = {"search": "/api/search", "series": "/api/series"}
"""What a server may lack, and a path of it."""

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)


class Files:
    """The files by name: read at the first request, and never again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, bytes] = {}

    def page(self) -> Response:
        """The page itself."""
        return self.file("index.html")

    def file(self, name: str) -> Response:
        """A file; 304 when the browser has it already."""
        if not self._files:
            paths = (path for path in self._folder.rglob("*") if path.suffix in TYPES)
            self._files = {path.relative_to(self._folder).as_posix(): path.read_bytes() for path in paths}
        if name not in self._files:
            abort(404)
        response = kept(self._files[name], TYPES[Path(name).suffix])  # but asked for anew: an upgrade is seen at once
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["Cross-Origin-Opener-Policy"] = "same-origin"
        return response


def register(app: Flask, bus: Bus) -> None:
    """Serve the console."""
    files = Files(FOLDER)

    def parts() -> Response:
        paths = {rule.rule for rule in app.url_map.iter_rules()}
        return jsonify({name: path in paths for name, path in OPTIONAL.items()})

    blueprint = Blueprint("console", __name__)
    blueprint.add_url_rule("/console", view_func=files.page, endpoint="page")
    blueprint.add_url_rule("/console/", view_func=files.page, endpoint="page_too")
    blueprint.add_url_rule("/console/parts.json", view_func=parts)
    blueprint.add_url_rule("/console/<path:name>", view_func=files.file, endpoint="file")
    app.register_blueprint(blueprint)
    app.extensions["console"] = files
