"""What a dashboard is made of, and its form in Grafana's JSON: queries, panels, the grid they stand in.

Every query counts the buses that the variables `job` and `instance` choose, together unless it says `by`; a rate is over
Grafana's own `$__rate_interval`, which is never shorter than four scrapes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec

BUS = 'job=~"$job",instance=~"$instance"'
WINDOW = "$__rate_interval"
COLUMNS = 24
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
SCHEMA = 38
"""The version of Grafana's schema that this is: Grafana 10.1; later ones read it."""

Kind = Literal["timeseries", "stat", "heatmap", "table"]
HEIGHTS: dict[Kind, int] = {"timeseries": 8, "stat": 4, "heatmap": 8, "table": 5}


# ---- queries


def series(name: str, where: str = "") -> str:
    """A metric of the chosen buses; `where`: further matchers."""
    return f"{name}{{{BUS}{',' + where if where else ''}}}"


def total(name: str, by: str = "", where: str = "", how: str = "sum") -> str:
    """A gauge over all buses and workers, or one for each value of the labels `by`."""
    return f"{how}{_by(by)}({series(name, where)})"


def rate(name: str, by: str = "", where: str = "") -> str:
    """By how much a counter rises in a second."""
    return f"sum{_by(by)}(rate({series(name, where)}[{WINDOW}]))"


def quantile(q: float, histogram: str, by: str = "") -> str:
    """The value of a histogram that the share `q` of the observations does not exceed."""
    return f"histogram_quantile({q}, {rate(histogram + '_bucket', f'le, {by}' if by else 'le')})"


def mean(histogram: str) -> str:
    """The mean of what a histogram observed."""
    return f"{rate(histogram + '_sum')} / {rate(histogram + '_count')}"


def quantiles(histogram: str, by: str = "") -> dict[str, str]:
    """The median and the 99th percentile, by legend."""
    of = f"{{{{{by}}}}} " if by else ""
    return {f"{of}median": quantile(0.5, histogram, by), f"{of}99th percentile": quantile(0.99, histogram, by)}


def _by(labels: str) -> str:
    return f" by ({labels}) " if labels else ""


# ---- panels


class Panel(msgspec.Struct):
    """One picture. `queries`: by legend, in which `{{label}}` is that label's value. `unit`: one of Grafana's unit ids.

    `red_from`, `red_below`: where a figure is bad. `words`: what to show in place of numbers, each with its colour.
    `shows`: `value`, or `name` for the legend alone.
    """

    title: str
    queries: Mapping[str, str]
    unit: str = "short"
    about: str = ""
    kind: Kind = "timeseries"
    width: int = 8
    red_from: float | None = None
    red_below: float | None = None
    words: Mapping[str, tuple[str, str]] = {}
    shows: Literal["value", "name"] = "value"
    stacked: bool = False


class Row(msgspec.Struct):
    """A heading and the panels below it."""

    title: str
    panels: Sequence[Panel]


class Dashboard(msgspec.Struct):
    """A page of Grafana; `name` is its file's, and a part of its address."""

    name: str
    title: str
    about: str
    rows: Sequence[Row]

    def json(self) -> str:
        """The file."""
        return msgspec.json.format(msgspec.json.encode(self._form()), indent=2).decode() + "\n"

    def _form(self) -> dict[str, Any]:
        return {
            "uid": f"bus-{self.name}",
            "title": f"Message bus: {self.title}",
            "description": self.about,
            "tags": ["message-bus"],
            "schemaVersion": SCHEMA,
            "editable": True,
            "graphTooltip": 1,
            "refresh": "30s",
            "timezone": "browser",
            "time": {"from": "now-1h", "to": "now"},
            "links": [_LINKS],
            "annotations": {"list": [_RESTARTS]},
            "templating": {
                "list": [_SOURCES, _variable("job", "Job", ""), _variable("instance", "Instance", 'job=~"$job"')]
            },
            "panels": list(self._placed()),
        }

    def _placed(self) -> Iterator[dict[str, Any]]:
        """Row by row, from left to right, a line further down when the width is used up."""
        number = y = 0
        for row in self.rows:
            number += 1
            yield {"id": number, **_heading(row.title, y)}
            x, y, tallest = 0, y + 1, 0
            for panel in row.panels:
                height = HEIGHTS[panel.kind]
                if x + panel.width > COLUMNS:
                    x, y, tallest = 0, y + tallest, 0
                number += 1
                yield {"id": number, "gridPos": {"x": x, "y": y, "w": panel.width, "h": height}, **_shape(panel)}
                x, tallest = x + panel.width, max(tallest, height)
            y += tallest


