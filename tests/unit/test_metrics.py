"""The bus's own families: what they are called, how they are filled, and how the samples of several workers are joined."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from bus import metric_files, written
from bus.exposition import Exposition, quantile
from bus.families import ALIASES, FAMILIES, PUSH, Family, counter, gauge, histogram
from bus.metric_files import MetricFiles
from bus.metrics import SAMPLE_SECONDS, Block, Histogram, Metrics, Stopwatch
from bus.written import Written

KINDS = (
    counter("t_events_total", "Events.", kind=("a", "b", "other")),
    counter("t_jumps_total", "Jumps.", across="max"),
    counter("t_cpu_seconds_total", "Time.", across="worker"),
    gauge("t_level", "A level."),
    gauge("t_said", "Said by one.", across="once"),
    histogram("t_seconds", "Times.", (1.0, 2.0)),
)


def unexpected(name: str, error: Exception) -> None:
    raise AssertionError(name) from error


class Worker:
    """A worker of a server that shares a folder."""

    def __init__(self, folder: Path, slot: int) -> None:
        self.metrics = Metrics(KINDS)
        self.files = MetricFiles(folder, slot, lambda: self.metrics.sample(unexpected))

    def leave_sample(self) -> None:
        self.files.sample()()

    def value(self, name: str, **labels: str) -> list[float]:
        self.leave_sample()
        found = {block.name: block for block in self.files.all()}[name]
        return found.series[tuple(labels.items())]


# ---- names


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_family_is_named_as_prometheus_would_have_it(family: Family) -> None:
    assert family.name.startswith("bus_")
    assert family.name.endswith("_total") == (family.kind == "counter")
    for unit in ("_ms", "_milliseconds", "_minutes", "_kb", "_mb", "_percent", "_count", "_sum", "_bucket"):
        assert not family.name.removesuffix("_total").endswith(unit)
    assert family.help.endswith(".")
    assert not {"client", "user", "message", "url", "path_info", "endpoint", metric_files.WORKER} & set(family.labels)
    assert list(family.buckets) == sorted(set(family.buckets))
    for values in family.labels.values():
        assert len(values) == len(set(values)) <= 100


def test_no_two_families_share_a_series() -> None:
    suffixes = {"histogram": ("", "_bucket", "_count", "_sum")}
    names = [family.name + suffix for family in FAMILIES for suffix in suffixes.get(family.kind, ("",))]
    stems = [family.name.removesuffix("_total") for family in FAMILIES]
    assert len(set(names + list(ALIASES))) == len(names) + len(ALIASES)
    assert len(set(stems)) == len(stems)


def test_all_series_are_there_from_the_start_and_are_few() -> None:
    blocks = Metrics().sample(unexpected) + Metrics().sample(unexpected, once=True)
    text = Exposition(blocks).text()[0].decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    assert {block.name for block in blocks} == {family.name for family in FAMILIES}
    assert {sample.value for sample in samples} == {0.0}
    assert len(samples) < 1000


# ---- filling them


def test_a_value_that_was_not_declared_counts_as_other() -> None:
    metrics = Metrics(KINDS)
    for name in ("a", "surprise", "another"):
        metrics.count("t_events_total", name)
    (block,) = [block for block in metrics.sample(unexpected) if block.name == "t_events_total"]
    assert block.series == {(("kind", "a"),): [1], (("kind", "b"),): [0], (("kind", "other"),): [2]}


def test_mistakes_of_the_program_are_told() -> None:
    metrics = Metrics((*KINDS, counter("t_strict_total", "Without other.", kind=("a",))))
    with pytest.raises(KeyError):
        metrics.count("t_nothing_total")
    with pytest.raises(ValueError, match="labels"):
        metrics.count("t_events_total")
    with pytest.raises(ValueError, match="no `other`"):
        metrics.count("t_strict_total", "b")
    with pytest.raises(ValueError, match="declared already"):
        metrics.declare(KINDS[0])
    metrics.detail("parcel", lambda asked, limit: [])
    with pytest.raises(ValueError, match="told already"):
        metrics.detail("parcel", lambda asked, limit: [])


def test_what_is_read_is_added_to_what_is_counted() -> None:
    metrics = Metrics(KINDS)
    metrics.read("t_events_total", lambda: 5, "a")
    metrics.count("t_events_total", "a", by=2)
    (block,) = [block for block in metrics.sample(unexpected) if block.name == "t_events_total"]
    assert block.series[("kind", "a"),] == [7]


def test_a_callable_that_raises_takes_its_own_series_only() -> None:
    metrics = Metrics(KINDS)
    metrics.read("t_events_total", lambda: 1 // 0, "a")
    failed: list[str] = []
    blocks = {block.name: block for block in metrics.sample(lambda name, error: failed.append(name))}
    assert failed == ["t_events_total"]
    assert set(blocks["t_events_total"].series) == {(("kind", "b"),), (("kind", "other"),)}


def test_what_one_says_for_all_is_asked_apart() -> None:
    metrics = Metrics(KINDS)
    metrics.read("t_said", lambda: 3)
    assert "t_said" not in {block.name for block in metrics.sample(unexpected)}
    assert [block.series for block in metrics.sample(unexpected, once=True)] == [{(): [3]}]


def test_a_look_that_fails_is_told_and_all_else_is_shown() -> None:
    metrics = Metrics(KINDS)
    looked: list[int] = []
    failed: list[str] = []
    metrics.prepare(lambda: looked.append(1 // len(looked)))
    metrics.prepare(lambda: looked.append(1))
    metrics.read("t_said", lambda: len(looked))
    blocks = metrics.sample(lambda name, error: failed.append(name), once=True)
    assert [block.series for block in blocks] == [{(): [1]}]
    assert len(failed) == 1
    metrics.sample(unexpected)  # nobody looks for a sample
    assert len(looked) == 1


def test_a_bound_belongs_to_the_bucket_below_it() -> None:
    metrics = Metrics(KINDS)
    for value in (0.5, 1.0, 1.5, 2.0, 2.5):
        metrics.observe("t_seconds", value)
    found = metrics.histogram("t_seconds")
    assert (found.counts, found.sum) == ([2, 2, 1], 7.5)


def test_a_stopwatch_takes_one_time_in_a_while_and_goes_on_when_the_clock_was_set_back() -> None:
    watch, heard = Stopwatch(), []
    assert watch.next_us == math.inf
    found = Metrics(KINDS).histogram("t_seconds")
    watch.start(found)
    now = 10_000_000_000
    assert now >= watch.next_us
    watch.timed(now, heard.append)("answer")
    assert (heard, sum(found.counts)) == (["answer"], 1)
    assert now < watch.next_us <= now + 5000
    watch.look_at_clock(now - 3_600_000_000)
    assert watch.next_us < now


class Writes:
    """Writes to connections of two transports, by a clock that the test turns."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(written.time, "monotonic", lambda: self.now)
        self.ages = {name: Histogram((1.0,)) for name in PUSH}
        self.written = Written()
        self.written.messages |= dict.fromkeys(PUSH, 0)
        self.written.start(self.ages, lambda held: None)

    def turn(self, *transports: str) -> None:
        """A turn of the loop in which these are written to, in this order, as the hub does it."""
        now = self.now = self.now + SAMPLE_SECONDS
        for name in transports:
            self.written.messages[name] += 1
            if now >= self.written.next_look:
                self.written.look(SimpleNamespace(name=name), [SimpleNamespace(stamp_us=0)])  # type: ignore[arg-type, list-item]

    def seen(self) -> list[int]:
        return [sum(self.ages[name].counts) for name in PUSH]


