"""The console's files: no markup is ever made of text, nothing comes from elsewhere, and what is named is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bus.console import FOLDER, POLICY

FILES = sorted(path for path in FOLDER.rglob("*") if path.is_file())
SCRIPTS = [path for path in FILES if path.suffix == ".js"]
MAX_LINES = 500

PARSES = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|setHTML|parseHTML|document\.write|DOMParser|createContextualFragment|srcdoc"
    r"|\beval\(|new Function|setTimeout\(\s*[\"'`]|javascript:|\.cssText|setAttribute\([\"']style"
)
"""What makes markup or code of a text."""

ELSEWHERE = re.compile(r"(?:https?:)?//(?!www\.w3\.org/2000/svg|example\.com/hook)[a-z0-9.-]+\.[a-z]{2,}")


def name_of(path: Path) -> str:
    return path.relative_to(FOLDER).as_posix()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_file_makes_markup_of_text_or_names_another_host(path: Path) -> None:
    text = path.read_text()
    assert not PARSES.search(text)
    assert not ELSEWHERE.search(text)
    assert len(text.splitlines()) <= MAX_LINES


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_a_module_imports_what_there_is(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("/* "), "The first line of a module says what it is."
    for names, target in re.findall(r"import (.+?) from \"(.+?)\"", text):
        other = (path.parent / target).resolve()
        assert other in SCRIPTS, f"{target} is missing"
        exported = re.findall(r"export (?:async )?(?:function|const|class) (\w+)", other.read_text())
        for name in re.findall(r"\w+", re.sub(r"^\w+,?|[{}]", "", names) if names[0] != "{" else names):
            assert name in exported, f"{target} has no {name}"
            assert len(re.findall(rf"\b{name}\b", text)) > 1, f"{name} is imported, and not used"


def test_the_page_has_no_script_or_style_of_its_own() -> None:
    page = (FOLDER / "index.html").read_text()
    assert re.findall(r"<script[^>]*>", page) == ['<script type="module" src="/console/main.js">']
    assert not re.search(r"<style|style=|\son\w+=", page)


def test_the_policy_lets_nothing_in_but_these_files() -> None:
    directives = dict(part.split(" ", 1) for part in POLICY.split("; "))
    assert directives["default-src"] == "'none'"
    assert directives["script-src"] == directives["style-src"] == directives["connect-src"] == "'self'"
    assert directives["require-trusted-types-for"] == "'script'"
    assert directives["trusted-types"] == directives["frame-ancestors"] == directives["base-uri"] == "'none'"
