"""Dashboards, rules and alerts fit together, and ask only for what docs/metrics.md lists."""

from __future__ import annotations

import json
import re
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from tests.monitoring import DASHBOARDS, ROOT, RULES, may_be_empty, panels, queries

RUNBOOKS = "https://github.com/yakub268/claude-multi-agent-bridge/blob/main/docs/runbooks.md#"
OF_EVERY_TARGET = {"job", "instance", "le"}
"""Labels that a scrape or a histogram adds."""


class Metric(NamedTuple):
    """A row of docs/metrics.md: the names of its samples, and for each label its values; none for one that is not listed."""

    samples: set[str]
    kind: str
    labels: dict[str, set[str] | None]


def listed() -> Iterator[Metric]:
    row_of = r"^\| `(bus_\w+)` \| (\w+) \|[^|]*\|([^|]*)\|([^|]*)\|"
    for row in re.findall(row_of, (ROOT / "docs/metrics.md").read_text(), re.MULTILINE):
        name, kind, labels, across = (cell.strip() for cell in row)
        values: dict[str, set[str] | None] = {}
        for part in labels.split(";") if ":" in labels else ():
            label, _, known = part.strip().partition(":")
            values[label] = None if "…" in known else set(known.split())
        if across == "worker":
            values["worker"] = None
        suffixes = ("_bucket", "_count", "_sum") if kind == "histogram" else ("",)
        yield Metric({name + suffix for suffix in suffixes}, kind, values)


METRICS = list(listed())
LISTED = {sample: metric.labels for metric in METRICS for sample in metric.samples}
RISING = {sample for metric in METRICS for sample in metric.samples if metric.kind != "gauge"}


def groups(file: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load((RULES / file).read_text())["groups"]
    return found


ALERTS = [rule for group in groups("alerts.yml") for rule in group["rules"]]
RECORDED = [rule for group in groups("recording_rules.yml") for rule in group["rules"]]
EXPRESSIONS = {
    **{f"{query.dashboard}: {query.panel}, {query.legend}": query.expression for query in queries()},
    **{rule["alert"]: rule["expr"] for rule in ALERTS},
    **{rule["record"]: rule["expr"] for rule in RECORDED},
}
TESTS = [test for file in sorted((RULES / "tests").glob("*.yml")) for test in yaml.safe_load(file.read_text())["tests"]]


def names_in(expression: str) -> set[str]:
    """The metrics that an expression asks for, and the rules that it builds on."""
    return {name for name in re.findall(r"[a-zA-Z_:][\w:]*", expression) if name.startswith("bus_") or ":" in name}


# ---- names


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_expressions_ask_only_for_metrics_that_are_listed(where: str) -> None:
    names = names_in(EXPRESSIONS[where])
    assert names <= {*LISTED, *(rule["record"] for rule in RECORDED)}
    assert names or re.search(r"\b(up|ALERTS|scrape_\w+)\{", EXPRESSIONS[where])


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_expressions_ask_only_for_labels_that_there_are(where: str) -> None:
    expression = EXPRESSIONS[where]
    for name, matchers in re.findall(r"\b(bus_\w+)\{([^}]*)\}", expression):
        for label, operator, value in re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"', matchers):
            if label not in OF_EVERY_TARGET:
                known = LISTED[name][label]
                wanted = value.split("|") if "~" in operator else [value]
                assert known is None or set(wanted) <= known, f"{name} has no {label} {value}"
    of_all = OF_EVERY_TARGET.union(*(LISTED[name] for name in names_in(expression) if name in LISTED))
    for labels in re.findall(r"\b(?:by|on|ignoring) ?\(([^)]*)\)", expression):
        assert {label.strip() for label in labels.split(",")} <= of_all


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_what_only_rises_is_asked_for_its_rate_and_nothing_else_is(where: str) -> None:
    expression = EXPRESSIONS[where]
    assert set(re.findall(r"\b(?:rate|increase)\((bus_\w+)", expression)) == names_in(expression) & RISING


@pytest.mark.parametrize("query", queries(), ids=lambda query: f"{query.dashboard}-{query.panel}")
def test_a_legend_names_only_labels_that_its_query_keeps(query: Any) -> None:
    kept = re.search(r"\bby \(([^)]*)\)", query.expression)
    labels = {label.strip() for label in kept[1].split(",")} if kept else {"instance", "worker"}
    assert set(re.findall(r"\{\{(\w+)\}\}", query.legend)) <= labels


# ---- dashboards


def test_the_dashboards_are_what_the_script_makes() -> None:
    sys.path.insert(0, str(ROOT / "deploy/grafana"))
    try:
        files: Callable[[], dict[Path, str]] = runpy.run_path(str(ROOT / "deploy/grafana/make_dashboards.py"))["files"]
    finally:
        sys.path.pop(0)
    made = files()
    assert {file: file.read_text() for file in DASHBOARDS.glob("*.json")} == made, (
        "Run `python deploy/grafana/make_dashboards.py`."
    )


@pytest.mark.parametrize("file", sorted(DASHBOARDS.glob("*.json")), ids=lambda file: file.stem)
def test_a_dashboard_says_nothing_that_grafana_does_not_know(file: Path) -> None:
    """What Grafana's own library reads and writes again holds all that was there: unknown fields it would leave out."""
    register_default_plugins()
    written = json.loads(file.read_text())
    read = json.loads(JSONEncoder().encode(Dashboard.from_json(written)))
    assert list(lost(written, read)) == []


def lost(given: Any, kept: Any, path: str = "") -> Iterator[str]:
    """Where `kept` lacks something of `given`, or says another thing."""
    if isinstance(given, dict) and isinstance(kept, dict):
        for key, value in given.items():
            yield from lost(value, kept[key], f"{path}/{key}") if key in kept else (f"{path}/{key}",)
    elif isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        for at, (one, other) in enumerate(zip(given, kept, strict=True)):
            yield from lost(one, other, f"{path}[{at}]")
    elif given != kept:
        yield path


@pytest.mark.parametrize("file", sorted(DASHBOARDS.glob("*.json")), ids=lambda file: file.stem)
def test_the_panels_of_a_dashboard_do_not_overlap(file: Path) -> None:
    shown = json.loads(file.read_text())["panels"]
    assert len({panel["id"] for panel in shown}) == len(shown)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in shown)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_panels_that_may_be_empty_are_listed_by_their_names() -> None:
    there = {(file.stem, panel["title"]) for file in DASHBOARDS.glob("*.json") for panel in panels(file)}
    assert may_be_empty() <= there


