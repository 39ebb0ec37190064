"""The manifests' probe numbers against the running server: through start, load, a stopped store, a full disk, the drain."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from bus.testing import BusServer, eventually
from tests.integration.test_health import LEVERS, no_commits
from tests.kubelet import HttpGet, Kubelet, Manifest

pytestmark = [pytest.mark.full, pytest.mark.one_node("a kubelet looks at one pod")]

SECOND = 0.05
"""How long a manifest's second lasts here. The rounds of health are short in proportion (tests.faults.health_levers)."""

GUIDE = Manifest(
    liveness=HttpGet("/health/live", initial_delay_seconds=10, period_seconds=30),
    readiness=HttpGet("/health/ready", initial_delay_seconds=5, period_seconds=10),
    startup=HttpGet("/health/startup", failure_threshold=30, period_seconds=10),
)
PLATFORM = Manifest(
    liveness=HttpGet("/health", initial_delay_seconds=30, period_seconds=10),
    readiness=HttpGet("/ready", initial_delay_seconds=10, period_seconds=5),
)


@contextmanager
def full_load(server: BusServer) -> Iterator[None]:
    """Eight threads that send batches, one after the other."""
    over = threading.Event()
    batch = {"messages": [{"from": "load", "to": "topic:load", "payload": "x" * 200}] * 500}

    def work() -> None:
        while not over.is_set():
            assert server.call("POST", "/api/send/batch", batch, timeout_seconds=60).status == 200

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(60)


@pytest.mark.parametrize(
    ("manifest", "workers"), [(GUIDE, 4), (PLATFORM, 1)], ids=["the upgrade guide's", "the platform guide's"]
)
def test_kubelet_restarts_nothing_and_sends_work_where_it_can_be_done(
    fresh_server: Callable[..., BusServer], manifest: Manifest, workers: int
) -> None:
    server = BusServer(workers=workers, env=LEVERS | {"DRAIN_NOTICE_SECONDS": "3"})
    server.start()  # finds the port
    server.terminate()
    with Kubelet(server.port, manifest, second=SECOND) as kubelet:
        eventually(lambda: any(kubelet.statuses.values()), what="a probe of nobody")
        assert not kubelet.is_ready
        server.start()
        try:
            eventually(lambda: kubelet.is_ready, what="readiness")
            if manifest.startup is None:
                kubelet.restarts = (
                    0  # a start takes as long as ever, and a minute of the manifest's is three seconds here
                )
            with full_load(server):
                seen = {kind: len(answers) for kind, answers in kubelet.statuses.items()}
                eventually(
                    lambda: len(kubelet.statuses["readiness"]) > seen["readiness"] + 10, what="probes under load"
                )
                told = kubelet.statuses["readiness"][seen["readiness"] :]
                failed = [each != 200 for each in told]  # one now and then: the checks' deadlines are short here
                assert not any(map(all, zip(failed, failed[1:], failed[2:], strict=False))), told
            with no_commits(server):
                eventually(lambda: not kubelet.is_ready, what="the stopped store to be noticed")
            eventually(lambda: kubelet.is_ready, what="readiness after the store")
            for _ in range(workers * 8):  # the lever is pulled in whichever worker answers
                server.call("PUT", "/levers/disk")
            eventually(lambda: not kubelet.is_ready, what="the disk alarm to be noticed")
            for _ in range(workers * 8):
                server.call("DELETE", "/levers/disk")
            eventually(lambda: kubelet.is_ready, what="readiness after the alarm")
            assert kubelet.restarts == 0

            at = len(kubelet.statuses["readiness"])
            os.kill(server.pid, signal.SIGTERM)
            eventually(lambda: 503 in kubelet.statuses["readiness"][at:], what="a probe during the notice")
            assert server.wait(15) == 0
            told = kubelet.statuses["readiness"][at:]
            assert 0 not in told[: told.index(503)], "It was told before the door closed."
            assert 503 not in kubelet.statuses["liveness"]
        finally:
            server.close()
