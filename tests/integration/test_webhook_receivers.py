"""Receivers that are ill or mean ill, called by a running server: slots come free, memory stays, nothing is a traceback."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import datetime

import psutil
import pytest

from bus.testing import BusServer
from tests import sinks
from tests.calls import call, send
from tests.certificates import serving
from tests.sinks import Mode, Sink, head, raw
from tests.webhook_calls import ENV, drop, hook, settled

pytestmark = pytest.mark.slow

DEADLINE_SECONDS = 1.0
MESSAGES = 2
"""A round: two of them stay below the five timeouts in a row that open a breaker."""

ILL: dict[Mode, str] = {
    sinks.silent: "timeout",
    sinks.slow_head: "timeout",
    sinks.slow_body: "timeout",
    sinks.slow_informational: "timeout",
    sinks.early_end: "reset",
    sinks.half_answer: "reset",
    sinks.reset: "reset",
    sinks.garbage: "protocol",
    sinks.endless_informational: "protocol",
    sinks.endless_head: "protocol",
    sinks.endless_line: "protocol",
    sinks.endless_chunk_size: "protocol",
    sinks.endless_trailer: "protocol",
    sinks.huge_body: "ok",
    sinks.gzip_bomb: "ok",
    sinks.redirect("http://127.0.0.1:1/"): "redirect",
}
"""What a receiver does, and the class of each attempt."""


SERVER_ENV = ENV


def resident_bytes(server: BusServer) -> int:
    return sum(psutil.Process(pid).memory_info().rss for pid in server.worker_pids())


def round_(server: BusServer, made: dict[str, str]) -> None:
    """Some messages to every receiver, until nothing is due to any."""
    for _ in range(MESSAGES):
        send(server, "anybody")
    for hook_id in made:
        settled(server, {"id": hook_id})


def test_whatever_receivers_do_each_slot_is_free_in_time_and_memory_stays(server: BusServer) -> None:
    with ExitStack() as stack:
        made: dict[str, str] = {}

        def receiver(outcome: str, sink: Sink, url: str | None = None) -> None:
            stack.enter_context(sink)
            given = {"url": url} if url else {}
            found = hook(server, sink, timeout_seconds=DEADLINE_SECONDS, max_retries=0, **given)
            made[found["id"]] = outcome

        well = stack.enter_context(Sink())
        first = hook(server, well)
        for mode, outcome in ILL.items():
            receiver(outcome, Sink(mode))
        receiver("timeout", Sink(accepts=False))
        closed = Sink()
        closed.close()
        receiver("connect", closed)
        receiver("tls", Sink(tls=serving("127.0.0.1", expired=True)))
        mute = Sink(sinks.silent)
        receiver("timeout", mute, mute.url.replace("http:", "https:"))
        round_(server, made)
        before = resident_bytes(server)
        round_(server, made)
        grown = resident_bytes(server) - before
        assert len(well.hits) == 2 * MESSAGES
        for hook_id, outcome in made.items():
            page = call(server, "GET", "/api/webhooks/deliveries", webhook=hook_id)["deliveries"]
            assert len(page) == 2 * MESSAGES
            for delivery in page:
                for attempt in call(server, "GET", f"/api/webhooks/deliveries/{delivery['id']}")["attempts"]:
                    assert attempt["outcome"] == outcome, attempt
                    assert attempt["total_ms"] <= (DEADLINE_SECONDS + 1) * 1000, attempt
                    began, ended = (datetime.fromisoformat(attempt[name]) for name in ("began", "ended"))
                    assert (ended - began).total_seconds() <= DEADLINE_SECONDS + 1, attempt
                    assert len(attempt["response"].encode()) <= 4096 * 3
        assert grown < 10 * 1024 * 1024
        drop(server, first, *({"id": hook_id} for hook_id in made))
    assert "Traceback" not in server.log


def test_every_status_has_its_class_and_none_is_a_traceback(server: BusServer) -> None:
    with Sink() as sink:
        made = hook(server, sink)
        for status in range(100, 600):
            sink.mode = raw(head(status, {"Content-Length": "0"}))
            came = call(server, "POST", f"/api/webhooks/{made['id']}/test")
            assert (came["outcome"], came["status"]) == expected(status), status
        drop(server, made)
    assert "Traceback" not in server.log


def expected(status: int) -> tuple[str, int | None]:
    """The class of a status, and the status as the log has it: none for an answer that never came."""
    if status < 200:
        return ("protocol" if status == 101 else "reset"), None
    names = {2: "ok", 3: "redirect", 4: "http_4xx", 5: "http_5xx"}
    return ("gone" if status == 410 else names[status // 100]), status
