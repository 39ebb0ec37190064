"""The help teaches: each verb has examples that can be given, what reads has --json, and docs/cli.md is the same."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import click
import pytest

from bus.cli import cli
from bus.cli.examples import EXAMPLES
from bus.cli.sections import verbs
from bus.settings import ROOT

VERBS = dict(verbs(cli))
READING = {
    "archive list", "archive search", "audit list", "auth explain", "auth me", "clients", "dead-letters list",
    "dead-letters show", "doctor", "health", "integrations events", "integrations list", "integrations show", "keys list",
    "log", "profile", "queues", "replays", "search", "status", "tail", "thread", "webhooks deliveries", "webhooks list",
    "webhooks show",
}  # fmt: skip


def test_every_verb_has_examples_and_a_section() -> None:
    assert set(EXAMPLES) == set(VERBS)
    assert sorted(name for names in cli.sections.values() for name in names) == sorted(cli.commands)


@pytest.mark.parametrize(("path", "line"), [(path, line) for path, lines in EXAMPLES.items() for line in lines])
def test_an_example_is_a_command_that_can_be_given(
    path: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = shlex.split(re.sub(r" [<>]+ .*", "", line))
    at = len(path.split())
    assert arguments[:at] == path.split()
    with VERBS[path].make_context(path, arguments[at:]) as context:
        assert context.args == []
    assert f"python -m bus {line}" in VERBS[path].get_help(
        click.Context(VERBS[path], info_name=path, max_content_width=200)
    )


@pytest.mark.parametrize("path", sorted(READING))
def test_what_reads_speaks_json(path: str) -> None:
    assert any("--json" in option.opts for option in VERBS[path].params), f"{path} has no --json."


def test_the_page_is_what_the_commands_say() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "make_cli.py"))
    assert (ROOT / "docs" / "cli.md").read_text() == made["page"](), "docs/cli.md is behind bus/cli; run `make docs`."


def test_the_root_help_says_what_exit_codes_mean() -> None:
    shown = cli.get_help(click.Context(cli, info_name="python -m bus"))
    for heading in cli.sections:
        assert f"{heading}:" in shown
    assert "2 the bus can't be reached" in " ".join(shown.split())
