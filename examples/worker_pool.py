"""A pool of worker agents on one queue, one of which is killed in the middle of a job.

    python examples/worker_pool.py [URL]

Each worker is a process of its own. It takes jobs from the queue, one at a time, and runs a real command for each: it
compiles a package of Python's standard library. The first worker that begins is killed (kill -9, with the command that
it runs) while it works. Its lease runs out, the bus gives its job to another worker, and every job gets done.

Without a URL it starts a server of its own on a free loopback port.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bus.client import Client, Message, Nack  # noqa: E402 - found once the project's folder is on the path
from bus.testing import BusServer  # noqa: E402

BOSS = "boss"
WORKERS = 3
LEASE_SECONDS = 2.0
PATIENCE_SECONDS = 90.0
PACKAGES = ("asyncio", "concurrent", "email", "http", "importlib", "json", "logging", "multiprocessing", "unittest")


# ---- a worker


def compile_package(package: str) -> int:
    """Compile a package of the standard library into a folder that is thrown away; returns how many files that made."""
    folder = Path(sysconfig.get_paths()["stdlib"]) / package
    with tempfile.TemporaryDirectory(prefix="bus-worker-pool-") as out:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": out}
        command = [sys.executable, "-m", "compileall", "-q", "-f", str(folder)]
        done = subprocess.run(command, env=environment, capture_output=True, check=False)
        if done.returncode != 0:
            raise Nack(f"compileall ended with {done.returncode}")
        return sum(1 for _ in Path(out).rglob("*.pyc"))


def work(name: str, queue: str, url: str) -> None:
    """Take jobs until killed. Tells the boss what began and what was done; the job is acked when this has returned."""
    with Client(name, url) as bus:

        def handle(job: Message) -> None:
            about = {"job": job.id, "package": job.payload["package"], "attempt": job.attempt, "worker": name}
            bus.send(BOSS, about, type="began")
            files = compile_package(job.payload["package"])
            bus.send(BOSS, {**about, "files": files}, type="done")

        bus.work(queue, handle, ack_wait=LEASE_SECONDS)


# ---- the boss


class Pool:
    """The workers' processes, each in a session of its own, so that a kill reaches what it runs and nothing else."""

    def __init__(self, queue: str, url: str) -> None:
        self._queue = queue
        self._url = url
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        """Start a worker."""
        command = [sys.executable, __file__, "--worker", name, self._queue, self._url]
        self._processes[name] = subprocess.Popen(command, cwd=ROOT, start_new_session=True)

    def kill(self, name: str) -> None:
        """kill -9."""
        process = self._processes.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def kill_all(self) -> None:
        """The end."""
        for name in list(self._processes):
            self.kill(name)


def reports(bus: Client, count: int) -> Iterator[Message]:
    """What the workers tell, until `count` jobs are done. Raises TimeoutError when that takes too long."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    done: set[str] = set()
    while len(done) < count:
        message = bus.receive(timeout=max(0.0, deadline - time.monotonic()))
        if message.type == "done":
            done.add(message.payload["job"])
        yield message


def direct(url: str) -> str | None:
    """Give out the jobs, kill a worker, and watch. Returns what went wrong in a sentence, or None."""
    run = secrets.token_hex(3)
    pool = Pool(f"compile-{run}", url)
    killed: dict[str, Any] | None = None
    finished: list[dict[str, Any]] = []
    with Client(BOSS, url, since="latest") as bus:
        jobs = {bus.send(f"queue:compile-{run}", {"package": package}).message_id for package in PACKAGES}
        print(f"{len(jobs)} jobs wait in the queue; {WORKERS} workers start")
        try:
            for number in range(1, WORKERS + 1):
                pool.start(f"worker-{number}-{run}")
            for report in reports(bus, len(jobs)):
                about = report.payload
                if report.type == "began" and killed is None:
                    pool.kill(about["worker"])
                    killed = about
                    print(f"{about['worker']} began {about['package']}, and was killed -9 while it worked")
                elif report.type == "done":
                    finished.append(about)
                    print(
                        f"{about['worker']} did {about['package']}: {about['files']} files, attempt {about['attempt']}"
                    )
        finally:
            pool.kill_all()
    return verdict({str(job) for job in jobs}, killed, finished)


def verdict(jobs: set[str], killed: dict[str, Any] | None, finished: list[dict[str, Any]]) -> str | None:
    """What is wrong, in a sentence; None when every job was done once, the killed worker's by another one."""
    done = [about["job"] for about in finished]
    if set(done) != jobs:
        return f"{len(jobs - set(done))} jobs were not done."
    if len(done) != len(jobs):
        return f"{len(done) - len(jobs)} jobs were done more than once."
    if killed is None:
        return "No worker was killed."
    again = next(about for about in finished if about["job"] == killed["job"])
    if again["worker"] == killed["worker"] or again["attempt"] < 2:
        return f"The job of the killed worker was finished by {again['worker']} as attempt {again['attempt']}."
    print(f"{again['worker']} finished what {killed['worker']} had begun")
    return None


def main(url: str | None = None) -> int:
    """Run it; 0 when every job was done, and the killed worker's by another one."""
    with contextlib.ExitStack() as stack:
        problem = direct(url or stack.enter_context(BusServer()).url)
    print(problem or f"{len(PACKAGES)} jobs, each done once, with one worker killed in the middle.")
    return 1 if problem else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(*sys.argv[2:5])
    else:
        sys.exit(main(*sys.argv[1:2]))
