"""Answer questions about speed: start each system afresh, load it, and print Markdown tables.

The server has one core, the load another; systems take turns (A B C, A B C, ...) so that what disturbs the machine
disturbs all of them; each run has a new server and an empty store. load.c counts, times and checks every message.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

from benchmarks import machine
from benchmarks.questions import QUESTIONS, Question
from benchmarks.report import MAX_DISTURBANCE, Result, table, versions
from benchmarks.systems import ROOT, Place, System, all_systems

START_SECONDS = 15
STOP_SECONDS = 4
SETTLE_SECONDS = 0.3
RUN_SECONDS_AT_MOST = 60
QUICK = {"rounds": 1, "seconds": 0.6, "warm_seconds": 0.3, "limit_seconds": 110.0, "patience_seconds": 0.0}
THOROUGH = {"rounds": 3, "seconds": 2.0, "warm_seconds": 0.5, "limit_seconds": 3600.0, "patience_seconds": 20.0}


class RunFailed(Exception):
    """A server did not start, or the load generator gave up; the text says which and why."""


@dataclass(frozen=True)
class Plan:
    """What is fixed for all runs of one call."""

    load: Path
    scratch: Path
    server_cores: set[int]
    load_cores: set[int]
    seconds: float
    warm_seconds: float

    @property
    def cores(self) -> set[int]:
        """All cores in use."""
        return self.server_cores | self.load_cores


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return cast(int, listener.getsockname()[1])


@contextmanager
def running(system: System, plan: Plan) -> Iterator[tuple[Place, int]]:
    """A fresh server that answers, with an empty folder. Yields its place and its process id."""
    place = Place(free_port(), Path(tempfile.mkdtemp(dir=plan.scratch)))
    log = plan.scratch / f"{system.name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            system.command(place),
            cwd=system.working_folder,
            env={**os.environ, **system.environment(place)},
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=machine.pinned_to(plan.server_cores),  # noqa: PLW1509  # this program has no threads
        )
    try:
        wait_until_ready(system, place, process, log)
        yield place, process.pid
    finally:
        stop(process)
        shutil.rmtree(place.folder, ignore_errors=True)


def wait_until_ready(system: System, place: Place, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return when the server answers; RunFailed with the end of its log when it does not."""
    limit = time.monotonic() + START_SECONDS
    while not system.is_ready(place):
        if process.poll() is not None or time.monotonic() > limit:
            said = " / ".join(log.read_text(errors="replace").splitlines()[-3:])
            raise RunFailed(f"it did not start: {said or 'it said nothing'}")
        time.sleep(0.05)
    time.sleep(SETTLE_SECONDS)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and whatever it started: gently, then not. The session it began is its process group."""
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def measured(question: Question, system: System, *, plan: Plan, round_number: int) -> Result:
    """One run: start, load, stop."""
    try:
        with running(system, plan) as (place, pid):
            figures, disturbance = loaded(question, system, place=place, pid=pid, plan=plan)
    except RunFailed as failure:
        return Result(question.name, system.name, round_number, {}, problem=str(failure))
    return Result(question.name, system.name, round_number, figures, disturbance=disturbance)


def calmly_measured(
    question: Question, system: System, *, plan: Plan, round_number: int, patience_seconds: float
) -> Result:
    """The least disturbed of a few runs: one, unless others took part of the cores and there is patience."""
    best: Result | None = None
    limit = time.monotonic() + patience_seconds
    while True:
        left = limit - time.monotonic()
        machine.wait_for_calm(plan.cores, share=MAX_DISTURBANCE, patience_seconds=left)
        result = measured(question, system, plan=plan, round_number=round_number)
        if best is None or (result.figures and result.disturbance < best.disturbance):
            best = result
        if best.problem or best.disturbance <= MAX_DISTURBANCE or time.monotonic() > limit:
            return best


def loaded(question: Question, system: System, *, place: Place, pid: int, plan: Plan) -> tuple[dict[str, float], float]:
    """Run the load generator against a server: what it found, and the share of the cores that others used."""
    pids = machine.family(pid)
    command = [
        *(str(plan.load), "--port", str(place.port), "--pids", ",".join(map(str, pids))),
        *("--seconds", str(plan.seconds), "--warm-seconds", str(plan.warm_seconds)),
        *question.load,
        *system.load[question.kind],
    ]
    before, ours_before = machine.Moment.now(plan.cores), cpu_of(pids)
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS_AT_MOST + plan.seconds,
            preexec_fn=machine.pinned_to(plan.load_cores),
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise RunFailed("the load generator did not end") from None
    ours = cpu_of(pids) - ours_before
    disturbance = machine.disturbance(before, machine.Moment.now(plan.cores), ours=ours, cores=plan.cores)
    if done.returncode:
        raise RunFailed(f"the load generator gave up: {' / '.join(done.stderr.split(chr(10))[-4:])[:400]}")
    figures = cast(dict[str, float], json.loads(done.stdout))
    if question.kind != "idle" and not figures["per_second"]:
        raise RunFailed(f"not one message came through: {done.stderr[:400] or figures}")
    return figures, disturbance


def cpu_of(pids: Sequence[int]) -> float:
    """Processor seconds of the server's processes and of the load generators that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(map(machine.cpu_seconds, pids)) + children.ru_utime + children.ru_stime


