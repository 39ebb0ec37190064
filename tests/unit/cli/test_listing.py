"""Tables: aligned, cut to the terminal and nowhere else; colours and bars on a terminal only."""

from __future__ import annotations

import io
import json
import sys

import pytest

from bus.cli import listing
from bus.cli.listing import Listing, width
from bus.cli.progress import Progress

ROWS = [
    ("a", "waiting", 5),
    ("日本語の名前", "dead", 12_000),
    ("a name as long as a line, nearly, and no end of it", None, 1),
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def table(as_json: bool = False) -> None:
    with Listing("NAME", "STATE", ">COUNT", as_json=as_json) as rows:
        for row in ROWS:
            rows.add({"name": row[0]}, *row)


def test_columns_are_aligned_by_what_is_seen(capsys: pytest.CaptureFixture[str]) -> None:
    table()
    lines = capsys.readouterr().out.splitlines()
    assert "\x1b" not in "".join(lines)
    assert {width(line) for line in lines} == {width(ROWS[2][0]) + 2 + 7 + 2 + 5}
    assert lines[2].startswith("日本語の名前  ")
    assert lines[3].split()[-2:] == ["-", "1"]
    assert lines[3].startswith(ROWS[2][0])


def test_a_terminal_gets_what_fits_and_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("COLUMNS", "40")
    table()
    lines = out.getvalue().splitlines()
    plain = [listing.click.unstyle(line) for line in lines]
    assert all(width(line) <= 40 for line in plain)
    assert plain[3].split("  ")[0].endswith("…")
    assert "\x1b[33mwaiting" in lines[1]
    assert "\x1b[31mdead" in lines[2]


def test_what_could_steer_a_terminal_is_shown_as_its_code(capsys: pytest.CaptureFixture[str]) -> None:
    with Listing("NAME", as_json=False) as rows:
        rows.add(None, "\x1b[2Jgone\r")
    assert capsys.readouterr().out.splitlines()[1] == "\\x1b[2Jgone\\r"


def test_programs_get_lines_of_json_and_an_empty_table_has_its_head(capsys: pytest.CaptureFixture[str]) -> None:
    table(as_json=True)
    assert [json.loads(line)["name"] for line in capsys.readouterr().out.splitlines()] == [row[0] for row in ROWS]
    with Listing("A", "B", as_json=False):
        pass
    assert capsys.readouterr().out == "A  B\n"


def test_many_rows_are_shown_as_they_come(capsys: pytest.CaptureFixture[str]) -> None:
    with Listing("N", as_json=False) as rows:
        for number in range(listing.ROWS_AT_ONCE):
            rows.add(None, number)
        assert len(capsys.readouterr().out.splitlines()) == listing.ROWS_AT_ONCE + 1


def test_a_bar_is_for_terminals_and_knows_its_end_late(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, shown in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        with Progress("Copying") as progress:
            progress.to(1)
            progress.to(2, 10)
            progress.to(1)
            progress.add(100)
        assert ("10/10" in stream.getvalue()) == shown
