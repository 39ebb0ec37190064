"""The plots: bars for the questions, lines for the curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt  # only after it is told that there is no screen
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from benchmarks.questions import Question
from benchmarks.runs import Result

OURS, THEIRS, LIMIT = "#1f6f8b", "#b8b8b8", "#e3c16f"
DOTS_PER_INCH = 110
FIGURE_OF = {"idle": "kib_per_connection", "idle-sse": "kib_per_connection", "hop": "hop_ms"}
GROUPS = (
    ("fanout", "Fan-out", ("fanout100-w64", "fanout1000-w64", "fanout100-w16", "fanout1000-w1")),
    ("one-to-one", "One to one", ("one-to-one", "one-to-one-kept", "pingpong")),
    ("ingest", "Kept before it is acknowledged", ("ingest", "ingest64")),
    ("http", "HTTP", ("post64", "batch100-8", "batch100-1")),
    ("sse", "Server-sent events", ("sse100", "sse1000")),
    ("idle", "10,000 idle connections", ("idle10000", "idle10000-sse")),
)
CURVES = {
    "subscribers": ("subscribers", "deliveries a second"),
    "size": ("bytes of payload", "bytes delivered a second"),
    "kept-ingest": ("messages kept", "acknowledgements a second"),
    "kept-fanout": ("messages kept", "deliveries a second"),
    "idle-beside": ("idle connections beside", "deliveries a second"),
    "workers": ("workers", "server µs a delivery"),
}
"""Of each curve: its axes."""


def middle(results: Sequence[Result], figure: str) -> float:
    """The median over the rounds."""
    return median(result.figures[figure] for result in results)


def by_point(results: Sequence[Result]) -> dict[tuple[str, str, float], list[Result]]:
    """The runs of each point: (curve, system, place on the axis)."""
    points: dict[tuple[str, str, float], list[Result]] = {}
    for result in results:
        if result.figures:
            points.setdefault((result.question, result.system, result.at), []).append(result)
    return dict(sorted(points.items()))


# ---- questions


def draw_questions(folder: Path, questions: Sequence[Question], results: Sequence[Result]) -> list[tuple[str, str]]:
    """One PNG a group of questions. Returns (file, caption) of each."""
    drawn = []
    for name, caption, members in GROUPS:
        asked = [question for question in questions if question.name in members and of(question, results)]
        if not asked:
            continue
        figure, axes = plt.subplots(1, len(asked), figsize=(4.6 * len(asked), 4.6), squeeze=False)
        for question, panel in zip(asked, axes[0], strict=True):
            bars(panel, question, of(question, results))
        save(figure, folder / f"{name}.png", caption)
        drawn.append((f"{name}.png", caption))
    return drawn


def of(question: Question, results: Sequence[Result]) -> dict[str, list[float]]:
    """What each system reached, round by round."""
    figure = FIGURE_OF.get(question.kind, "per_second")
    found: dict[str, list[float]] = {}
    for result in results:
        if result.question == question.name and figure in result.figures:
            found.setdefault(result.system, []).append(result.figures[figure])
    return found


def bars(panel: Axes, question: Question, reached: dict[str, list[float]]) -> None:
    """The best at the top: medians, and a line from the least to the most of the rounds."""
    less_is_better = question.kind in FIGURE_OF
    order = sorted(reached, key=lambda system: median(reached[system]), reverse=less_is_better)
    values = [median(reached[system]) for system in order]
    reach = [[v - min(reached[s]) for s, v in zip(order, values, strict=True)]]
    reach.append([max(reached[s]) - v for s, v in zip(order, values, strict=True)])
    panel.barh(order, values, color=[colour(system) for system in order], xerr=reach, ecolor="#555555")
    panel.set_title(question.name, fontsize=10)
    panel.set_xlabel(question.unit + (" (less is better)" if less_is_better else ""), fontsize=8)
    panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    panel.tick_params(labelsize=8)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def colour(system: str) -> str:
    """The bus, the physical limits, everybody else."""
    if system.startswith("bus"):
        return OURS
    return LIMIT if system.startswith("c-") else THEIRS


# ---- curves


def draw_curves(folder: Path, results: Sequence[Result]) -> list[tuple[str, str]]:
    """One PNG a curve. Returns (file, caption) of each."""
    points = by_point(results)
    drawn = []
    for curve, (across, up) in CURVES.items():
        systems = dict.fromkeys(system for name, system, _ in points if name == curve)
        if not systems:
            continue
        figure, panel = plt.subplots(figsize=(6, 4))
        for system in systems:
            line = {at: runs for (name, its, at), runs in points.items() if (name, its) == (curve, system)}
            heights = [value_of(curve)(runs) for runs in line.values()]
            panel.plot(list(line), heights, marker="o", label=system, linewidth=2 if system == "bus" else 1.2)
        panel.set_xscale("linear" if curve == "workers" else "symlog" if curve == "idle-beside" else "log")
        panel.set_ylim(bottom=0)
        panel.set_xlabel(across)
        panel.set_ylabel(up)
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
        panel.yaxis.set_major_formatter(EngFormatter(sep=""))
        panel.legend(fontsize=8)
        panel.grid(alpha=0.3)
        save(figure, folder / f"curve-{curve}.png", "")
        drawn.append((f"curve-{curve}.png", f"{up} by {across}"))
    return drawn


def value_of(curve: str) -> Callable[[Sequence[Result]], float]:
    """The height of a point."""
    if curve == "size":
        return lambda runs: middle(runs, "per_second") * runs[0].at
    return lambda runs: middle(runs, "server_us_per_message" if curve == "workers" else "per_second")


def save(figure: Figure, file: Path, caption: str) -> None:
    if caption:
        figure.suptitle(caption, fontsize=12)
    figure.tight_layout()
    figure.savefig(file, dpi=DOTS_PER_INCH)
    plt.close(figure)