def progress(result: Result) -> str:
    """One line for whoever waits."""
    figures = result.figures
    if result.problem:
        said = result.problem
    elif "kib_per_connection" in figures:
        said = f"{figures['kib_per_connection']:.2f} KiB/connection"
    else:
        said = f"{figures['per_second']:,.0f}/s, p99 {figures['p99_us'] / 1000:.2f} ms"
    return f"round {result.round}  {result.question:11} {result.system:15} {said}"


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
            for system in systems:
                if system.missing or question.kind not in system.load:
                    continue
                if time.monotonic() > limit:
                    yield Result(question.name, system.name, round_number, {}, problem="left out, the time was up.")
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


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("questions", nargs="*", help="which to ask; all without any; `list` shows them")
    parser.add_argument("--systems", help="comma-separated; all without it")
    parser.add_argument("--quick", action="store_true", help="one short round, at most two minutes: a smoke test")
    parser.add_argument("--rounds", type=int, help="3, or 1 with --quick")
    parser.add_argument("--seconds", type=float, help="measured time of a run: 2, or 0.6 with --quick")
    parser.add_argument("--warm-seconds", type=float, help="time before it: 0.5, or 0.3 with --quick")
    parser.add_argument("--limit-seconds", type=float, help="start no run after it: 3600, or 110 with --quick")
    parser.add_argument(
        "--patience-seconds",
        type=float,
        help="for each run, how long to wait for calm and to repeat what others disturbed: 20, or 0 with --quick",
    )
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
    parser.add_argument("--output", type=Path, help="append every run to this file as a line of JSON")
    arguments = parser.parse_args()
    for name, value in (QUICK if arguments.quick else THOROUGH).items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
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
        f"server on core {sorted(plan.server_cores)}, load on core {sorted(plan.load_cores)}, loopback, 200-byte messages"
    )
    bus = " ".join([arguments.bus_command, *arguments.bus_setting])
    lines = [
        f"Measured on {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC.",
        "",
        f"- machine: {machine.described(plan.scratch)}",
        f"- settings: {settings}; the bus by `{bus}`",
        versions(systems),
    ]
    if arguments.rounds < 3:
        lines.append(f"- {arguments.rounds} round(s): this shows that everything works, and no more.")
    return "\n".join(lines)


def execute(arguments: argparse.Namespace, questions: Sequence[Question], scratch: Path) -> None:
    """Build, run everything, print the tables."""
    binaries = machine.build(scratch)
    settings = dict(setting.split("=", 1) for setting in arguments.bus_setting)
    known = all_systems(
        binaries["reference"],
        bus_command=arguments.bus_command,
        bus_settings=settings,
        root=arguments.bus_root.resolve(),
        baseline=arguments.baseline,
    )
    wanted = arguments.systems.split(",") if arguments.systems else []
    names = chosen(wanted, [system.name for system in known], "system")
    kinds = {question.kind for question in questions}
    systems = [system for system in known if system.name in names and kinds & set(system.load)]
    plan = Plan(
        load=binaries["load"],
        scratch=scratch,
        server_cores=arguments.server_cores,
        load_cores=arguments.load_cores,
        seconds=arguments.seconds,
        warm_seconds=arguments.warm_seconds,
    )
    head = header(arguments, systems, plan=plan)
    results = []
    try:
        for result in rounds(questions, systems, plan=plan, arguments=arguments):
            results.append(result)
            print(progress(result), file=sys.stderr, flush=True)
            if arguments.output:
                with arguments.output.open("a") as output:
                    output.write(json.dumps(asdict(result)) + "\n")
    except KeyboardInterrupt:
        print("Interrupted; the tables hold what was measured until now.", file=sys.stderr)
    print(head)
    for question in questions:
        able = [system for system in systems if question.kind in system.load]
        print("\n" + table(question, able, results))


def main() -> None:
    """The command."""
    arguments = read_arguments()
    if arguments.questions == ["list"]:
        for question in QUESTIONS:
            print(f"{question.name:11} {question.asks}")
        return
    names = chosen(arguments.questions, [question.name for question in QUESTIONS], "question")
    questions = [question for question in QUESTIONS if question.name in names]
    if too_many := (arguments.server_cores | arguments.load_cores) - os.sched_getaffinity(0):
        sys.exit(f"This machine gives us no core {min(too_many)}; choose with --server-cores and --load-cores.")
    with tempfile.TemporaryDirectory(prefix="bus-bench-", dir=arguments.scratch) as scratch:
        execute(arguments, questions, Path(scratch))
