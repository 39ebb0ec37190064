"""docs/security.md is true where a test can hold it: its tests exist, and every finding that is passed over is answered."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/security.md").read_text()


def test_every_threat_names_tests_that_exist() -> None:
    table = PAGE.split("| threat |")[1].split("\n\n")[0]
    there = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    rows = [row for row in table.splitlines() if row.startswith("| ") and "---" not in row]
    assert len(rows) > 10
    for row in rows:
        named = set(re.findall(r"`(test_\w+\.py)`", row.rsplit("|", 2)[1]))
        assert named, row
        assert named <= there, f"missing: {named - there}"


def test_every_finding_of_bandit_that_is_passed_over_is_answered() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    passed_over = set(settings["tool"]["bandit"]["skips"])
    for file in (*ROOT.glob("*.py"), *(f for d in ("bus", "extensions", "examples") for f in (ROOT / d).rglob("*.py"))):
        passed_over |= set(re.findall(r"# nosec (B\d+)", file.read_text()))
    answered = set(re.findall(r"\bB\d{3}\b", PAGE))
    assert passed_over <= answered
