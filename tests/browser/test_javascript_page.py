"""Every snippet of docs/javascript.md, and of the client's README, prints what it says: in Chromium, or in Node."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bus.settings import ROOT
from bus.testing import BusServer, eventually
from tests.integration.test_javascript_client import FOLDER, node
from tests.refusals import KEY

pytestmark = pytest.mark.full

PAGE = (ROOT / "docs" / "javascript.md").read_text()
README = (FOLDER / "README.md").read_text()
IMPORT = re.compile(r"^import (\{ Client \}) from (\"[^\"]+\");", re.MULTILINE)


def blocks(page: str, label: str) -> list[str]:
    """The snippets with a label."""
    return re.findall(rf"^```{label}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)


def promised(block: str) -> list[str]:
    """What it says it prints, line by line."""
    comments = re.findall(r"console\.log\(.*// (.*)$", block, re.MULTILINE)
    return [line for comment in comments for line in comment.split(", ")]


def prints(page: Any, block: str, before: str = "") -> list[str]:
    """What a snippet prints in a page."""
    body = IMPORT.sub(r"const \1 = await import(\2);", block)
    script = f"""async () => {{
        window.printed = [];
        const shown = (word) => typeof word === "string" ? word : JSON.stringify(word);
        const console = {{log: (...words) => window.printed.push(words.map(shown).join(" "))}};
        {before}
        {body}
    }}"""
    page.evaluate(script)
    expected = promised(block)
    eventually(lambda: page.evaluate("window.printed.length") >= len(expected), what=f"what is printed by\n{block}")
    return list(page.evaluate("window.printed"))


@pytest.mark.parametrize("block", blocks(PAGE, "js"), ids=lambda block: block.strip().splitlines()[0][:40])
def test_a_snippet_for_pages_prints_what_it_says(server: BusServer, context: Any, block: str) -> None:
    context.clear_cookies()
    page = context.new_page()
    page.goto(f"{server.url}/health")
    assert prints(page, block) == promised(block) != []
    page.close()


def test_the_snippet_with_credentials(fresh_server: Any, context: Any) -> None:
    context.clear_cookies()
    server: BusServer = fresh_server(env={"API_KEY": KEY})
    made = server.call("POST", "/api/keys", {"clients": ["alice"]}, {"X-API-Key": KEY}).body["key"]
    page = context.new_page()
    page.goto(f"{server.url}/health")
    (block,) = blocks(PAGE, "js auth")
    assert prints(page, block, f'const key = "{made}";') == promised(block)
    page.close()


@pytest.mark.parametrize(("page", "label", "is_served"), [(PAGE, "js node", True), (README, "js", False)])
def test_the_snippets_for_node(server: BusServer, tmp_path: Path, page: str, label: str, is_served: bool) -> None:
    """What the bus serves is one file that is enough; the package is a folder."""
    (block,) = blocks(page, label)
    folder = shutil.copytree(FOLDER, tmp_path / "client")
    if is_served:
        shutil.rmtree(folder / "client")
        (folder / "client.js").write_text(server.call("GET", "/client.js").body)
    (folder / "snippet.js").write_text(block)
    environment = {**os.environ, "MESSAGE_BUS_URL": server.url}
    done = subprocess.run(
        [*node(), "snippet.js"], cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines() == promised(block), done.stderr


def test_every_event_and_option_is_on_the_page() -> None:
    listed = re.search(r"^export const EVENTS = (.*)$", (FOLDER / "client" / "events.js").read_text(), re.MULTILINE)
    assert listed is not None
    events = re.findall(r'"(\w+)"', listed[1])
    told = (FOLDER / "client" / "options.js").read_text().partition("@typedef {object} SendOptions")[0]
    options = re.findall(r"^ \* @property \{.*?\} \[(\w+)\]", told, re.MULTILINE)
    assert {"message", "open", "close"} < set(events)
    assert {"url", "token", "maxReceived"} < set(options)
    for name in (*events, *options):
        assert f"`{name}" in PAGE, f"docs/javascript.md does not tell of {name}."
