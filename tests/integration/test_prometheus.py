"""A real Prometheus scrapes a bus with four workers: the metrics, the rules, and what each panel of each dashboard asks."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus.testing import BusServer, eventually
from tests.conftest import require
from tests.monitoring import JOB, ROOT, RULES, Prometheus, Traffic, filled_in, queries

pytestmark = [pytest.mark.full, pytest.mark.one_node("each counts for itself")]

WINDOW = "5s"
"""Rates are over so long: each second there is a scrape."""

CANARY_SECONDS = 30
"""The slowest of what is shown: the first canary of a worker, the socket that is not read."""

FAILURES_OF_THE_STORE = "bus_db_errors_total"
"""What no load brings about."""

FORMER_NAME = "request_duration_ms metric names should not contain abbreviated units"
"""What promtool says of a name that version 1.2 had."""


@pytest.fixture(scope="module")
def busy_server() -> Iterator[BusServer]:
    require("promtool")
    with BusServer(workers=4, env=Traffic.ENV) as server, Traffic(server):
        yield server


@pytest.fixture(scope="module")
def prometheus(busy_server: BusServer) -> Iterator[Prometheus]:
    with Prometheus(require("prometheus"), busy_server.port) as running:
        yield running


def promtool(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([require("promtool"), *arguments], input=stdin, capture_output=True, text=True, timeout=60)


# ---- without a server


def test_promtool_accepts_the_rules() -> None:
    checked = promtool("check", "rules", *map(str, sorted(RULES.glob("*.yml"))))
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("file", sorted((RULES / "tests").glob("*.yml")), ids=lambda file: file.stem)
def test_alerts_fire_and_clear(file: Path) -> None:
    tested = promtool("test", "rules", str(file))
    assert tested.returncode == 0, tested.stdout + tested.stderr


# ---- with one


def test_promtool_accepts_the_metrics_under_load(busy_server: BusServer) -> None:
    for _ in range(5):
        checked = promtool("check", "metrics", stdin=busy_server.call("GET", "/metrics").body)
        assert checked.stderr.splitlines() == [FORMER_NAME]


def test_prometheus_scrapes_each_series_once(prometheus: Prometheus) -> None:
    def is_up() -> bool:
        return [line.points[0][1] for line in prometheus.ask(f'up{{job="{JOB}"}}')] == [1]

    eventually(is_up, what="the first scrape")
    (samples,) = prometheus.ask("scrape_samples_scraped")
    (kept,) = prometheus.ask("scrape_samples_post_metric_relabeling")
    assert samples.points[0][1] == kept.points[0][1] < 2000


@pytest.mark.parametrize("query", queries(), ids=lambda query: f"{query.dashboard}-{query.panel}-{query.legend}")
def test_a_panel_shows_something(prometheus: Prometheus, query: tuple[str, str, str, str]) -> None:
    dashboard, panel, _, expression = query
    asked = filled_in(expression, WINDOW)
    if FAILURES_OF_THE_STORE in expression:
        prometheus.ask(asked)  # it is an expression, at least
    else:
        eventually(lambda: prometheus.ask(asked), within_seconds=CANARY_SECONDS, what=f"{dashboard}, {panel}: {asked}")


def documented() -> list[str]:
    """The queries that docs/metrics.md prints."""
    _, _, section = (ROOT / "docs/metrics.md").read_text().partition("## Queries")
    table = [line for line in section.partition("\n## ")[0].splitlines() if line.startswith("|")]
    return [match[1].replace("\\|", "|") for line in table if (match := re.search(r"\| `(.+)` \|$", line))]


@pytest.mark.parametrize("expression", documented())
def test_a_documented_query_is_answered(prometheus: Prometheus, expression: str) -> None:
    eventually(lambda: prometheus.ask(expression), what=expression)


def test_the_rules_can_be_evaluated_and_no_alert_for_operators_fires(prometheus: Prometheus) -> None:
    eventually(lambda: all(rule["health"] == "ok" for rule in prometheus.rules()), what="rules that are well")
    firing = {rule["name"] for rule in prometheus.rules() if rule.get("state") == "firing"}
    assert firing <= {"BusDeadLetters"}  # the load rejects some messages


def test_recorded_figures_are_there(prometheus: Prometheus) -> None:
    names = {rule["name"] for rule in prometheus.rules() if rule["type"] == "recording"}
    for name in names:
        eventually(lambda name=name: prometheus.ask(name), what=name)  # type: ignore[misc]


def test_an_age_is_that_of_the_message_whichever_worker_it_came_by(prometheus: Prometheus) -> None:
    """Once it was the age of 1970, for what came from another worker."""
    years = "sum(bus_end_to_end_seconds_sum) / sum(bus_end_to_end_seconds_count) / (365 * 86400)"
    (line,) = eventually(lambda: prometheus.ask(years), what="an age")
    assert line.points[0][1] < 1
