"""Writes docs/settings.md and .env.example from bus/settings.py, the one place where a setting is described.

    python docs/make_settings.py

A test compares the files with what this would write.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bus.settings import Settings  # noqa: E402  # found by the line above

PAGE_HEAD = """\
# Settings

<!-- Made from bus/settings.py by `make docs`; edit there. -->

Each setting is an environment variable, or a line of a file `.env` in the project's folder (copy `.env.example`); the
environment wins, and an empty value counts as unset. A wrong value stops the start with one sentence. Times are in
seconds and sizes in bytes.

| Setting | Default | Takes | What it is |
|---|---|---|---|
"""

EXAMPLE_HEAD = """\
# Settings of multi-agent-bridge, with their defaults. Copy this file to .env and uncomment what you change.
# The environment wins over .env. docs/settings.md is the same list as a page; `make docs` writes both.
"""


def settings_page() -> str:
    """The text of docs/settings.md."""
    rows = (
        f"| `{name}` | {_shown(about.get('default'))} | {_takes(about)} | {_cell(about['description'])} |"
        for name, about in _described().items()
    )
    return PAGE_HEAD + "\n".join(rows) + "\n"


def example() -> str:
    """The text of .env.example."""
    parts = (
        f"\n# {about['description']}\n# {name}={_plain(about.get('default'))}\n" for name, about in _described().items()
    )
    return EXAMPLE_HEAD + "".join(parts)


def _described() -> dict[str, dict[str, Any]]:
    schema = msgspec.json.schema(Settings)
    properties: dict[str, dict[str, Any]] = schema["$defs"]["Settings"]["properties"]
    for name, about in properties.items():
        if not about.get("description"):
            raise SystemExit(f"{name} has no description in bus/settings.py; give it one with unit and reason.")
    return properties


def _takes(about: dict[str, Any]) -> str:
    choices = [choice for choice in about.get("anyOf", [about]) if choice.get("type") != "null"]
    form = {**about, **choices[0]}
    if "enum" in form:
        return _cell(" | ".join(f"`{value}`" for value in form["enum"]))
    if form["type"] == "boolean":
        return _cell("`true` | `false`")
    noun = {"integer": "whole number", "number": "number", "string": "text"}[form["type"]]
    least, most = form.get("minimum"), form.get("maximum")
    if least is None:
        return noun
    return f"{noun}, {least} to {most}" if most is not None else f"{noun}, {least} or more"


def _shown(default: object) -> str:
    return f"`{_plain(default)}`" if _plain(default) else "unset"


def _plain(default: object) -> str:
    if default is None:
        return ""
    return str(default).lower() if isinstance(default, bool) else str(default)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    (ROOT / "docs" / "settings.md").write_text(settings_page())
    (ROOT / ".env.example").write_text(example())
