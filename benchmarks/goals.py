"""What is required of the bus, line by line, and what came out: ratios to peers, and figures that stand alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median

from benchmarks.runs import Result

HIGHER = ("per_second", "handshakes_per_second")
"""Figures of which more is better; of all others less is."""


@dataclass(frozen=True)
class Goal:
    """`figure` of `ours` at `question` against `factor` times the same of `peer`, or against `factor` itself.

    Of a rate at least that much is required, of all else at most.
    """

    question: str
    ours: str
    factor: float
    peer: str = ""
    figure: str = "per_second"

    @property
    def required(self) -> str:
        """In words."""
        sign = "≥" if self.figure in HIGHER else "≤"
        unit = UNITS[self.figure]
        return f"{sign} {self.factor:g} × {self.peer}" if self.peer else f"{sign} {self.factor:,g} {unit}".rstrip()

    def came_out(self, results: Sequence[Result]) -> float | None:
        """The median of the ratios round by round, or of the figure; None when it was not measured."""
        ours = self._of(self.ours, results)
        if not self.peer:
            return median(ours.values()) if ours else None
        theirs = self._of(self.peer, results)
        ratios = [ours[number] / theirs[number] for number in ours if theirs.get(number)]
        return median(ratios) if ratios else None

    def by_cpu(self, results: Sequence[Result]) -> float | None:
        """The ratio that the processor time of one message gives: it hardly moves when others use the machine."""
        if not self.peer or self.figure != "per_second":
            return None
        return replace(self, ours=self.peer, peer=self.ours, figure="server_us_per_message").came_out(results)

    def met(self, value: float) -> bool:
        """Whether that is enough."""
        return value >= self.factor if self.figure in HIGHER else value <= self.factor

    def _of(self, system: str, results: Sequence[Result]) -> dict[int, float]:
        return {
            result.round: result.figures[self.figure]
            for result in results
            if (result.question, result.system) == (self.question, system) and self.figure in result.figures
        }


UNITS = {
    "per_second": "/s",
    "handshakes_per_second": "handshakes/s",
    "p50_us": "µs",
    "p99_us": "µs",
    "kib_per_connection": "KiB",
    "slowest_probe_ms": "ms for the slowest probe",
    "probes_failed": "probes without an answer",
    "hop_ms": "ms",
    "server_us_per_message": "µs",
}

WORDS = {"p50_us": "p50", "p99_us": "p99", "server_us_per_message": "CPU a delivery", "hop_ms": "p50"}


def against(question: str, ours: str, **factors: float) -> list[Goal]:
    """Rates against several peers; an underscore in a name stands for what a keyword can't have."""
    return [Goal(question, ours, factor, peer=PEERS[peer]) for peer, factor in factors.items()]


PEERS = {
    "nats": "nats-ws",
    "redis": "redis-pubsub",
    "uws": "uws",
    "nchan": "nchan",
    "socket_io": "socket.io",
    "fastapi": "fastapi",
    "c": "c-reference",
    "jetstream_sync": "jetstream-sync",
    "jetstream": "jetstream",
    "rabbitmq": "rabbitmq-durable",
    "rabbitmq_stomp": "rabbitmq-stomp",
}


def idle_goals(question: str) -> list[Goal]:
    """Small, quick to connect, and never in the way of a stranger's probe."""
    return [
        Goal(question, "bus", 4, figure="kib_per_connection"),
        Goal(question, "bus", 1000, figure="handshakes_per_second"),
        Goal(question, "bus", 0, figure="probes_failed"),
    ]


FEW_KEPT = "bus with 10,000 kept"

GOALS = (
    *against("fanout100-w64", "bus", nats=1.5, redis=1.2, uws=10, nchan=25, socket_io=35, fastapi=35),
    *against("fanout1000-w64", "bus", nats=2, redis=1.3, uws=10, nchan=25, socket_io=35, fastapi=35),
    *against("fanout100-w16", "bus-ephemeral", uws=0.9),
    *against("fanout1000-w1", "bus-ephemeral", c=0.8, uws=0.95, nats=1.5),
    *against("one-to-one", "bus-ephemeral", uws=1, nchan=3, socket_io=4),
    *against("one-to-one-kept", "bus", jetstream_sync=10, rabbitmq=10, rabbitmq_stomp=10),
    Goal("ingest", "bus", 120_000),
    *against("ingest", "bus", jetstream_sync=25, rabbitmq=8, rabbitmq_stomp=8, jetstream=0.4),
    Goal("ingest64", "bus", 30_000),
    Goal("ingest64", "bus", 5_000, figure="p99_us"),
    *against("ingest64", "bus", jetstream_sync=10),
    Goal("post64", "bus", 20_000),
    *against("post64", "bus", fastapi=3),
    Goal("batch100-8", "bus", 120_000),
    *against("sse100", "bus", nchan=10, fastapi=15),
    *against("sse1000", "bus", nchan=10, fastapi=15),
    *idle_goals("idle10000"),
    *idle_goals("idle10000-sse"),
    Goal("pingpong", "bus-ephemeral", 1.5, peer="c-reference", figure="p50_us"),
    Goal("hop", "bus-2-workers", 0.3, figure="hop_ms"),
    Goal("fanout100-w64", "bus-2-workers", 1.2, peer="bus", figure="server_us_per_message"),
    Goal("kept-ingest", "bus", 0.9, peer=FEW_KEPT),
    Goal("kept-fanout", "bus", 0.9, peer=FEW_KEPT),
)


def table(results: Sequence[Result], *, shown: Callable[[float], str]) -> str:
    """A Markdown table: a line a goal."""
    lines = ["| question | of | required | came out | met | by CPU |", "| --- | --- | --- | --- | --- | --- |"]
    for goal in GOALS:
        value, by_cpu = goal.came_out(results), goal.by_cpu(results)
        what = f"{goal.ours}, {WORDS[goal.figure]}" if goal.figure in WORDS else goal.ours
        came_out, met = "not measured", "–"
        if value is not None:
            came_out = f"{value:.2f} ×" if goal.peer else shown(value)
            met = "yes" if goal.met(value) else "**no**"
        cost = f"{by_cpu:.2f} ×" if by_cpu else ""
        lines.append(f"| {goal.question} | {what} | {goal.required} | {came_out} | {met} | {cost} |")
    return "\n".join(lines)
