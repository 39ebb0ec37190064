"""A rolling update of three nodes under load: one after the other ends, and comes back as another release.

    python -m tests.faults.rolling_update [--from REVISION]

The nodes begin as what stands at a revision of this repository, or as they are; the other release is this tree with
tests.faults.next_release, which adds to the tables and says what older nodes do not know. Producers, consumers and the
verdict are those of tests.faults.crash.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from bus.settings import ROOT
from bus.testing import eventually
from tests.databases import PostgresServer
from tests.faults.crash import Load, Verdict, judge, whole_log
from tests.faults.crash_nodes import as_one
from tests.nodes import Nodes
from tests.redis_servers import RedisServer

NEXT = {"BUS_EXTENSIONS": "tests.faults.next_release"}
MIXED_SECONDS = 0.5


def unpacked(revision: str, folder: Path) -> Path:
    """This repository's files at a revision."""
    packed = subprocess.run(["git", "archive", revision], cwd=ROOT, capture_output=True, check=True)
    subprocess.run(["tar", "-x", "-C", str(folder)], input=packed.stdout, check=True)
    return folder


def run(old: Path = ROOT) -> Verdict:
    """Update nodes that run from the folder `old`, one by one; then the verdict, and what the logs say of it."""
    settings = {"DB_POOL_SIZE": "2", "INBOX_LIMIT": "100000000", "LOG_LEVEL": "WARNING"}
    verdict = Verdict(rounds=3)
    with ExitStack() as stack:
        postgres = PostgresServer()
        stack.callback(postgres.close)
        postgres.start()
        redis = stack.enter_context(RedisServer())
        nodes = Nodes(postgres.make(), [{}, {}, {}], env={"REDIS_URL": redis.url, **settings})
        for node in nodes.all:
            node.command = [sys.executable, str(old / "server_ws.py")]
        stack.enter_context(nodes)
        load = Load(as_one(nodes))
        load.start()
        for number, node in enumerate(nodes.all):
            load.stop.wait(MIXED_SECONDS)
            nodes.up.discard(number)
            if node.terminate() != 0:
                verdict.faults.append(f"node {number} did not end in order")
            node.kill()
            node.command = [sys.executable, "server_ws.py"]
            node.env.update(NEXT)
            node.start()
            nodes.up.add(number)
            nodes.wait_until_joined()
        load.stop.wait(MIXED_SECONDS)
        load.finish(60)
        eventually(lambda: nodes.call("GET", "/health/ready").status == 200, within_seconds=30, what="a ready node")
        verdict.faults += judge(load, whole_log(as_one(nodes)))
        verdict.faults += [
            f"node {number}: {line}"
            for number, node in enumerate(nodes.all)
            for line in node.log.splitlines()
            if " error " in line or "Traceback" in line
        ]
        verdict.acknowledged = sum(map(len, load.acknowledged.values()))
        verdict.delivered = sum(map(len, load.received.values()))
        verdict.repeated = load.repeated
    return verdict


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--from", dest="revision", help="what the nodes are at first; without it, this tree")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        old = unpacked(options.revision, Path(folder)) if options.revision else ROOT
        verdict = run(old)
    print(verdict, *verdict.faults, sep="\n    ")
    return int(bool(verdict.faults))


if __name__ == "__main__":
    sys.exit(main())
