"""Snippets of the documents for pages run in a page of the bus, in Chromium, without an error."""

from __future__ import annotations

from typing import Any

import pytest

from bus.testing import BusServer
from tests.snippets import DOCUMENTS, Snippet
from tests.snippets import snippets as snippets_of

pytestmark = pytest.mark.full

BROWSER = [each for page in DOCUMENTS for each in snippets_of(page) if each.how == "browser"]


@pytest.mark.parametrize("snippet", BROWSER, ids=lambda each: each.name)
def test_a_snippet_for_pages_runs(server: BusServer, context: Any, snippet: Snippet) -> None:
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"{server.url}/health")
    page.evaluate(f"async () => {{ {snippet.text} }}")
    page.evaluate("() => new Promise((done) => setTimeout(done, 100))")
    page.close()
    assert errors == []
