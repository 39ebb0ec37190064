"""The record of a measurement: every run as a line of JSON, and from it latest.md and the plots, as often as wanted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks import goals, plots
from benchmarks.questions import Question
from benchmarks.report import short, table
from benchmarks.runs import Result
from benchmarks.systems import System

RESULTS = Path(__file__).resolve().parent / "results"
RUNS, CURVES = "runs.jsonl", "curves.jsonl"
INTRODUCTION = """# What was measured

Written by `python -m benchmarks` and `python -m benchmarks curves`; what the words mean is in [../README.md](../README.md).
"""


class Record:
    """One file of runs. Its first line says what was measured, when and on what; begun anew when it is opened."""

    def __init__(self, file: Path, head: str) -> None:
        self._file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"head": head}) + "\n")

    def add(self, result: Result) -> None:
        """Append a run."""
        with self._file.open("a") as output:
            output.write(json.dumps(asdict(result)) + "\n")


def read(file: Path) -> tuple[str, list[Result]]:
    """The head and the runs of a file; nothing when there is none."""
    if not file.exists():
        return "", []
    head, *lines = file.read_text().splitlines()
    return json.loads(head)["head"], [Result(**json.loads(line)) for line in lines]


def page(folder: Path, questions: Sequence[Question], systems: Sequence[System]) -> str:
    """Write latest.md and the plots from the runs in the folder. Returns the page."""
    head, results = read(folder / RUNS)
    curves_head, curves = read(folder / CURVES)
    asked = [question for question in questions if any(result.question == question.name for result in results)]
    parts = [INTRODUCTION, head, "\n## Required, and what came out\n"]
    parts.append(
        "Medians of the ratios, bus to peer, round by round. `by CPU` is the same ratio by what one message costs"
    )
    parts.append("the server's processor: it holds on a machine that others use, too.\n")
    parts.append(goals.table([*results, *kept_ends(curves)], shown=short))
    parts += [f"\n![{caption}]({file})" for file, caption in plots.draw_questions(folder, asked, results)]
    if curves:
        parts += ["\n## Curves\n", curves_head]
        parts += [f"\n![{caption}]({file})" for file, caption in plots.draw_curves(folder, curves)]
        parts.append("\n" + curve_table(curves))
    parts.append("\n## Every question\n")
    for question in asked:
        able = [system for system in systems if question.kind in system.load]
        parts.append(table(question, able, results) + "\n")
    text = "\n".join(parts).rstrip() + "\n"
    (folder / "latest.md").write_text(text)
    return text


def kept_ends(curves: Sequence[Result]) -> list[Result]:
    """The two ends of what was kept, as two systems, so that a goal can compare them; only if ten million were."""
    kept = [result for result in curves if result.question in ("kept-ingest", "kept-fanout") and result.system == "bus"]
    least = [Result(r.question, goals.FEW_KEPT, r.round, r.figures) for r in kept if r.at == 1e4]
    return least + [r for r in kept if r.at >= 1e7]


def curve_table(curves: Sequence[Result]) -> str:
    """The points of all curves."""
    lines = [
        "| curve | system | at | rate/s | p50 / p99 ms | server us/message |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for (curve, system, at), points in plots.by_point(curves).items():
        rates, p50, p99, cost = (
            plots.middle(points, figure) for figure in ("per_second", "p50_us", "p99_us", "server_us_per_message")
        )
        lines.append(
            f"| {curve} | {system} | {at:,.0f} | {short(rates)} | {p50 / 1000:.2f} / {p99 / 1000:.2f} | {cost:.2f} |"
        )
    notes = [f"- {r.question}, {r.system} at {r.at:,.0f}: {r.problem}" for r in curves if r.problem]
    return "\n".join([*lines, "", *notes]).rstrip()
