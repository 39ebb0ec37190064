"""How it goes on: more subscribers, larger messages, more kept, more idle connections beside, more workers.

    python -m benchmarks curves [subscribers size kept idle-beside workers] [--ten-million]

Runs as `python -m benchmarks` does, and its points go to the same page. What is kept is filled in beforehand by the bus
itself, over `POST /api/send/batch` with `DURABILITY=relaxed`; ten million take minutes and about 4 GB. With `--systems
bus-postgresql` it is kept there; see benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import http.client
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import bench, record
from benchmarks.ours import ON_POSTGRESQL, buses, drop_database, fresh_database
from benchmarks.questions import QUESTIONS, Question
from benchmarks.runs import Plan, Result, measured, running
from benchmarks.systems import System

CURVES = ("subscribers", "size", "kept", "idle-beside", "workers")
SUBSCRIBERS = (1, 10, 100, 1_000, 10_000)
SIZES = (64, 256, 1_024, 4_096, 16_384, 65_536, 262_144, 1_000_000)
KEPT = (10_000, 100_000, 1_000_000)
TEN_MILLION = 10_000_000
IDLE_BESIDE = (0, 100, 1_000, 10_000)
COMPARED = ("bus", "bus-ephemeral", "c-reference", "nats-ws", "redis-pubsub", "uws")
FILL_BATCH = 1_000
UNDER_WAY_BYTES = 2 * 1024 * 1024


def point(name: str, kind_of: str, *load: str) -> Question:
    """A question of QUESTIONS with another load."""
    alike = next(question for question in QUESTIONS if question.name == kind_of)
    return dataclasses.replace(alike, name=name, load=load)


def by_subscribers() -> Iterator[tuple[float, Question]]:
    for count in SUBSCRIBERS:
        yield count, point("subscribers", "fanout100-w64", "--subscribers", str(count), "--window", "16")


def by_size() -> Iterator[tuple[float, Question]]:
    """Ten subscribers; at most UNDER_WAY_BYTES under way, so that a large message is not only a long queue."""
    for size in SIZES:
        window = max(1, min(64, UNDER_WAY_BYTES // size))
        around = 40  # the message around its payload, of which `size` is
        yield (
            size,
            point(
                "size", "fanout100-w64", "--subscribers", "10", "--window", str(window), "--size", str(size + around)
            ),
        )


def by_idle() -> Iterator[tuple[float, Question]]:
    for count in IDLE_BESIDE:
        yield (
            count,
            point("idle-beside", "fanout100-w64", "--subscribers", "100", "--window", "64", "--beside", str(count)),
        )


def points(curve: str, systems: Sequence[System], *, plan: Plan, round_number: int) -> Iterator[Result]:
    """The runs of a curve that needs nothing but load."""
    axis = {"subscribers": by_subscribers, "size": by_size, "idle-beside": by_idle}[curve]
    for at, question in axis():
        for system in systems:
            if "deliver" not in system.load or ("idle" not in system.load and curve == "idle-beside"):
                continue
            able = with_idle(system) if curve == "idle-beside" else system
            result = measured(question, able, plan=plan, round_number=round_number)
            yield dataclasses.replace(result, at=at)


def with_idle(system: System) -> System:
    """The same, told how to hold idle connections while it delivers."""
    load = {**system.load, "deliver": [*system.load["deliver"], *system.load["idle"]]}
    return dataclasses.replace(system, load=load)


def workers(arguments: argparse.Namespace, *, plan: Plan, round_number: int) -> Iterator[Result]:
    """One and two worker processes, on as many cores as the servers have."""
    settings = dict(setting.split("=", 1) for setting in arguments.bus_setting)
    question = point("workers", "fanout100-w64", "--subscribers", "100", "--window", "64")
    for count in (1, 2):
        counted = {**settings, "WEB_CONCURRENCY": str(count)}
        for system in buses(arguments.bus_root.resolve(), arguments.bus_command, counted, None)[:2]:
            result = measured(question, system, plan=plan, round_number=round_number)
            yield dataclasses.replace(result, at=count)


# ---- what is kept


@dataclasses.dataclass(frozen=True)
class Log:
    """What is kept: a data folder and, where the bus is on PostgreSQL, a database."""

    folder: Path
    database: str

    @classmethod
    def empty(cls, folder: Path, databases: str) -> Log:
        """A new one; `databases` is the URL of a PostgreSQL, or empty."""
        return cls(folder, fresh_database(databases) if databases else "")

    def under(self, system: System) -> System:
        """The same system on this log. Its folder goes to `measured` and `running`."""
        return also(system, DATABASE_URL=self.database) if self.database else system

    def copy(self) -> Log:
        """Another one with the same in it."""
        folder = self.folder.with_name("copy")
        shutil.copytree(self.folder, folder)
        return Log(folder, fresh_database(self.database, like=self.database) if self.database else "")

    def drop(self) -> None:
        """Remove it."""
        shutil.rmtree(self.folder)
        if self.database:
            drop_database(self.database)


def also(system: System, **settings: str) -> System:
    """The same with further settings."""
    return dataclasses.replace(system, environment=lambda place: {**system.environment(place), **settings})


def fill(system: System, log: Log, count: int, *, plan: Plan) -> None:
    """Let the bus keep `count` messages of about 200 bytes for a client that never comes. Raises RunFailed."""
    message = {"from": "filler", "to": "archive", "payload": {"pad": "x" * 150}}
    body = json.dumps({"messages": [message] * FILL_BATCH})
    with running(also(log.under(system), DURABILITY="relaxed"), plan, folder=log.folder) as (place, _):
        connection = http.client.HTTPConnection("127.0.0.1", place.port, timeout=60)
        for first in range(0, count, FILL_BATCH):
            connection.request("POST", "/api/send/batch", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
            if answer.status != 200 or b'"error"' in text:
                sys.exit(f"The bus refused to keep message {first}: {answer.status} {text[:300]!r}")


def unburdened(system: System) -> System:
    """The same, for runs on one folder: what a run leaves behind does not reach the subscribers of the next."""
    deliver = [part.replace("/ws/bench{g}", "/ws/bench{g}?since=latest") for part in system.load["deliver"]]
    ingest = [part.replace('"to":"bench{g}"', '"to":"sink{g}"') for part in system.load["ingest"]]
    return dataclasses.replace(system, load={**system.load, "deliver": deliver, "ingest": ingest})


def kept(system: System, *, counts: Sequence[int], rounds: int, plan: Plan) -> Iterator[Result]:
    """Ingest and fan-out beside what is kept: each run on the filled log, or, while that is small, on a copy."""
    questions = (
        point("kept-ingest", "ingest", "--groups", "8", "--window", "256"),
        point("kept-fanout", "fanout100-w64", "--subscribers", "100", "--window", "64"),
    )
    databases = os.environ["BENCHMARK_DATABASE_URL"] if system.name == ON_POSTGRESQL else ""
    logs = {
        count: Log.empty(Path(tempfile.mkdtemp(prefix=f"kept-{count}-", dir=plan.scratch)), databases)
        for count in counts
    }
    for count, log in logs.items():
        print(f"{system.name}: keeping {count:,} messages first …", file=sys.stderr, flush=True)
        fill(system, log, count, plan=plan)
    for round_number in range(1, rounds + 1):
        for question in questions:
            for count, filled in logs.items():
                small = count < TEN_MILLION / 10
                log = filled.copy() if small else filled
                quiet = log.under(unburdened(system))
                result = measured(question, quiet, plan=plan, round_number=round_number, folder=log.folder)
                yield dataclasses.replace(result, at=count)
                if small:
                    log.drop()
    for log in logs.values():
        log.drop()


# ---- the command


def read_arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks curves", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("curves", nargs="*", help=f"which of {', '.join(CURVES)}; all without any")
    parser.add_argument("--ten-million", action="store_true", help="keep 10,000,000 messages, too")
    bench.add_common(parser)
    arguments = parser.parse_args(words)
    arguments.rounds = arguments.rounds or 3
    arguments.seconds = arguments.seconds or 2.0
    arguments.warm_seconds = arguments.warm_seconds or 0.5
    arguments.systems = arguments.systems or ",".join(COMPARED)
    arguments.results = arguments.results or record.RESULTS
    return arguments


def all_points(
    arguments: argparse.Namespace, curves: Sequence[str], systems: Sequence[System], *, plan: Plan
) -> Iterator[Result]:
    """Every run of the chosen curves."""
    able = [system for system in systems if not system.missing]
    for round_number in range(1, arguments.rounds + 1):
        for curve in curves:
            if curve == "workers":
                yield from workers(arguments, plan=plan, round_number=round_number)
            elif curve != "kept":
                yield from points(curve, able, plan=plan, round_number=round_number)
    if "kept" in curves:
        counts = (*KEPT, TEN_MILLION) if arguments.ten_million else KEPT
        for system in able:
            if system.name in ("bus", ON_POSTGRESQL):
                yield from kept(system, counts=counts, rounds=arguments.rounds, plan=plan)


def main(words: Sequence[str]) -> None:
    """The command."""
    arguments = read_arguments(words)
    curves = bench.chosen(arguments.curves, CURVES, "curve")
    bench.check_cores(arguments)
    with tempfile.TemporaryDirectory(prefix="bus-bench-", dir=arguments.scratch) as scratch:
        plan, systems = bench.prepare(arguments, Path(scratch))
        head = bench.header(arguments, systems, plan=plan)
        runs = record.Record(arguments.results / record.CURVES, head)
        for result in all_points(arguments, curves, systems, plan=plan):
            runs.add(result)
            print(f"at {result.at:>10,.0f} {bench.progress(result)}", file=sys.stderr, flush=True)
        record.page(arguments.results, QUESTIONS, bench.all_systems())
