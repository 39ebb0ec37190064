"""The real first run, as a user starts it, with everything that it promises."""

from __future__ import annotations

import pytest

from examples import first_run


def test_no_line_is_lost_doubled_or_reordered_when_the_server_is_killed_in_the_middle(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert first_run.main() == 0
    said = capsys.readouterr().out
    assert "killed -9" in said
    assert "none missing, none doubled" in said


def test_the_verdict_finds_what_is_missing_doubled_reordered_or_altered() -> None:
    lines = [b"one", b"two", b"three"]
    good = [{"n": n, "line": line.decode()} for n, line in enumerate(lines, 1)]
    assert first_run.verdict(lines, 0, good) is None
    assert "missing" in (first_run.verdict(lines, 0, good[:2]) or "")
    assert "more than once" in (first_run.verdict(lines, 0, [*good, good[0]]) or "")
    assert "order" in (first_run.verdict(lines, 0, [good[1], good[0], good[2]]) or "")
    assert "altered" in (first_run.verdict(lines, 0, [*good[:2], {"n": 3, "line": "drei"}]) or "")
    assert "ended with 1" in (first_run.verdict(lines, 1, good) or "")