def test_ages_are_told_of_every_transport_though_one_is_always_written_first(monkeypatch: pytest.MonkeyPatch) -> None:
    writes = Writes(monkeypatch)
    for _ in range(100):
        writes.turn("websocket", "websocket", "sse")
    assert writes.seen() == [50, 50]


def test_a_transport_that_falls_silent_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    writes = Writes(monkeypatch)
    writes.turn("websocket", "sse")
    for _ in range(100):
        writes.written.messages["http"] += 1
        writes.turn("websocket")
    websocket, sse = writes.seen()
    assert sse == 0
    assert 99 <= websocket <= 101


# ---- several workers


def test_figures_of_workers_are_joined(tmp_path: Path) -> None:
    one, two = Worker(tmp_path, 0), Worker(tmp_path, 1)
    for number, worker in enumerate((one, two), 1):
        worker.metrics.count("t_events_total", "a", by=number)
        worker.metrics.count("t_jumps_total", by=number)
        worker.metrics.count("t_cpu_seconds_total", by=number)
        worker.metrics.set("t_level", number)
        worker.metrics.observe("t_seconds", number)
        worker.leave_sample()
    for worker in (one, two):
        assert worker.value("t_events_total", kind="a") == [3]
        assert worker.value("t_jumps_total") == [2]
        assert worker.value("t_cpu_seconds_total", worker="0") == [1]
        assert worker.value("t_cpu_seconds_total", worker="1") == [2]
        assert worker.value("t_level") == [3]
        assert worker.value("t_seconds") == [1, 1, 0, 3]


def test_a_successor_counts_on_and_levels_begin_anew(tmp_path: Path) -> None:
    other = Worker(tmp_path, 1)
    for life in range(1, 4):
        worker = Worker(tmp_path, 0)
        worker.metrics.count("t_events_total", "a")
        worker.metrics.count("t_jumps_total")
        worker.metrics.observe("t_seconds", 5)
        worker.metrics.set("t_level", 7)
        worker.leave_sample()
        assert other.value("t_events_total", kind="a") == [life]
        assert other.value("t_jumps_total") == [life]
        assert other.value("t_seconds") == [0, 0, life, 5 * life]
        assert other.value("t_level") == [7]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics-0.msgpack", "metrics-1.msgpack"]


