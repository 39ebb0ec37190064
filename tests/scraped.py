"""What a scrape of a server says, read by prometheus_client's own parsers, which refuse what is not in order."""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from bus.testing import BusServer, eventually
from tests.stored import side_folder

Labels = frozenset[tuple[str, str]]
OPENMETRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}


class Scraped:
    """One scrape. `types` by family; `series` holds each sample's value by name and labels."""

    def __init__(self, families: Iterable[Any], text: str) -> None:
        self.text = text
        self.types: dict[str, str] = {}
        self.help: dict[str, str] = {}
        self.series: dict[tuple[str, Labels], float] = {}
        for family in families:
            self.types[family.name] = family.type
            self.help[family.name] = family.documentation
            for sample in family.samples:
                key = (sample.name, frozenset(sample.labels.items()))
                assert key not in self.series, f"{key} is there twice."
                self.series[key] = sample.value

    def value(self, name: str, **labels: str) -> float:
        """The value of one series."""
        return self.series[name, frozenset((key.rstrip("_"), value) for key, value in labels.items())]

    def total(self, name: str) -> float:
        """The sum of all series of a name."""
        return sum(value for (found, _), value in self.series.items() if found == name)

    def rising(self) -> dict[tuple[str, Labels], float]:
        """All samples that may only rise."""
        rises = {
            name + suffix
            for name, kind in self.types.items()
            for suffix in {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}.get(kind, ())
        }
        return {key: value for key, value in self.series.items() if key[0] in rises}

    def check_histograms(self) -> None:
        """Buckets are cumulative, and the last one is the count."""
        buckets: dict[tuple[str, Labels], dict[float, float]] = defaultdict(dict)
        for (name, labels), value in self.series.items():
            if name.endswith("_bucket"):
                rest = frozenset((key, text) for key, text in labels if key != "le")
                buckets[name.removesuffix("_bucket"), rest][float(dict(labels)["le"])] = value
        assert buckets
        for (name, labels), found in buckets.items():
            counts = [found[bound] for bound in sorted(found)]
            assert counts == sorted(counts), f"{name} is not cumulative."
            assert found[math.inf] == self.series[name + "_count", labels]


def scrape(server: BusServer, *, openmetrics: bool = False) -> Scraped:
    """Scrape a server, by whichever worker answers, and check what holds for every scrape."""
    answer = server.call("GET", "/metrics", headers=OPENMETRICS if openmetrics else {}, timeout_seconds=60)
    assert answer.status == 200, answer
    expected = "application/openmetrics-text; version=1.0.0" if openmetrics else "text/plain; version=0.0.4"
    assert answer.headers["content-type"].startswith(expected)
    parse = parse_openmetrics if openmetrics else parse_text
    found = Scraped(parse(answer.body), answer.body)
    found.check_histograms()
    return found


def assert_nothing_fell(before: Scraped, after: Scraped) -> None:
    """Every counter is there again, and none is lower."""
    late = after.rising()
    for key, value in before.rising().items():
        assert late[key] >= value - 1e-9 * abs(value), f"{key} fell from {value} to {late[key]}."


def moved(server: BusServer, act: Callable[[], object], expected: dict[str, float]) -> None:
    """Check that an act moves these series by these amounts: written as PromQL has them, `x` or `x{label="value"}`."""
    before = settled(server)
    act()

    def changes() -> dict[str, float]:
        after = scrape(server)
        return {text: _read(after, text) - _read(before, text) for text in expected}

    # What other workers count shows a second later.
    with contextlib.suppress(TimeoutError):
        eventually(lambda: changes() == pytest.approx(expected))
    assert changes() == pytest.approx(expected)


def _read(found: Scraped, text: str) -> float:
    metric, _, labels = text.rstrip("}").partition("{")
    return found.value(metric, **dict(re.findall(r'(\w+)="([^"]*)"', labels)))


def settled(server: BusServer) -> Scraped:
    """A scrape that knows all that any worker has counted until now."""
    folder = side_folder(server)
    now = time.time()

    def all_told() -> bool:
        samples = list(folder.glob("metrics-*.msgpack"))
        return len(samples) == server.workers and all(sample.stat().st_mtime > now for sample in samples)

    eventually(all_told, within_seconds=30, what="a new sample of every worker")
    return scrape(server)