def stat(title: str, query: str, unit: str = "short", *, legend: str = "", width: int = 4, **more: Any) -> Panel:
    """One figure, large."""
    return Panel(title, {legend: query}, unit, kind="stat", width=width, **more)


# ---- their form


_LINKS = {
    "type": "dashboards",
    "title": "Message bus",
    "tags": ["message-bus"],
    "asDropdown": True,
    "icon": "external link",
    "includeVars": True,
    "keepTime": True,
    "targetBlank": False,
    "tooltip": "",
    "url": "",
}
_RESTARTS = {
    "name": "Worker starts",
    "datasource": SOURCE,
    "enable": True,
    "hide": False,
    "iconColor": "orange",
    "expr": f"changes({series('bus_process_start_time_seconds')}[{WINDOW}]) > 0",
}
_SOURCES = {
    "name": "datasource",
    "label": "Data source",
    "type": "datasource",
    "query": "prometheus",
    "hide": 0,
    "refresh": 1,
    "multi": False,
    "includeAll": False,
    "skipUrlSync": False,
}


def _variable(name: str, label: str, where: str) -> dict[str, Any]:
    query = f"label_values(bus_build_info{{{where}}}, {name})" if where else f"label_values(bus_build_info, {name})"
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "query": query,
        "hide": 0,
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".+",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "skipUrlSync": False,
    }


def _heading(title: str, y: int) -> dict[str, Any]:
    return {
        "type": "row",
        "title": title,
        "collapsed": False,
        "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1},
        "panels": [],
    }


def _shape(panel: Panel) -> dict[str, Any]:
    targets = [_target(panel, at, legend, query) for at, (legend, query) in enumerate(panel.queries.items())]
    shape: dict[str, Any] = {
        "type": panel.kind,
        "title": panel.title,
        "transparent": False,
        "datasource": SOURCE,
        "targets": targets,
        "options": _options(panel),
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
    }
    return shape | ({"description": panel.about} if panel.about else {})


def _target(panel: Panel, at: int, legend: str, query: str) -> dict[str, Any]:
    form = {"heatmap": "heatmap", "table": "table"}.get(panel.kind, "time_series")
    is_instant = panel.kind == "table"
    return {
        "refId": chr(ord("A") + at),
        "datasource": SOURCE,
        "expr": query,
        "legendFormat": legend,
        "format": form,
        "instant": is_instant,
        "range": not is_instant,
    }


def _options(panel: Panel) -> dict[str, Any]:
    if panel.kind == "stat":
        return {
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "colorMode": "value",
            "graphMode": "none" if panel.words or panel.shows == "name" else "area",
            "justifyMode": "auto",
            "orientation": "auto",
            "textMode": panel.shows,
        }
    if panel.kind == "timeseries":
        return {
            "legend": {"calcs": [], "displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    if panel.kind == "heatmap":
        return {
            "calculate": False,
            "cellGap": 1,
            "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64, "reverse": False},
            "legend": {"show": True},
            "showValue": "never",
            "tooltip": {"show": True, "yHistogram": False},
            "yAxis": {"unit": panel.unit},
        }
    return {"showHeader": True, "frameIndex": 0}


def _defaults(panel: Panel) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "thresholds": _thresholds(panel)}
    if panel.kind == "timeseries":
        defaults |= {"color": {"mode": "palette-classic"}, "custom": _drawn(panel)}
        if panel.unit != "percentunit":
            defaults["min"] = 0
    if panel.words:
        texts = {value: {"text": text, "color": colour} for value, (text, colour) in panel.words.items()}
        defaults["mappings"] = [{"type": "value", "options": texts}]
    return defaults


def _thresholds(panel: Panel) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"value": None, "color": "green"}]
    if panel.red_below is not None:
        steps = [{"value": None, "color": "red"}, {"value": panel.red_below, "color": "green"}]
    if panel.red_from is not None:
        steps.append({"value": panel.red_from, "color": "red"})
    return {"mode": "absolute", "steps": steps}


def _drawn(panel: Panel) -> dict[str, Any]:
    drawn: dict[str, Any] = {"drawStyle": "line", "lineWidth": 1, "fillOpacity": 10, "showPoints": "never"}
    if panel.stacked:
        drawn |= {"stacking": {"mode": "normal", "group": "A"}, "fillOpacity": 40}
    if panel.red_from is not None or panel.red_below is not None:
        drawn["thresholdsStyle"] = {"mode": "dashed"}
    return drawn