def test_levels_of_a_worker_that_is_gone_go_and_its_counts_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, here = Worker(tmp_path, 0), Worker(tmp_path, 1)
    gone.metrics.count("t_events_total", "a")
    gone.metrics.set("t_level", 7)
    gone.leave_sample()
    assert here.value("t_level") == [7]
    later = metric_files.time.monotonic() + metric_files.STALE_SECONDS
    monkeypatch.setattr(metric_files.time, "monotonic", lambda: later)
    assert here.value("t_level") == [0]
    assert here.value("t_events_total", kind="a") == [1]


@pytest.mark.parametrize("data", [b"", b"garbage", b"\x92\xc0"])
def test_a_file_of_another_form_is_passed_over(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "metrics-0.msgpack").write_bytes(data)
    (tmp_path / "metrics-1.msgpack").write_bytes(data)
    worker = Worker(tmp_path, 0)
    worker.metrics.count("t_events_total", "a")
    assert worker.value("t_events_total", kind="a") == [1]


def test_reading_the_account_changes_nothing(tmp_path: Path) -> None:
    former = Worker(tmp_path, 0)
    former.metrics.count("t_events_total", "a")
    former.leave_sample()
    other, worker = Worker(tmp_path, 1), Worker(tmp_path, 0)
    other.metrics.count("t_events_total", "a")
    other.leave_sample()
    assert [worker.value("t_events_total", kind="a") for _ in range(3)] == [[2]] * 3


def test_series_that_only_others_have_are_told_too_and_quantiles_of_one_only(tmp_path: Path) -> None:
    blocks = [Block("t_times", "summary", "Times.", {(): [2, 3.0, 1.5]}, (0.5,))]
    one, two = (
        MetricFiles(tmp_path, slot, lambda: [Block(**{f: getattr(b, f) for f in b.__struct_fields__}) for b in blocks])
        for slot in (0, 1)
    )
    one.sample()()
    assert one.all()[0].series == {(): [2, 3.0, 1.5]}
    two.sample()()
    assert one.all()[0].series == {(): [4, 6.0]}
    empty = MetricFiles(tmp_path, 2, list)
    assert empty.all()[0].series == {(): [4, 6.0]}


# ---- exposition


def test_openmetrics_takes_every_sort_of_block() -> None:
    pairs = (("who", 'a"b\\c\nd'),)
    blocks = [
        Block("t_a_total", "counter", "A \\ b\nc.", {pairs: [1]}),
        Block("t_b", "gauge", "", {pairs: [-1.5], (): [2]}),
        Block("t_c", "histogram", "C.", {pairs: [1, 0, 2, 9.0]}, (1.0, 2.0)),
        Block("t_d", "summary", "D.", {pairs: [3, 6.0, math.nan]}, (0.5,)),
        Block("t_e", "untyped", "E.", {(): [5]}),
    ]
    text, content_type = Exposition(blocks).text("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert text.endswith(b"# EOF\n")
    samples = {s.name: s for family in parse_openmetrics(text.decode()) for s in family.samples}
    assert samples["t_a_total"].labels == dict(pairs)
    assert samples["t_c_count"].value == 3


@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text",
        "Application/OpenMetrics-Text ; version=1.0.0 ; charset=utf-8",
        "text/plain;version=0.0.4;q=0.3, application/openmetrics-text;version=1.0.0;q=0.5, */*;q=0.1",
    ],
)
def test_openmetrics_is_for_who_names_it(accept: str) -> None:
    assert Exposition([]).text(accept) == (b"# EOF\n", "application/openmetrics-text; version=1.0.0; charset=utf-8")


@pytest.mark.parametrize(
    "accept",
    [
        *("", "*/*", "text/plain", "text/plain; version=1.0.0; escaping=allow-utf-8", ";;,,=", "\r\nversion=2"),
        *(
            f"{kind}; version={odd}"
            for kind in ("application/openmetrics-text", "text/plain")
            for odd in ("x", "2.0.0", "")
        ),
    ],
)
def test_everybody_else_gets_the_classic_format_whatever_they_ask_for(accept: str) -> None:
    assert Exposition([]).text(accept) == (b"", "text/plain; version=0.0.4; charset=utf-8")


def test_a_quantile_of_buckets_lies_where_prometheus_puts_it() -> None:
    assert quantile([0, 0, 0], (1.0, 2.0), 0.5) is None
    assert quantile([10, 0, 0], (1.0, 2.0), 0.5) == 0.5
    assert quantile([5, 5, 0], (1.0, 2.0), 0.75) == 1.5
    assert quantile([0, 0, 9], (1.0, 2.0), 0.99) == 2.0
