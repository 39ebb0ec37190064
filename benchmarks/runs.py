"""One run: a fresh server that is pinned, loaded, measured and ended, with an empty folder of its own."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from benchmarks import machine
from benchmarks.questions import Question
from benchmarks.systems import ROOT, Place, System, free_port

MAX_DISTURBANCE = 0.1
START_SECONDS = 60
STOP_SECONDS = 4
SETTLE_SECONDS = 0.3
RUN_SECONDS_AT_MOST = 90

Figures = dict[str, float]


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


@dataclass(frozen=True)
class Result:
    """One run of one system. `figures` is what the generator printed, empty when `problem` says why there are none.

    `at` is the place on the axis of a curve.
    """

    question: str
    system: str
    round: int
    figures: Figures = field(default_factory=dict)
    problem: str = ""
    disturbance: float = 0.0
    at: float = 0.0


@contextmanager
def running(system: System, plan: Plan, *, folder: Path | None = None) -> Iterator[tuple[Place, int]]:
    """A fresh server that answers. Yields its place and its process id. An empty folder that goes, or the given one."""
    place = Place(free_port(), folder or Path(tempfile.mkdtemp(dir=plan.scratch)))
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
        if folder is None:
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
    """End the server and whatever it started: gently, then not, those included that began a session of their own."""
    family = machine.family(process.pid)
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for member in family[1:]:
        with suppress(ProcessLookupError):
            os.kill(member, signal.SIGKILL)
    process.wait()


def measured(
    question: Question, system: System, *, plan: Plan, round_number: int, folder: Path | None = None
) -> Result:
    """One run: start, load, stop."""
    try:
        with running(system, plan, folder=folder) as (place, pid):
            figures, disturbance = loaded(question, system, place=place, pid=pid, plan=plan)
    except RunFailed as failure:
        return Result(question.name, system.name, round_number, problem=str(failure))
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


def command_for(question: Question, system: System, *, place: Place, pids: Sequence[int], plan: Plan) -> list[str]:
    """What loads this server with this question: load.c, or for a hop the module that knows the workers."""
    where = ("--port", str(place.port), "--pids", ",".join(map(str, pids)))
    time_of = ("--seconds", str(plan.seconds), "--warm-seconds", str(plan.warm_seconds))
    if question.kind == "hop":
        return [sys.executable, "-m", "benchmarks.hop", *where, *time_of]
    return [str(plan.load), *where, *time_of, *system.load[question.kind], *question.load]


def loaded(question: Question, system: System, *, place: Place, pid: int, plan: Plan) -> tuple[Figures, float]:
    """Run the load generator against a server: what it found, and the share of the cores that others used."""
    pids = machine.family(pid)
    before, ours_before = machine.Moment.now(plan.cores), cpu_of(pids)
    try:
        done = subprocess.run(
            command_for(question, system, place=place, pids=pids, plan=plan),
            cwd=ROOT,
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
    figures = cast(Figures, json.loads(done.stdout))
    if "per_second" in figures and not figures["per_second"]:
        raise RunFailed(f"not one message came through: {done.stderr[:400] or figures}")
    return figures, disturbance


def cpu_of(pids: Sequence[int]) -> float:
    """Processor seconds of the server's processes and of the load generators that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(map(machine.cpu_seconds, pids)) + children.ru_utime + children.ru_stime
