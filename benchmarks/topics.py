"""The index of topic subscriptions with 100,000 distinct patterns: what adding, matching and churn take, and the memory.

    python -m benchmarks.topics [--patterns 100000]

One line a question: the median and the 99th percentile of single calls, in microseconds. A third of the patterns have
wildcards. "Cold" is a topic that was not asked for since a wildcard came or went.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterable
from itertools import pairwise

from bus.topics import TopicIndex

CALLS = 20_000


def patterns_of(count: int) -> list[str]:
    """Distinct patterns: two of three exact, one with `*` or `>`."""
    forms = ("site.{0}.sensor.{1}", "site.{0}.sensor.{1}.alarm", "site.{0}.*.{1}", "site.{0}.sensor.{1}.>")
    return [forms[n % 3 if n % 6 < 5 else 3].format(n // 100, n) for n in range(count)]


def timed(call: Callable[..., object], arguments: Iterable[tuple[object, ...]]) -> tuple[float, float]:
    """(median, 99th percentile) of a call, in microseconds."""
    took = []
    for each in arguments:
        began = time.perf_counter_ns()
        call(*each)
        took.append(time.perf_counter_ns() - began)
    return statistics.median(took) / 1000, statistics.quantiles(took, n=100)[98] / 1000


def show(question: str, figures: tuple[float, float]) -> None:
    print(f"{question:<58}{figures[0]:>9.2f} µs{figures[1]:>9.2f} µs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patterns", type=int, default=100_000)
    count = parser.parse_args().patterns
    patterns = patterns_of(count)
    chance = random.Random(1)
    print(f"{count} distinct patterns, {count // 10} subscribers{'median':>26}{'p99':>12}")

    index: TopicIndex[int] = TopicIndex()
    show("add", timed(index.add, ((pattern, n // 10) for n, pattern in enumerate(patterns))))
    topics = [f"site.{n // 100}.sensor.{n}" for n in chance.choices(range(count), k=CALLS)]
    index.add("cold.*", 0)
    show("match, cold: exact and wildcards", timed(index.match, ((topic,) for topic in topics)))
    show("match, remembered", timed(index.match, ((topic,) for topic in topics)))
    show("match of nothing, cold", timed(index.match, ((f"nobody.{n}",) for n in range(CALLS))))

    def churn(pattern: str, topic: str) -> None:
        index.add(pattern, -1)
        index.match(topic)
        index.discard(pattern, -1)

    pairs = list(pairwise(topics))
    show("subscribe exactly, match another, unsubscribe", timed(churn, pairs))
    show("the same with a wildcard", timed(churn, ((f"{pattern}.*", topic) for pattern, topic in pairs)))
    show("a subscriber with 10 patterns leaves", timed(index.drop, ((n,) for n in range(count // 10))))

    crowd: TopicIndex[int] = TopicIndex()
    show("add to one topic that all subscribe to", timed(crowd.add, (("news", n) for n in range(count))))

    def join_and_match() -> None:
        crowd.add("news", 0)
        crowd.match("news")

    show("match it, cold", timed(join_and_match, [()] * 20))

    tracemalloc.start()
    again: TopicIndex[int] = TopicIndex()
    for n, pattern in enumerate(patterns):
        again.add(pattern, n // 10)
    print(
        f"\nmemory of the index, patterns' texts not counted: {tracemalloc.get_traced_memory()[0] / count:.0f} B a pattern"
    )


if __name__ == "__main__":
    main()