# ---- alerts


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_whoever_is_woken_needs(rule: dict[str, Any]) -> None:
    assert re.fullmatch(r"Bus([A-Z]+[a-z]*)+", rule["alert"])
    assert re.fullmatch(r"\d+[mh]", rule["for"])
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    assert rule["annotations"]["runbook_url"] == RUNBOOKS + rule["alert"].lower()


def test_every_alert_has_a_section_of_the_runbooks_and_no_other_has() -> None:
    sections = re.findall(r"^## (\w+)$", (ROOT / "docs/runbooks.md").read_text(), re.MULTILINE)
    assert sections == [rule["alert"] for rule in ALERTS]


def test_links_between_runbooks_lead_to_sections() -> None:
    text = (ROOT / "docs/runbooks.md").read_text()
    assert set(re.findall(r"\]\(#(\w+)\)", text)) <= {rule["alert"].lower() for rule in ALERTS}


def test_runbooks_name_panels_and_dashboards_that_there_are() -> None:
    text = re.sub(r"\s+", " ", (ROOT / "docs/runbooks.md").read_text())
    titles = {panel["title"] for file in DASHBOARDS.glob("*.json") for panel in panels(file)}
    assert set(re.findall(r"[Dd]ashboard \*(\w+)\*", text)) <= {file.stem for file in DASHBOARDS.glob("*.json")}
    named = set(re.findall(r'"([^"]+)"', text))
    assert {name for name in named if not any(title.startswith(name) for title in titles)} == set()


def test_the_page_counts_the_alerts() -> None:
    assert f"| {len(ALERTS)} alerts;" in (ROOT / "docs/monitoring.md").read_text()


@pytest.mark.parametrize("name", [rule["alert"] for rule in ALERTS])
def test_every_alert_is_shown_to_be_silent_to_fire_and_to_clear(name: str) -> None:
    cases = [test["alert_rule_test"] for test in TESTS if test["name"].partition(":")[0] == name]
    told = [[bool(moment["exp_alerts"]) for moment in case if moment["alertname"] == name] for case in cases]
    assert [False, True, False] in told
