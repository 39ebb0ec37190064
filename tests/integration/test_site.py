"""What a browser finds beside the API: the landing page, the client's file, the icon, and files of pages."""

from __future__ import annotations

import re

import pytest

from bus import __version__
from bus.testing import BusServer
from tests.refusals import KEY

SERVER_ENV = {"API_KEY": KEY}
FILES = ["/client.js", "/favicon.ico", "/static/icon.svg", "/static/site.css", "/static/docs.js", "/docs", "/"]
BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


def test_programs_hear_where_things_are(server: BusServer) -> None:
    answer = server.call("GET", "/")
    assert (answer.status, answer.headers["vary"]) == (200, "Accept")
    assert (answer.body["name"], answer.body["version"]) == ("multi-agent-bridge", __version__)
    assert {"/docs", "/openapi.json", "/health", "/metrics", "/client.js"} <= set(answer.body["places"])
    for path in answer.body["places"]:
        assert server.call("GET", path).status == 200, path


def test_browsers_get_a_page_that_names_the_same(server: BusServer) -> None:
    answer = server.call("GET", "/", headers=BROWSER)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["vary"] == "Accept"
    assert re.findall(r'<li><a href="([^"]+)"', answer.body) == list(server.call("GET", "/").body["places"])


@pytest.mark.parametrize("path", FILES)
def test_files_are_open_and_kept_by_browsers(server: BusServer, path: str) -> None:
    first = server.call("GET", path, headers=BROWSER)
    assert first.status == 200
    assert "no-store" not in first.headers["cache-control"]
    again = server.call("GET", path, headers={**BROWSER, "If-None-Match": first.headers["etag"]})
    assert (again.status, again.body) == (304, "")
    assert again.headers["cache-control"] == first.headers["cache-control"]
    assert server.call("HEAD", path, headers=BROWSER).status == 200
    assert server.call("POST", path, {}).status == 405


def test_the_client_is_a_module_that_any_page_may_import(server: BusServer) -> None:
    answer = server.call("GET", "/client.js", headers={"Origin": "https://elsewhere.example"})
    assert answer.headers["content-type"] == "text/javascript; charset=utf-8"
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in answer.headers
    assert __version__ in answer.body.partition("\n")[0]
    assert not re.search(r"^\s*import\b|\bfrom \"\.|import\(", answer.body, re.MULTILINE)  # all of it is here


@pytest.mark.parametrize("name", ["landing.html", "..%2fsite.py", "nothing.js", ".."])
def test_there_is_no_other_file(server: BusServer, name: str) -> None:
    assert server.call("GET", f"/static/{name}").status == 404
