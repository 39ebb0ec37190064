"""Answer questions about speed: start each system afresh, load it, and write tables and plots.

The server has one core, the load another; systems take turns (A B C, A B C, ...) so that what disturbs the machine
disturbs all of them; each run has a new server and an empty store. load.c counts, times and checks every message.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import machine, record
from benchmarks.ours import buses, references
from benchmarks.peers import all_peers
from benchmarks.questions import QUESTIONS, Question
from benchmarks.report import versions
from benchmarks.runs import Plan, Result, calmly_measured
from benchmarks.systems import ROOT, System

QUICK = {"rounds": 1, "seconds": 0.5, "warm_seconds": 0.2, "limit_seconds": 110.0, "patience_seconds": 0.0}
THOROUGH = {"rounds": 3, "seconds": 2.0, "warm_seconds": 0.5, "limit_seconds": 14400.0, "patience_seconds": 20.0}
PARTIAL_RESULTS = ROOT / "build" / "benchmark-results"


def progress(result: Result) -> str:
    """One line for whoever waits."""
    figures = result.figures
    if result.problem:
        said = result.problem
    elif "kib_per_connection" in figures:
        said = (
            f"{figures['kib_per_connection']:.2f} KiB/connection, {figures['handshakes_per_second']:.0f} handshakes/s"
        )
    elif "hop_ms" in figures:
        said = f"{figures['hop_ms']:.3f} ms more across two workers"
    else:
        said = f"{figures['per_second']:,.0f}/s, p99 {figures['p99_us'] / 1000:.2f} ms"
    return f"round {result.round}  {result.question:15} {result.system:19} {said}"


def asked(question: Question, systems: Sequence[System], *, quick: bool) -> list[System]:
    """Who answers a question. When quick: the bus, and of each other program one system at the first that it can answer."""
    able = [
        system
        for system in systems
        if not system.missing
        and question.kind in system.load
        and question.name not in system.beyond
        and (not question.only or system.name in question.only)
    ]
    if not quick:
        return able
    single = one_a_version(systems)
    return [
        system for system in able if system.name == question.ours or (system in single and first_of(system) == question)
    ]


def one_a_version(systems: Sequence[System]) -> list[System]:
    """Of each program but the bus one system."""
    first = {system.version: system for system in reversed(systems)}
    return [system for system in first.values() if not system.name.startswith("bus")]


def first_of(system: System) -> Question:
    """The first question that a system can answer."""
    return next(q for q in QUESTIONS if q.kind in system.load and q.name not in system.beyond)


def rounds(
    questions: Sequence[Question],
    systems: Sequence[System],
    *,
    plan: Plan,
    arguments: argparse.Namespace,
) -> Iterator[Result]:
    """Every run in its order, until the time is up; what is left out then is said."""
    limit = time.monotonic() + arguments.limit_seconds
    for round_number in range(1, arguments.rounds + 1):
        for question in questions:
            for system in asked(question, systems, quick=arguments.quick):
                if time.monotonic() > limit:
                    yield Result(question.name, system.name, round_number, problem="left out, the time was up.")
                    continue
                yield calmly_measured(
                    question,
                    system,
                    plan=plan,
                    round_number=round_number,
                    patience_seconds=arguments.patience_seconds,
                )


def cores(text: str) -> set[int]:
    """A comma-separated list of cores."""
    return {int(core) for core in text.split(",")}


def add_common(parser: argparse.ArgumentParser) -> None:
    """What every command takes that starts servers."""
    parser.add_argument("--systems", help="comma-separated; all without it")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="measured time of a run")
    parser.add_argument("--warm-seconds", type=float, help="time before it")
    parser.add_argument("--server-cores", type=cores, default={0})
    parser.add_argument("--load-cores", type=cores, default={1})
    parser.add_argument(
        "--bus-command",
        default="{python} server_ws.py",
        help="how to start the bus in its checkout; {python} and {port} are filled in",
    )
    parser.add_argument("--bus-setting", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--bus-root", type=Path, default=ROOT, help="the checkout of the bus; the one this is in")
    parser.add_argument("--baseline", type=Path, help="another checkout of the bus to compare with")
    parser.add_argument("--scratch", type=Path, help="folder for stores, on the disk to be measured; a temporary one")
    parser.add_argument(
        "--results", type=Path, help="folder for what is written: results, or build/benchmark-results for a part"
    )


def read_arguments(words: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("questions", nargs="*", help="which to ask; all without any; `list` shows them")
    parser.add_argument("--quick", action="store_true", help="one short round, at most two minutes: a smoke test")
    parser.add_argument("--limit-seconds", type=float, help="start no run after it: 14400, or 110 with --quick")
    parser.add_argument(
        "--patience-seconds",
        type=float,
        help="for each run, how long to wait for calm and to repeat what others disturbed: 20, or 0 with --quick",
    )
    add_common(parser)
    arguments = parser.parse_args(words)
    for name, value in (QUICK if arguments.quick else THOROUGH).items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    partial = arguments.quick or arguments.questions or arguments.systems or arguments.baseline
    arguments.results = arguments.results or (PARTIAL_RESULTS if partial else record.RESULTS)
    return arguments


def chosen(names: Sequence[str], known: Sequence[str], what: str) -> list[str]:
    """The names in the order they are known; exits with a sentence when one is not."""
    if unknown := [name for name in names if name not in known]:
        sys.exit(f"There is no {what} {unknown[0]}; there are: {', '.join(known)}.")
    return [name for name in known if not names or name in names]


def header(arguments: argparse.Namespace, systems: Sequence[System], *, plan: Plan) -> str:
    """What was measured, when, on what."""
    settings = (
        f"{arguments.rounds} round(s) of {plan.seconds:g} s after {plan.warm_seconds:g} s of warming up, "
        f"server on core {sorted(plan.server_cores)}, load on core {sorted(plan.load_cores)}, loopback"
    )
    bus = " ".join([arguments.bus_command, *arguments.bus_setting])
    lines = [
        f"Measured on {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC.",
        "",
        f"- machine: {machine.described(plan.scratch)}",
        f"- settings: {settings}; the bus by `{bus}`",
        versions(systems),
    ]
    lines += [f"- {system.name}: not measured, {system.missing}." for system in systems if system.missing]
    if arguments.rounds < 3:
        lines.append(f"- {arguments.rounds} round(s): this shows that everything works, and no more.")
    return "\n".join(lines)


def all_systems(arguments: argparse.Namespace | None = None, reference: Path = Path("reference")) -> list[System]:
    """Every system, in the order of the tables; without arguments only to be named."""
    if arguments is None:
        arguments = read_arguments([])
    settings = dict(setting.split("=", 1) for setting in arguments.bus_setting)
    ours = buses(arguments.bus_root.resolve(), arguments.bus_command, settings, arguments.baseline)
    return [*ours, *references(reference), *all_peers()]


def prepare(arguments: argparse.Namespace, scratch: Path) -> tuple[Plan, list[System]]:
    """Build the C programs; what is fixed for all runs, and the systems that were chosen."""
    binaries = machine.build(scratch)
    known = all_systems(arguments, binaries["reference"])
    wanted = arguments.systems.split(",") if arguments.systems else []
    names = chosen(wanted, [system.name for system in known], "system")
    plan = Plan(
        load=binaries["load"],
        scratch=scratch,
        server_cores=arguments.server_cores,
        load_cores=arguments.load_cores,
        seconds=arguments.seconds,
        warm_seconds=arguments.warm_seconds,
    )
    return plan, [system for system in known if system.name in names]


def execute(arguments: argparse.Namespace, questions: Sequence[Question], scratch: Path) -> None:
    """Run everything; write the record, the page and the plots."""
    plan, systems = prepare(arguments, scratch)
    runs = record.Record(arguments.results / record.RUNS, header(arguments, systems, plan=plan))
    try:
        for result in rounds(questions, systems, plan=plan, arguments=arguments):
            runs.add(result)
            print(progress(result), file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print("Interrupted; the tables hold what was measured until now.", file=sys.stderr)
    print(record.page(arguments.results, questions, systems))


def check_cores(arguments: argparse.Namespace) -> None:
    """Exit with a sentence when the machine does not have what is asked for."""
    if too_many := (arguments.server_cores | arguments.load_cores) - os.sched_getaffinity(0):
        sys.exit(f"This machine gives us no core {min(too_many)}; choose with --server-cores and --load-cores.")


def main(words: Sequence[str]) -> None:
    """The command."""
    arguments = read_arguments(words)
    if arguments.questions == ["list"]:
        for question in QUESTIONS:
            print(f"{question.name:15} {question.asks}")
        return
    names = chosen(arguments.questions, [question.name for question in QUESTIONS], "question")
    questions = [question for question in QUESTIONS if question.name in names]
    check_cores(arguments)
    with tempfile.TemporaryDirectory(prefix="bus-bench-", dir=arguments.scratch) as scratch:
        execute(arguments, questions, Path(scratch))
