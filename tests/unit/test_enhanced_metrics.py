"""`MetricsCollector` alone: the documented verbs, refusals, true quantiles, bounded memory, and a valid exposition."""

from __future__ import annotations

import contextlib
import io
import math
import random
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import gevent
import numpy as np
import pytest
from flask import Flask
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from bus import window
from bus.settings import ROOT
from enhanced_metrics import MAX_SERIES, MAX_SNAPSHOTS, MAX_VALUES, MetricsCollector

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def snippet(label: str, **names: Any) -> dict[str, Any]:
    """Run what docs/metrics.md prints under this label; returns its names."""
    page = (ROOT / "docs" / "metrics.md").read_text()
    found = re.search(rf"^```python {label}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert found is not None
    exec(found[1], names)
    return names


def shown(metrics: MetricsCollector) -> Series:
    """Every sample of the exposition, as prometheus_client's own parser reads it."""
    text = metrics.get_prometheus_metrics()
    assert text.endswith("\n")
    families = list(text_string_to_metric_families(text))
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def value(series: Series, name: str, **labels: str) -> float:
    return series[name, frozenset(labels.items())]


class Clock:
    """A clock that goes when it is told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# ---- as documented


def test_the_guides_example_runs_as_printed() -> None:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        found = snippet("guide")
    assert said.getvalue() == "P50: 45.20ms\nP90: 45.20ms\nP99: 45.20ms\n"
    series = shown(found["metrics"])
    assert value(series, "messages_sent_total", **{"from": "code", "to": "browser"}) == 1
    assert value(series, "active_connections", client="browser") == 5
    assert value(series, "active_connections") == 1
    assert value(series, "message_size_bytes_bucket", le="1000.0") == 0
    assert value(series, "message_size_bytes_bucket", le="10000.0") == 1
    assert value(series, "request_duration_ms", quantile="0.99") == 45.2


def test_the_short_example_runs_as_printed() -> None:
    stats = snippet("short")["stats"]
    assert (stats["count"], stats["avg"]) == (1, 45.2)
    assert set(stats) == {"count", "sum", "avg", "min", "max", "quantiles"}
    assert set(stats["quantiles"]) >= {0.5, 0.9, 0.99}


def test_the_documented_route_serves_the_metrics() -> None:
    app, metrics = Flask("alone"), snippet("short")["metrics"]
    snippet("route", app=app, metrics=metrics)
    answer = app.test_client().get("/metrics")
    assert answer.content_type.startswith("text/plain; version=0.0.4")
    assert answer.text == metrics.get_prometheus_metrics()


def test_run_as_a_program_it_shows_its_example() -> None:
    done = subprocess.run([sys.executable, "enhanced_metrics.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    text, _, quantiles = done.stdout.partition("\nP50")
    assert list(text_string_to_metric_families(text))
    assert quantiles == ": 50.50ms\nP90: 90.10ms\nP99: 99.01ms\n"


# ---- what is shown is valid


HOSTILE = ['a"b', "a\\b", "a\nb", "a,b", "{}", "שלום", "\ud800", "", " ", 'x="1"} 5\n# TYPE y gauge']


@pytest.mark.parametrize("hostile", HOSTILE)
def test_label_values_and_help_are_escaped(hostile: str) -> None:
    metrics = MetricsCollector()
    metrics.counter("calls", f"help {hostile}").inc(labels={"who": hostile})
    metrics.histogram("sizes", [1], f"help {hostile}").observe(1, labels={"who": hostile})
    metrics.summary("times", f"help {hostile}").observe(1, labels={"who": hostile})
    text = hostile.encode(errors="replace").decode()
    series = shown(metrics)
    assert value(series, "calls_total", who=text) == 1
    assert value(series, "sizes_bucket", who=text, le="+Inf") == 1
    assert value(series, "times_count", who=text) == 1


def test_help_stands_with_every_type() -> None:
    metrics = MetricsCollector()
    metrics.counter("a", "help a").inc()
    metrics.gauge("b", "help b").set(1)
    metrics.histogram("c", help_text="help c").observe(1)
    metrics.summary("d", help_text="help d").observe(1)
    lines = metrics.get_prometheus_metrics().splitlines()
    assert [line for line in lines if line.startswith("# HELP")] == [
        "# HELP a_total help a",
        "# HELP b help b",
        "# HELP c help c",
        "# HELP d help d",
    ]
    assert [line for line in lines if line.startswith("# TYPE")] == [
        "# TYPE a_total counter",
        "# TYPE b gauge",
        "# TYPE c histogram",
        "# TYPE d summary",
    ]


@given(st.lists(st.floats(-1e6, 1e6)), st.lists(st.floats(0, 1e6), min_size=1, max_size=8))
@settings(deadline=None, max_examples=50)
def test_buckets_are_cumulative_and_the_last_one_counts_all(values: list[float], buckets: list[float]) -> None:
    metrics = MetricsCollector()
    histogram = metrics.histogram("sizes", buckets)
    for each in values:
        histogram.observe(each)
    found = histogram.get()
    assert found["count"] == len(values)
    for bound, count in found["buckets"].items():
        assert count == sum(each <= bound for each in values)
    if values:
        series = shown(metrics)
        assert value(series, "sizes_bucket", le="+Inf") == value(series, "sizes_count") == len(values)


def test_labels_that_look_alike_are_different_series() -> None:
    counter = MetricsCollector().counter("calls")
    counter.inc(labels={"a": "1,b=2"})
    counter.inc(2, labels={"a": "1", "b": "2"})
    assert (counter.get({"a": "1,b=2"}), counter.get({"b": "2", "a": "1"})) == (1, 2)


def test_sums_that_may_fall_are_not_shown_as_if_they_could_not() -> None:
    metrics = MetricsCollector()
    metrics.histogram("degrees", [-10, 0, 10]).observe(-5)
    assert ("degrees_sum", frozenset()) not in shown(metrics)


# ---- what is refused


@pytest.mark.parametrize("amount", [-1, -0.001, math.nan, math.inf, 10**400, "1", None])
def test_a_counter_takes_only_what_lets_it_rise(amount: Any) -> None:
    counter = MetricsCollector().counter("calls")
    with pytest.raises(ValueError, match=r"number|rises"):
        counter.inc(amount)
    assert counter.get() == 0


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, "1", None])
def test_what_is_no_finite_number_is_refused_everywhere(wrong: Any) -> None:
    metrics = MetricsCollector()
    takers: list[Callable[[Any], None]] = [
        metrics.gauge("a").set,
        metrics.gauge("a").inc,
        metrics.histogram("b").observe,
        metrics.summary("c").observe,
    ]
    for take in takers:
        with pytest.raises(ValueError, match="no finite number"):
            take(wrong)


def test_numbers_of_other_libraries_are_numbers() -> None:
    gauge = MetricsCollector().gauge("a")
    gauge.set(np.float32(1.5))
    gauge.inc(np.int64(2))
    assert gauge.get() == 3.5


def test_a_name_belongs_to_one_type() -> None:
    metrics = MetricsCollector()
    assert metrics.counter("x") is metrics.counter("x")
    with pytest.raises(ValueError, match="counter already"):
        metrics.gauge("x")


@pytest.mark.parametrize(("first", "second"), [("histogram", "x_count"), ("summary", "x_sum"), ("counter", "x_total")])
def test_names_whose_series_would_mix_are_refused(first: str, second: str) -> None:
    metrics = MetricsCollector()
    getattr(metrics, first)("x")
    with pytest.raises(ValueError, match="another metric"):
        metrics.gauge(second)


@pytest.mark.parametrize("name", ["", "1a", "a b", "a-b", "a\n", 'a{b="c"}', "é", "a" * 201])
def test_bad_names_are_refused(name: str) -> None:
    metrics = MetricsCollector()
    with pytest.raises(ValueError, match="can't be a metric's name"):
        metrics.counter(name)
    with pytest.raises(ValueError, match="can't be a label"):
        metrics.counter("fine").inc(labels={name: "x"})


@pytest.mark.parametrize(("kind", "label"), [("histogram", "le"), ("summary", "quantile"), ("summary", "__name__")])
def test_labels_of_the_format_itself_are_refused(kind: str, label: str) -> None:
    with pytest.raises(ValueError, match="can't be a label"):
        getattr(MetricsCollector(), kind)("x").observe(1, labels={label: "1"})


def test_a_histogram_keeps_its_buckets() -> None:
    metrics = MetricsCollector()
    first = metrics.histogram("x", [2, 1])
    assert metrics.histogram("x") is first
    assert metrics.histogram("x", [1, 2]) is first
    with pytest.raises(ValueError, match="already"):
        metrics.histogram("x", [1, 3])
    with pytest.raises(ValueError, match="no buckets"):
        metrics.histogram("y", [])


# ---- summaries


@given(
    st.lists(st.floats(-1e9, 1e9, allow_subnormal=False), min_size=1, max_size=300),
    st.lists(st.floats(0, 1), min_size=1, max_size=5),
)
@settings(deadline=None, max_examples=100)
def test_quantiles_are_numpys(values: list[float], quantiles: list[float]) -> None:
    summary = MetricsCollector().summary("x")
    for each in values:
        summary.observe(each)
    stats = summary.get_stats(quantiles)
    for q in quantiles:
        assert stats["quantiles"][q] == pytest.approx(np.quantile(values, q), rel=1e-9, abs=1e-6)
    assert stats["avg"] == pytest.approx(np.mean(values), rel=1e-9, abs=1e-6)
    assert (stats["min"], stats["max"]) == (min(values), max(values))


def test_the_quantiles_of_one_to_a_hundred_are_these() -> None:
    summary = MetricsCollector().summary("x")
    for each in random.sample(range(1, 101), 100):
        summary.observe(each)
    assert summary.get_stats([0.5, 0.99])["quantiles"] == pytest.approx({0.5: 50.5, 0.99: 99.01})


def test_what_is_too_old_counts_no_more_but_totals_only_rise() -> None:
    clock = Clock()
    metrics = MetricsCollector(clock=clock)
    summary = metrics.summary("x", max_age=10)
    summary.observe(100)
    clock.now += 6
    summary.observe(1)
    assert summary.get_stats()["max"] == 100
    clock.now += 6
    assert summary.get_stats()["max"] == 1
    clock.now += 60
    stats = summary.get_stats([0.5])
    assert stats["count"] == 0
    assert math.isnan(stats["quantiles"][0.5])
    series = shown(metrics)
    assert (value(series, "x_count"), value(series, "x_sum")) == (2, 101)


def test_a_summarys_memory_is_bounded_and_the_newest_count() -> None:
    values = window.Window(1e9)
    for each in range(3 * window.MAX_SAMPLES):
        values.add(each, each)
    assert len(values._values) <= 2 * window.MAX_SAMPLES
    assert values.values(0)[0] == 2 * window.MAX_SAMPLES


@pytest.mark.parametrize("q", [-0.1, 1.1, math.nan])
def test_what_is_no_quantile_is_refused(q: float) -> None:
    with pytest.raises(ValueError, match="no quantile"):
        MetricsCollector().summary("x").get_stats([q])


# ---- memory


def test_a_label_has_so_many_values_and_then_others() -> None:
    counter = MetricsCollector().counter("calls")
    for number in range(10_000):
        counter.inc(labels={"client": f"client-{number}"})
    assert len(counter.present()) == MAX_VALUES + 1
    assert counter.get({"client": "other"}) == 10_000 - MAX_VALUES


def test_a_metric_has_so_many_series_and_then_one_for_all_others() -> None:
    metrics = MetricsCollector()
    counter = metrics.counter("calls")
    for number in range(3000):
        counter.inc(labels={f"label_{number}": "x"})
    assert len(counter.present()) == MAX_SERIES + 1
    assert counter.get({"overflow": "true"}) == 3000 - MAX_SERIES
    assert sum(shown(metrics).values()) == 3000


def test_reading_makes_no_series() -> None:
    metrics = MetricsCollector()
    counter, summary = metrics.counter("calls"), metrics.summary("times")
    for number in range(200):
        assert counter.get({"client": str(number)}) == 0
        assert summary.get_stats(labels={"client": str(number)})["count"] == 0
    counter.inc(labels={"client": "new"})
    assert counter.get({"client": "new"}) == 1


# ---- snapshots


def test_snapshots_make_time_series_of_every_type() -> None:
    clock = Clock()
    metrics = MetricsCollector(clock=clock)
    for number in range(3):
        metrics.counter("a").inc()
        metrics.gauge("b").set(number, labels={"x": "y"})
        metrics.histogram("c", [1]).observe(number)
        metrics.summary("d").observe(number)
        snapshot = metrics.take_snapshot()
        clock.now += 60
    assert snapshot["counters"] == {"a": [{"labels": {}, "value": 3}]}
    assert [point["value"] for point in metrics.get_time_series("a", "counter", 60)] == [1, 2, 3]
    assert [point["value"] for point in metrics.get_time_series("a", "counter", 2)] == [2, 3]
    assert [point["labels"] for point in metrics.get_time_series("b", "gauge")] == [{"x": "y"}] * 3
    assert [point["count"] for point in metrics.get_time_series("c", "histogram")] == [1, 2, 3]
    assert [point["max"] for point in metrics.get_time_series("d", "summary")] == [0, 1, 2]
    assert metrics.get_time_series("nothing", "summary") == []
    with pytest.raises(ValueError, match="no type"):
        metrics.get_time_series("a", "counters")  # type: ignore[arg-type]


def test_the_last_thousand_snapshots_are_kept() -> None:
    metrics = MetricsCollector()
    counter = metrics.counter("a")
    for _ in range(MAX_SNAPSHOTS + 10):
        counter.inc()
        metrics.take_snapshot()
    found = metrics.get_time_series("a", "counter")
    assert [found[0]["value"], found[-1]["value"], len(found)] == [11, MAX_SNAPSHOTS + 10, MAX_SNAPSHOTS]


def test_a_snapshot_does_not_change_any_more() -> None:
    metrics = MetricsCollector()
    histogram = metrics.histogram("c", [1])
    histogram.observe(0)
    before = metrics.take_snapshot()["histograms"]["c"][0]["count"]
    histogram.observe(0)
    assert metrics.get_time_series("c", "histogram")[0]["count"] == before


# ---- many at once


def work(metrics: MetricsCollector, number: int, pause: Callable[[], None]) -> None:
    for turn in range(300):
        metrics.counter("calls").inc(labels={"who": str(turn % 7)})
        metrics.gauge("level").inc()
        metrics.histogram("sizes", [1, 2]).observe(turn % 3)
        metrics.summary("times").observe(turn)
        metrics.gauge(f"own_{number}_{turn % 20}").set(turn)
        if turn % 50 == 0:
            shown(metrics)
            metrics.take_snapshot()
            pause()


def check(metrics: MetricsCollector, workers: int) -> None:
    assert sum(series["value"] for series in metrics.counter("calls").present()) == 300 * workers
    assert metrics.gauge("level").get() == 300 * workers
    assert metrics.histogram("sizes").get()["count"] == 300 * workers
    assert metrics.summary("times").get_stats()["count"] == 300 * workers


def test_threads_lose_nothing_of_one_another() -> None:
    metrics = MetricsCollector()
    former = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work, args=(metrics, n, lambda: None)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(former)
    check(metrics, 6)


def test_greenlets_lose_nothing_of_one_another() -> None:
    metrics = MetricsCollector()
    gevent.joinall([gevent.spawn(work, metrics, n, lambda: gevent.sleep(0)) for n in range(6)], raise_error=True)
    check(metrics, 6)
