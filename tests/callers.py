"""Calls many URLs at once through `bus.outbound`, in a process of its own: in greenlets, or in threads without gevent.

Names of the job are answered by a stub in place of the system's resolver: look-up by look-up, the last answer for
ever, and None means that no answer comes. The process trusts the authorities of SSL_CERT_FILE.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
from ipaddress import ip_network
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from bus.outbound import Guard, Outbound
from bus.resolver import Resolver, look_up
from tests.certificates import authority

ROOT = Path(__file__).resolve().parent.parent
RUNTIMES = {"greenlets": "from gevent import monkey; monkey.patch_all()", "threads": ""}
"""What a process does before all else."""


class Job(msgspec.Struct):
    """What to call. Each URL gets a call of its own, all at once."""

    urls: list[str]
    timeout_seconds: float
    body: str = "{}"
    names: dict[str, list[list[str] | None]] = {}


class Got(msgspec.Struct):
    """One answer; `place` is when it came among all, from 0."""

    status: int | None
    error: str | None
    detail: str
    excerpt: bytes
    total_ms: float
    place: int


class Done(msgspec.Struct):
    """The answers in the order of the URLs; how much memory they took."""

    answers: list[Got]
    grown_kb: int


def call(runtime: str, job: Job, *, seconds: float = 60) -> Done:
    """Run a job in a process of its own."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "authority.pem"
        authority().cert_pem.write_to_path(file)
        process = subprocess.run(
            [sys.executable, "-c", f"{RUNTIMES[runtime]}\nfrom tests.callers import run; run()"],
            input=msgspec.json.encode(job),
            cwd=ROOT,
            env={**os.environ, "SSL_CERT_FILE": str(file)},
            capture_output=True,
            timeout=seconds,
        )
    assert process.returncode == 0, process.stderr.decode()
    return msgspec.json.decode(process.stdout, type=Done)


def main(job: Job) -> Done:
    """Call all URLs at once, in threads; where gevent has patched the process these are greenlets."""
    never, _ = os.pipe()

    def stub(name: str) -> list[str]:
        answers = job.names.get(name)
        if answers is None:
            return look_up(name)
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if answer is None:
            os.read(never, 1)  # of a pipe that nobody writes to
        return answer or []

    outbound = Outbound(Guard([ip_network("127.0.0.0/8")]), resolver=Resolver(stub))
    answers: dict[int, dict[str, Any]] = {}

    def one(number: int) -> None:
        answer = outbound.request(
            "POST", job.urls[number], headers={}, body=job.body.encode(), timeout_seconds=job.timeout_seconds
        )
        answers[number] = {**msgspec.structs.asdict(answer), "place": len(answers)}

    outbound.request("GET", "https://127.0.0.1:1/", headers={}, timeout_seconds=1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    threads = [threading.Thread(target=one, args=[number]) for number in range(len(job.urls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return msgspec.convert({"answers": [answers[n] for n in range(len(job.urls))], "grown_kb": grown_kb}, Done)


def run() -> None:
    """Read a job from the process's input, write what was done, and end, whatever is still under way."""
    done = main(msgspec.json.decode(sys.stdin.buffer.read(), type=Job))
    sys.stdout.buffer.write(msgspec.json.encode(done))
    sys.stdout.flush()
    os._exit(0)  # a thread may be asking a name server that never answers
