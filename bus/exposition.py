"""Blocks of figures as text that a Prometheus reads, in the classic format and in OpenMetrics, by prometheus_client."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from bus.metrics import Block, Number, Pairs

OPENMETRICS = "application/openmetrics-text"

_number: Callable[[float], str] = floatToGoString
_classic: Callable[[Collector], bytes] = generate_latest
_openmetrics: Callable[[Collector], bytes] = openmetrics.generate_latest


class Exposition(Collector):
    """What a scrape shows. Iterates over the blocks each time that it is collected."""

    def __init__(self, blocks: Iterable[Block]) -> None:
        self._blocks = blocks

    def collect(self) -> Iterator[Metric]:
        """The families, as prometheus_client has them."""
        return map(_family, self._blocks)

    def text(self, accept: str = "") -> tuple[bytes, str]:
        """The text and its Content-Type, as an Accept header asks for: OpenMetrics 1, or else the classic format."""
        if _names_openmetrics(accept):
            return _openmetrics(self), openmetrics.CONTENT_TYPE_LATEST
        return _classic(self), CONTENT_TYPE_PLAIN_0_0_4


def quantile(counts: list[Number], bounds: tuple[float, ...], q: float) -> float | None:
    """The q-quantile of a histogram, evenly spread inside its bucket, as `histogram_quantile` has it; None when it is empty.

    What is beyond the last bound counts as that bound.
    """
    rank = q * sum(counts)
    if not rank:
        return None
    below = 0.0
    seen: float = 0
    for count, bound in zip(counts, bounds, strict=False):
        if count and seen + count >= rank:
            return below + (bound - below) * (rank - seen) / count
        seen += count
        below = bound
    return below


def _names_openmetrics(accept: str) -> bool:
    """Whether OpenMetrics is asked for: in version 1, or in none that is named. prometheus_client's own reading of the
    header raises TypeError for a version that is no number (0.26)."""
    for each in accept.split(","):
        kind, *parameters = (part.strip().lower() for part in each.split(";"))
        versions = [part.removeprefix("version=") for part in parameters if part.startswith("version=")]
        if kind == OPENMETRICS and all(version.partition(".")[0] == "1" for version in versions):
            return True
    return False


def _family(block: Block) -> Metric:
    name = block.name.removesuffix("_total") if block.kind == "counter" else block.name
    metric = Metric(name, block.help or block.name, block.kind)
    add = {"histogram": _histogram, "summary": _summary}.get(block.kind, _plain)
    for pairs, value in block.series.items():
        add(metric, block, pairs, value)
    return metric


def _plain(metric: Metric, block: Block, pairs: Pairs, value: list[Number]) -> None:
    metric.add_sample(metric.name + ("_total" if block.kind == "counter" else ""), dict(pairs), value[0])


def _histogram(metric: Metric, block: Block, pairs: Pairs, value: list[Number]) -> None:
    labels = dict(pairs)
    total: Number = 0
    for count, bound in zip(value, (*block.bounds, math.inf), strict=False):
        total += count
        metric.add_sample(metric.name + "_bucket", {**labels, "le": _number(bound)}, total)
    metric.add_sample(metric.name + "_count", labels, total)
    _add_sum(metric, labels, value[-1], rises=block.bounds[0] >= 0)


def _summary(metric: Metric, block: Block, pairs: Pairs, value: list[Number]) -> None:
    labels = dict(pairs)
    for q, quantile_value in zip(block.bounds, value[2:], strict=False):
        metric.add_sample(metric.name, {**labels, "quantile": _number(q)}, quantile_value)
    metric.add_sample(metric.name + "_count", labels, value[0])
    _add_sum(metric, labels, value[1])


def _add_sum(metric: Metric, labels: dict[str, str], value: Number, *, rises: bool = True) -> None:
    """A sum that can fall, since values below 0 are in it, is none that a Prometheus may take for a counter."""
    if rises and value >= 0:
        metric.add_sample(metric.name + "_sum", labels, value)
