"""What the documents say is what there is: settings, README commands, Makefile, CI, version, links."""

from __future__ import annotations

import itertools
import re
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

from bus import __version__
from bus.settings import Settings, load
from tests.snippets import DOCUMENTS

ROOT = Path(__file__).resolve().parent.parent
MADE = runpy.run_path(str(ROOT / "docs" / "make_settings.py"))
TEST_COMMANDS = ["make check", "make test", "make test-all"]


def text(path: str) -> str:
    """The text of a file of the project."""
    file = ROOT / path
    assert file.exists(), f"{path} is missing."
    return file.read_text()


def commands(document: str) -> list[str]:
    """What a document shows as code: the lines of its blocks, without comments and prompts, and its inline code."""
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", document, re.DOTALL | re.MULTILINE)
    lines = [re.sub(r"\s+#.*", "", line).strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
    prose = re.sub(r"^```.*?^```", "", document, flags=re.DOTALL | re.MULTILINE)
    return [line for line in lines if line] + re.findall(r"`([^`]+)`", prose)


def make_targets() -> set[str]:
    """The Makefile's targets that a person calls."""
    phony = re.search(r"^\.PHONY:(.*)$", text("Makefile"), re.MULTILINE)
    assert phony is not None
    return set(phony[1].split())


@pytest.mark.parametrize(("path", "make"), [("docs/settings.md", "settings_page"), (".env.example", "example")])
def test_the_settings_are_documented_as_they_are(path: str, make: str) -> None:
    written: Callable[[], str] = MADE[make]
    assert text(path) == written(), f"{path} is behind bus/settings.py; run `make docs`."


def test_the_example_names_known_settings_only_and_its_values_are_good() -> None:
    given = dict(re.findall(r"^#? ?([A-Z][A-Z_]+)=(.*)$", text(".env.example"), re.MULTILINE))
    assert set(given) == {name.upper() for name in Settings.__struct_fields__}
    assert load(given, env_file=None) == load({}, env_file=None)


def test_the_readme_can_be_read_in_one_sitting() -> None:
    assert len(text("README.md").splitlines()) <= 150


def test_the_readme_names_make_targets_that_exist() -> None:
    named = {match[1] for line in commands(text("README.md")) if (match := re.match(r"make ([a-z][a-z-]*)", line))}
    assert named, "README.md shows no `make` command."
    assert named <= make_targets()


def test_the_readme_names_files_that_exist() -> None:
    for line in commands(text("README.md")):
        for script in re.findall(r"(?:^|\bpython3? )([\w/]+\.py)\b", line):
            assert (ROOT / script).exists(), f"README.md says `{line}`, but {script} is missing."


def test_ci_runs_the_test_commands_of_the_readme() -> None:
    assert set(TEST_COMMANDS) <= set(commands(text("README.md")))
    lines = [line.partition("#")[0] for line in text(".ci/run").splitlines() if line.startswith("make ")]
    assert [f"make {target}" for line in lines for target in line.split()[1:]] == TEST_COMMANDS


def test_every_make_target_says_what_it_does() -> None:
    described = set(re.findall(r"^([a-z-]+):.*## \S", text("Makefile"), re.MULTILINE))
    assert described == make_targets()


def test_the_changelog_has_this_version_on_top() -> None:
    versions = re.findall(r"^## \[?(\d+\.\d+\.\d+)", text("CHANGELOG.md"), re.MULTILINE)
    assert versions[0] == __version__


def anchors(document: str) -> set[str]:
    """What a `#` may name on a page: its headings, as GitHub writes them."""
    without_code = re.sub(r"^```.*?^```", "", document, flags=re.DOTALL | re.MULTILINE)
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} (.+?) *#*$", without_code, re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        again = next(number for number in itertools.count() if (f"{slug}-{number}" if number else slug) not in found)
        found.add(f"{slug}-{again}" if again else slug)
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_within_the_project_lead_somewhere(document: Path) -> None:
    written = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)[^)]*\)", written):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        file = document.parent / path if path else document
        assert file.exists(), f"{document.name} links to {target}, which is missing."
        assert file.resolve().is_relative_to(ROOT), f"{document.name} links to {target}, outside of the project."
        if anchor:
            assert anchor in anchors(file.read_text()), (
                f"{document.name} links to {target}; {path} has no such heading."
            )


def test_every_page_is_in_the_index() -> None:
    index = text("docs/README.md")
    for page in (ROOT / "docs").rglob("*.md"):
        name = str(page.relative_to(ROOT / "docs"))
        assert name == "README.md" or f"]({name})" in index, f"docs/README.md does not lead to {name}."


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_of_the_project_that_a_page_names_is_there(document: Path) -> None:
    for name in commands(document.read_text()):
        for path in re.findall(
            r"(?<![\w/.])((?:tests|bus|deploy|docs|examples|extensions|benchmarks)/[\w./]+\.\w+)", name
        ):
            assert (ROOT / path).exists(), f"{document.name} names {path}, which is missing."
