"""Draws the dashboards into docs/images/, with what a Prometheus answers to their own queries.

    python docs/make_dashboard_pictures.py [SECONDS]

Starts a bus with four workers, a Prometheus that scrapes it, and a small load for SECONDS (90). Prometheus must be on PATH.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, Formatter, PercentFormatter

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bus.testing import BusServer  # noqa: E402  # found by the line above
from tests.monitoring import DASHBOARDS, Line, Prometheus, Traffic, filled_in  # noqa: E402

WINDOW = "15s"
WIDTH_INCHES, LINE_INCHES = 15.0, 0.36
DOTS_PER_INCH = 80
MAX_LEGENDS = 12
GREEN, RED, INK, LIGHT = "#2e7d32", "#c62828", "#333333", "#f4f5f6"
UNITS: dict[str, Formatter] = {
    "short": EngFormatter(sep=""),
    "ops": EngFormatter(sep=""),
    "s": EngFormatter("s", places=None, sep=" "),
    "bytes": EngFormatter("B", sep=" "),
    "percentunit": PercentFormatter(1.0, symbol=" %"),
}


class Drawer:
    """Asks for a span of time, and draws dashboards of it."""

    def __init__(self, prometheus: Prometheus, begin: float, end: float) -> None:
        self._prometheus = prometheus
        self._begin, self._end = begin, end

    def draw(self, dashboard: dict[str, Any]) -> Figure:
        """All panels, where Grafana has them."""
        shown = dashboard["panels"]
        lines = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in shown)
        figure = plt.figure(figsize=(WIDTH_INCHES, (lines + 1.5) * LINE_INCHES), facecolor=LIGHT)
        figure.text(0.006, 1 - 0.9 / (lines + 1.5), dashboard["title"], fontsize=13, weight="bold", color=INK)
        for panel in shown:
            place = panel["gridPos"]
            top = 1 - (place["y"] + 1.5) / (lines + 1.5)
            if panel["type"] == "row":
                figure.text(0.006, top - 0.7 / (lines + 1.5), panel["title"], fontsize=10, weight="bold", color=INK)
                continue
            height, width = place["h"] / (lines + 1.5), place["w"] / 24
            gap_x, gap_y = 0.004, 0.12 / (lines + 1.5)
            box = (place["x"] / 24 + gap_x, top - height + gap_y, width - 2 * gap_x, height - 2 * gap_y)
            self._panel(figure, box, panel)
        return figure

    def _panel(self, figure: Figure, box: tuple[float, float, float, float], panel: dict[str, Any]) -> None:
        frame = figure.add_axes(box)
        frame.set_xticks([])
        frame.set_yticks([])
        for spine in frame.spines.values():
            spine.set_color("#dddddd")
        frame.annotate(
            panel["title"], (0, 1), (6, -6), "axes fraction", "offset points", va="top", fontsize=8.5, color=INK
        )
        found = [
            (legend_of(target["legendFormat"], line), line)
            for target in panel["targets"]
            for line in self._ask(target["expr"], is_instant=panel["type"] in ("stat", "table"))
        ]
        if not found:
            frame.text(0.5, 0.42, "nothing to show", ha="center", va="center", fontsize=8, color="#999999")
        elif panel["type"] == "stat":
            figure_of(frame, panel, found[0])
        elif panel["type"] == "table":
            names = sorted({line.labels["alertname"] for _, line in found})
            frame.text(0.015, 0.5, "fires: " + ", ".join(names), va="center", fontsize=9, color=RED)
        else:
            left, bottom, width, height = box
            is_short = panel["type"] == "heatmap"
            inner = (
                left + 0.042,
                bottom + height * (0.14 if is_short else 0.3),
                width - 0.05,
                height * (0.7 if is_short else 0.54),
            )
            axes = figure.add_axes(inner)
            draw = heat if panel["type"] == "heatmap" else curves
            draw(axes, panel, found)
            axes.set_xlim(0, self._end - self._begin)
            axes.xaxis.set_major_formatter(UNITS["s"])
            axes.locator_params(axis="x", nbins=5)
            axes.tick_params(labelsize=7, colors="#666666", length=2)

    def _ask(self, expression: str, *, is_instant: bool) -> list[Line]:
        asked = filled_in(expression, WINDOW)
        if is_instant:
            return self._prometheus.ask(asked)
        lines = self._prometheus.ask_range(asked, self._begin, self._end, 1.0)
        return [
            Line(line.labels, [(at - self._begin, value) for at, value in line.points]) for line in lines if line.points
        ]


def legend_of(form: str, line: Line) -> str:
    """What Grafana writes beside a line."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: line.labels.get(match[1], ""), form)


