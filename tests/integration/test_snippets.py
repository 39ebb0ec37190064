"""Every snippet of README, docs and guides: run as it is printed, but for where the bus is, or said why not."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from bus.settings import ROOT, load
from bus.testing import BusServer
from tests.conftest import require
from tests.snippets import (
    CODE,
    DATA,
    DOCUMENTS,
    SHOWN,
    Session,
    Snippet,
    idle_markers,
    is_run,
    matches,
    server_settings,
)
from tests.snippets import snippets as snippets_of

ALL = [snippet for page in DOCUMENTS for snippet in snippets_of(page)]
LONG = ("docs/howto.md", "UPGRADE_GUIDE.md")
"""Pages with so many commands that they take more than ten seconds."""
OF_SQLITE = ("backup.md", "getting_started.md", "howto.md")
RUN = [
    pytest.param(page, marks=[pytest.mark.slow] if str(page.relative_to(ROOT)) in LONG else [])
    for page in DOCUMENTS
    if any(is_run(snippet) for snippet in snippets_of(page))
]


def by_name(value: Snippet | Path) -> str:
    return value.name if isinstance(value, Snippet) else str(value.relative_to(ROOT))


@pytest.mark.parametrize("snippet", ALL, ids=by_name)
def test_a_snippet_is_held_by_something(snippet: Snippet) -> None:
    assert snippet.language in (*CODE, *DATA, *SHOWN), f"{snippet.name}: name the language behind the fence."
    if snippet.language not in CODE:
        return
    assert snippet.how, f"{snippet.name}: say above it how it is run; tests/snippets.py has the words."
    if found := re.fullmatch(r"held by (tests/\S+\.py)", snippet.how):
        test = ROOT / found[1]
        assert test.exists(), f"{snippet.name}: {found[1]} is missing."
        assert snippet.page.name in test.read_text(), f"{found[1]} does not read {snippet.page.name}."
    elif found := re.fullmatch(r"not run: (.*)", snippet.how):
        assert len(found[1].split()) >= 3, f"{snippet.name}: give the reason."
    else:
        assert snippet.how in ("run", "run after", "run until done", "browser"), f"{snippet.name}: `{snippet.how}`?"


@pytest.mark.parametrize("page", DOCUMENTS, ids=by_name)
def test_every_marker_stands_above_a_block(page: Path) -> None:
    assert not idle_markers(page)


@pytest.mark.parametrize("snippet", [each for each in ALL if each.language in DATA], ids=by_name)
def test_data_can_be_read(snippet: Snippet) -> None:
    if snippet.language == "yaml":
        assert list(yaml.safe_load_all(snippet.text))
    elif snippet.language == "env":
        pairs = dict(line.split("=", 1) for line in snippet.text.splitlines() if line and not line.startswith("#"))
        load({"ENABLE_AUTH": "true", **pairs}, env_file=None)
    else:
        try:
            json.loads(snippet.text)
        except json.JSONDecodeError:  # one value a line
            for line in snippet.text.splitlines():
                json.loads(line)


@pytest.mark.one_node("a reader of a page has one server")
@pytest.mark.timeout(400)
@pytest.mark.parametrize("page", RUN, ids=by_name)
def test_the_snippets_of_a_page_run(
    page: Path, request: pytest.FixtureRequest, fresh_server: Callable[..., BusServer], tmp_path: Path, store: str
) -> None:
    if store != "sqlite" and page.name in OF_SQLITE:
        pytest.skip("The page shows SQLite's file.")
    for program in ("bash", "curl"):
        require(program)
    own: dict[str, Any] | None = server_settings(page)
    server: BusServer = request.getfixturevalue("server") if own is None else fresh_server(env=own)
    session = Session(server, tmp_path)
    try:
        for snippet in snippets_of(page):
            if is_run(snippet):
                session.run(snippet)
    finally:
        session.close()


def test_what_a_console_shows_is_compared() -> None:
    assert matches("a …\nb", "a long line\nb\n")
    assert matches(
        "msg-6998bd1b4e1f-000000001267 at 2026-02-21T17:27:21",
        "msg-0123456789ab-00000000000a at 2026-11-21T10:00:00.5Z",
    )
    assert not matches("a\nb", "a\nc")
    assert not matches("[1]", "1")
