"""What an open console costs the bus, and whether the page keeps up, while messages are committed at a given rate.

    python -m benchmarks.console [--rounds 3] [--seconds 10] [--rate 10000]

Rounds without and with an open page take turns on one server of one worker, which has a listener. What counts is the
server's processor time: unlike a rate, it hardly depends on who else uses the machine. What an open console adds to it in a
second, as a part of a core, is what a server at its limit loses. Of the page, the time from frame to frame is measured in
the page, in a headless Chromium.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import multiprocessing.synchronize
import shutil
import statistics
import time
from typing import Any, NamedTuple

import psutil
from playwright.sync_api import sync_playwright
from websockets.sync.client import connect

from bus.testing import HOST, BusServer

BATCH = 100
VIEWS = ("feed", "overview")
FRAMES = """() => {
    window.frames_ = [];
    let last = performance.now();
    const next = (now) => { window.frames_.push(now - last); last = now; requestAnimationFrame(next); };
    requestAnimationFrame(next);
}"""


class Round(NamedTuple):
    """`microseconds`: the server's processor time for a message; `frames`: milliseconds from frame to frame; `busy`: how
    much of a second the page's main thread works."""

    per_second: float
    microseconds: float
    frames: list[float]
    busy: float


def load(port: int, rate: int, end: multiprocessing.synchronize.Event) -> None:
    """Send batches at a rate, at most ten of them late, until told to end."""
    connection = http.client.HTTPConnection(HOST, port, timeout=30)
    message = {"from": "load", "to": "sink", "type": "bench", "payload": {"text": "x" * 60, "n": 1}}
    body = json.dumps({"messages": [{**message, "to": f"sink-{n % 10}"} for n in range(BATCH)]})
    due = time.monotonic()
    while not end.is_set():
        connection.request("POST", "/api/send/batch", body, {"Content-Type": "application/json"})
        connection.getresponse().read()
        due = max(due + BATCH / rate, time.monotonic() - 10 * BATCH / rate)
        end.wait(max(0.0, due - time.monotonic()))


def measured(server: BusServer, seconds: float) -> tuple[float, float]:
    """Messages a second, and microseconds of the workers' processor time for each."""
    workers = [psutil.Process(pid) for pid in server.worker_pids()]

    def look() -> tuple[float, int, float]:
        spent = sum(sum(worker.cpu_times()[:2]) for worker in workers)
        total = server.call("GET", "/api/status").body["metrics"]["total_messages"]
        return time.monotonic(), total, spent

    began, before, spent = look()
    time.sleep(seconds)
    ended, after, spent_then = look()
    count = max(after - before, 1)
    return count / (ended - began), (spent_then - spent) / count * 1e6


def run(server: BusServer, page: Any, view: str | None, seconds: float) -> Round:
    """One round: `view` None leaves the console closed."""
    page.goto("about:blank" if view is None else f"{server.url}/console#/{view}")
    time.sleep(2)
    tools = page.context.new_cdp_session(page)
    tools.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.evaluate(FRAMES)
    before = main_thread(tools)
    figures = measured(server, seconds)
    busy = (main_thread(tools) - before) / seconds
    tools.detach()
    return Round(*figures, page.evaluate("window.frames_.slice(1)"), busy)


def main_thread(tools: Any) -> float:
    """Seconds of processor time that the page's main thread has used."""
    told = {one["name"]: one["value"] for one in tools.send("Performance.getMetrics")["metrics"]}
    return float(told["TaskDuration"])


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description="What an open console costs.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rate", type=int, default=10_000)
    asked = parser.parse_args()
    end = multiprocessing.Event()
    settings = {"INBOX_LIMIT": "100000000", "MAX_LOG_BYTES": str(64 << 20)}
    with (
        BusServer(env=settings) as server,
        connect(f"{server.ws_url}/ws/listener"),
        sync_playwright() as play,
    ):
        loader = multiprocessing.Process(target=load, args=(server.port, asked.rate, end))
        loader.start()
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"])
        try:
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            time.sleep(3)
            turns: list[str | None] = [None, *VIEWS]
            rounds = {view: [] for view in turns}  # type: dict[str | None, list[Round]]
            for _ in range(asked.rounds):
                for view in turns:
                    rounds[view].append(run(server, page, view, asked.seconds))
        finally:
            end.set()
            loader.join()
            browser.close()
    report(rounds)


def report(rounds: dict[str | None, list[Round]]) -> None:
    closed = statistics.median(one.microseconds for one in rounds[None])
    columns = ("messages/s", "CPU a message", "added, of a core", "page, of a core", "frame p50", "p99", "longest")
    print(f"| console | {' | '.join(columns)} |")
    print("|---" + "|---:" * len(columns) + "|")
    for view, taken in rounds.items():
        cost = statistics.median(one.microseconds for one in taken)
        rate = statistics.median(one.per_second for one in taken)
        frames = sorted(frame for one in taken for frame in one.frames)
        p50, p99, longest = (frames[min(len(frames) - 1, int(len(frames) * q))] for q in (0.5, 0.99, 1.0))
        more = "" if view is None else f"{(cost - closed) * rate / 1e4:+.1f} %"
        busy = statistics.median(one.busy for one in taken) * 100
        figures = (
            f"{rate:,.0f}",
            f"{cost:.2f} µs",
            more,
            f"{busy:.0f} %",
            *(f"{ms:.0f} ms" for ms in (p50, p99, longest)),
        )
        print(f"| {view or 'closed'} | {' | '.join(figures)} |")


if __name__ == "__main__":
    main()
