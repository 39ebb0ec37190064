"""The conformance and the integration tests on each store, with one worker and four, and on three nodes: a line for each.

    python -m tests.stores                                          all of it: an hour or more
    python -m tests.stores --on "postgresql, 3 nodes" tests/integration/test_inbox.py

What fails is shown as pytest shows it; each run's whole output is kept in a file of the folder that `--keep` names.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bus.settings import ROOT

RUNS = {
    "sqlite": ["--store", "sqlite"],
    "postgresql": ["--store", "postgresql"],
    "postgresql and redis": ["--store", "postgresql+redis"],
    "postgresql, 3 nodes": ["--store", "postgresql", "--nodes", "3"],
    "postgresql and redis, 3 nodes": ["--store", "postgresql+redis", "--nodes", "3"],
}
TESTS = ["tests/conformance", "tests/integration"]


class Outcome(NamedTuple):
    """What became of the tests of one run. `failed` counts errors, too."""

    passed: int
    failed: int
    left_out: int
    seconds: float
    output: str

    def __str__(self) -> str:
        return f"{self.passed} passed, {self.failed} failed, {self.left_out} left out, {self.seconds:.0f} s"


def run(name: str, tests: Sequence[str] = TESTS, *, jobs: int = 1) -> Outcome:
    """Run tests in one of the ways of RUNS, in `jobs` processes."""
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-rfEs", *RUNS[name], *tests]
    parallel = ["-n", str(jobs), "--dist", "loadfile"] if jobs > 1 else ["-p", "no:xdist"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    begun = time.monotonic()
    done = subprocess.run([*command, *parallel], cwd=ROOT, env=environment, capture_output=True, text=True)
    output = done.stdout + done.stderr
    counted = {what: int(number) for number, what in re.findall(r"(\d+) (passed|failed|error|skipped)", _last(output))}
    failed = counted.get("failed", 0) + counted.get("error", 0)
    return Outcome(
        counted.get("passed", 0),
        failed or int(done.returncode != 0),
        counted.get("skipped", 0),
        time.monotonic() - begun,
        output,
    )


def _last(output: str) -> str:
    """The line in which pytest counts."""
    lines = [line for line in output.splitlines() if re.search(r"\d+ \w+.* in [\d.]+s", line)]
    return lines[-1] if lines else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tests", nargs="*", default=TESTS)
    parser.add_argument("--on", choices=RUNS, action="append", help="only this; may be given again")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="a folder for what each run prints")
    options = parser.parse_args()
    outcomes = {}
    for name in options.on or RUNS:
        outcomes[name] = run(name, options.tests, jobs=options.jobs)
        print(f"{name}: {outcomes[name]}", flush=True)
        if outcomes[name].failed:
            print(outcomes[name].output, flush=True)
        if options.keep is not None:
            options.keep.mkdir(parents=True, exist_ok=True)
            (options.keep / f"{name.replace(' ', '-')}.txt").write_text(outcomes[name].output)
    print("\n".join(f"{name:<30} {outcome}" for name, outcome in outcomes.items()))
    return int(any(outcome.failed for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
