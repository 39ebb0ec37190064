"""What real receivers answer, well or badly, has the class that the policy names."""

from __future__ import annotations

import subprocess
import sys
import time
from ipaddress import ip_network

import pytest

from bus.outbound import Answer, Guard, Outbound
from bus.settings import ROOT
from bus.webhooks.policy import judge
from tests import sinks
from tests.sinks import LOOPBACK, Sink, answer, raw

ALLOWED = Outbound(Guard([ip_network("127.0.0.0/8")]))


def called(sink: Sink, seconds: float = 10.0) -> Answer:
    return ALLOWED.request("POST", sink.url, headers={}, body=b"{}", timeout_seconds=seconds)


def expected(status: int) -> tuple[str, str]:
    """The class and the consequence of a final status."""
    if status < 300:
        return "ok", "done"
    if status < 400:
        return "redirect", "retry"
    if status == 410:
        return "gone", "held"
    if status < 500:
        return "http_4xx", "retry" if status in (408, 409, 425, 429) else "brief"
    return "http_5xx", "retry"


def test_every_final_status_of_a_real_receiver() -> None:
    with Sink() as sink:
        for status in range(200, 600):
            sink.mode = answer(status)
            verdict = judge(called(sink), "http", time.time())
            assert (verdict.name, verdict.result) == expected(status), status


@pytest.mark.parametrize("status", [100, 102, 150, 199])
def test_an_interim_answer_is_none(status: int) -> None:
    with Sink(raw(f"HTTP/1.1 {status} Wait\r\n\r\n".encode())) as sink:
        verdict = judge(called(sink), "http", time.time())
    assert verdict.result == "retry"


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        (sinks.reset, "reset"),
        (sinks.early_end, None),
        (sinks.half_answer, None),
        (sinks.garbage, "protocol"),
        (sinks.endless_head, "protocol"),
        (sinks.endless_informational, None),
        (sinks.silent, "timeout"),
        (sinks.slow_head, "timeout"),
    ],
)
def test_a_receiver_that_breaks_is_tried_again(mode: sinks.Mode, name: str | None) -> None:
    with Sink(mode) as sink:
        verdict = judge(called(sink, 1.0), "http", time.time())
    assert verdict.result == "retry"
    assert name in (None, verdict.name)


def test_a_success_with_too_long_a_body_is_a_success() -> None:
    with Sink(sinks.huge_body) as sink:
        assert judge(called(sink), "http", time.time()).ok


def test_nobody_there_and_nobody_allowed() -> None:
    with Sink() as sink:
        url = sink.url
    gone = ALLOWED.request("POST", url, headers={}, body=b"", timeout_seconds=5)
    assert judge(gone, "http", 0).name == "connect"
    refused = Outbound(Guard()).request("POST", f"http://{LOOPBACK}/", headers={}, body=b"", timeout_seconds=5)
    assert (judge(refused, "http", 0).name, judge(refused, "http", 0).result) == ("forbidden_target", "brief")


def test_the_manager_works_in_greenlets_too() -> None:
    command = [sys.executable, "-m", "gevent.monkey", "webhooks.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert "total_delivered: 2" in done.stdout
    assert done.stderr == ""