def shown(value: float, unit: str) -> str:
    """A single figure, rounded."""
    return f"{value:.1%}" if unit == "percentunit" else UNITS[unit](float(f"{value:.3g}"))


def figure_of(frame: Axes, panel: dict[str, Any], found: tuple[str, Line]) -> None:
    """A large figure, green or red."""
    legend, line = found
    value = line.points[-1][1]
    defaults = panel["fieldConfig"]["defaults"]
    colours = [
        step["color"] for step in defaults["thresholds"]["steps"] if step["value"] is None or value >= step["value"]
    ]
    text = shown(value, defaults["unit"])
    colour = colours[-1]
    for mapping in defaults.get("mappings", ()):
        known = mapping["options"].get(f"{value:g}")
        text, colour = (known["text"], known["color"]) if known else (text, colour)
    if panel["options"]["textMode"] == "name":
        text = legend
    frame.text(0.5, 0.4, text, ha="center", va="center", fontsize=17, color={"green": GREEN, "red": RED}[colour])


def curves(axes: Axes, panel: dict[str, Any], found: Sequence[tuple[str, Line]]) -> None:
    """Lines over time, or areas on top of one another; the limit where there is one."""
    defaults = panel["fieldConfig"]["defaults"]
    if "stacking" in defaults["custom"]:
        moments = sorted({at for _, line in found for at, _ in line.points})
        heights = [[dict(line.points).get(at, 0.0) for at in moments] for _, line in found]
        axes.stackplot(moments, heights, labels=[legend for legend, _ in found], alpha=0.7)
    else:
        for legend, line in found:
            axes.plot([at for at, _ in line.points], [value for _, value in line.points], label=legend, lw=1.2)
    highest = max(value for _, line in found for _, value in line.points)
    for step in defaults["thresholds"]["steps"]:
        if "thresholdsStyle" in defaults["custom"] and step["value"] is not None and step["value"] <= 2 * highest:
            axes.axhline(step["value"], color=RED, lw=0.8, ls="--")
    axes.set_ylim(bottom=0)
    if highest == 0:
        axes.set_ylim(top=1)
    axes.yaxis.set_major_formatter(UNITS[defaults["unit"]])
    axes.locator_params(axis="y", nbins=4)
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if any(legend for legend, _ in found):
        handles, labels = axes.get_legend_handles_labels()
        first = slice(MAX_LEGENDS)
        columns = 4 if panel["gridPos"]["w"] > 8 else 3
        axes.legend(
            handles[first], labels[first], fontsize=6.5, ncol=columns, loc="upper center", frameon=False,
            bbox_to_anchor=(0.47, -0.14), columnspacing=1.0, handlelength=1.2,
        )  # fmt: skip


def heat(axes: Axes, panel: dict[str, Any], found: Sequence[tuple[str, Line]]) -> None:
    """How many fell into each bucket at each moment; Prometheus counts them from below."""
    rows = sorted(((float(legend), dict(line.points)) for legend, line in found), key=lambda row: row[0])
    moments = sorted({at for _, points in rows for at in points})
    counts, below = [], dict.fromkeys(moments, 0.0)
    for _, points in rows:
        counts.append([max(0.0, points.get(at, 0.0) - below[at]) for at in moments])
        below = {at: points.get(at, 0.0) for at in moments}
    axes.pcolormesh(moments, range(len(rows)), counts, cmap="Oranges", shading="nearest")
    unit = UNITS[panel["fieldConfig"]["defaults"]["unit"]]
    labels = ["more" if bound == float("inf") else unit(bound) for bound, _ in rows]
    axes.set_yticks(range(0, len(rows), 2), labels[::2])


def main() -> None:
    """Start all three, wait, draw."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 90.0
    program = shutil.which("prometheus")
    if program is None:
        raise SystemExit("There is no `prometheus` on PATH (Debian: apt-get install prometheus).")
    folder = ROOT / "docs" / "images"
    folder.mkdir(exist_ok=True)
    with (
        BusServer(workers=4, env=Traffic.ENV) as server,
        Prometheus(program, server.port) as prometheus,
        Traffic(server),
    ):
        threading.Event().wait(seconds)
        end = time.time()
        drawer = Drawer(prometheus, end - seconds + 10, end)
        for file in sorted(DASHBOARDS.glob("*.json")):
            figure = drawer.draw(json.loads(file.read_text()))
            figure.savefig(folder / f"dashboard-{file.stem}.png", dpi=DOTS_PER_INCH)
            plt.close(figure)


if __name__ == "__main__":
    main()
