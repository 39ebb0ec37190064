"""`demo`: a while of lively traffic to look at, by agents that talk to one another; it tidies up after itself."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import click

from bus.cli.options import with_connection
from bus.cli.process import end_at_sigterm, log_to_stderr
from bus.cli.progress import Progress
from bus.cli.show import plural
from bus.client import Calls, Client, Message, Reject
from bus.client.rest import Rest, segment
from bus.errors import BusError

QUEUE = "demo-builds"
TTL_SECONDS = 3600.0
"""What the demo sends leaves the log by itself after so long."""

AWAY_SECONDS = 4.0
"""How long the person stays, and stays away."""

SETTLE_SECONDS = 10.0
"""How long what is under way has at the end."""

CLOSED_PORT = "http://127.0.0.1:1/demo"
FILES = ("parser.py", "lexer.py", "main.rs", "schema.sql", "README.md", "server.go")
SYSTEMS = ("linux", "mac", "windows")
LINES = ("compiled in 3.1 s", "42 tests passed", "cache miss on layer 7", "retrying download", "coverage 93 %")


@click.command()
@click.option("--seconds", default=60.0, show_default=True, type=click.FloatRange(1, 3600), help="How long.")
@click.option(
    "--rate", default=10.0, show_default=True, type=click.FloatRange(0.1, 1000), help="About so many messages a second."
)
@click.option("--webhook", is_flag=True, help="Also a webhook to a closed port, to see deliveries fail.")
@with_connection
def demo(*, seconds: float, rate: float, webhook: bool, url: str, api_key: str | None) -> None:
    """Let agents talk for a minute: tasks, questions and answers, topics, builds in a queue, a dead letter now and then.

    Look at it meanwhile with `tail`, `log`, `queues`, `clients`, or in the console. All names begin with `demo-`. At the end
    its dead letters are purged; its messages leave the log within an hour.
    """
    calls = Calls("demo-planner", url, api_key=api_key)
    calls.health()
    log_to_stderr()
    end_at_sigterm()
    play = _Play(url, api_key)
    began = time.monotonic()
    with ExitStack() as stack:
        stack.callback(play.tell, began)
        stack.callback(_purge, calls)
        if webhook:
            stack.enter_context(_failing_webhook(Rest(url, api_key=api_key)))
        stack.enter_context(play)
        with Progress("Talking", round(seconds)) as progress:
            play.run(seconds, rate, progress)


def _purge(calls: Calls) -> None:
    calls.purge(owner=f"queue:{QUEUE}")


@contextmanager
def _failing_webhook(rest: Rest) -> Iterator[None]:
    """An endpoint where nothing listens."""
    body = {"url": CLOSED_PORT, "events": ["message.sent"], "clients": ["demo-planner"], "description": "demo"}
    try:
        made = rest.post("/api/webhooks", body, dict[str, Any])
    except BusError as refusal:
        raise click.ClickException(f"{refusal.sentence} Or leave --webhook out.") from None
    try:
        yield
    finally:
        rest.delete(f"/api/webhooks/{segment(made['id'])}", {}, object)


class _Play:
    """The agents. `counts` is written by their threads under the lock."""

    def __init__(self, url: str, api_key: str | None) -> None:
        self._open: Callable[[str], Client] = lambda name: Client(f"demo-{name}", url, api_key=api_key)
        self._chance = random.Random(1)
        self._lock = threading.Lock()
        self._over = threading.Event()
        self.counts: Counter[str] = Counter()
        self._stack = ExitStack()

    def __enter__(self) -> _Play:
        with ExitStack() as stack:
            names = ("planner", "coder", "reviewer", "tester")
            agents = {name: stack.enter_context(self._open(name)) for name in names}
            self._planner, self._coder, self._reviewer = agents["planner"], agents["coder"], agents["reviewer"]
            agents["coder"].on("task", self._work)
            agents["planner"].on("result", lambda _: self._count("results"))
            agents["reviewer"].on("review", self._review)
            agents["reviewer"].subscribe(topics=["demo.>"])
            for name in ("planner", "coder", "tester", "reviewer"):
                agents[name].on(None, lambda _: self._count("deliveries"))
            worker = agents["tester"].worker(QUEUE, self._build, max_in_flight=3)
            stack.callback(worker.join, SETTLE_SECONDS)
            stack.callback(worker.stop)
            stack.callback(self._await_queue)
            threading.Thread(target=worker.run, name="demo-tester", daemon=True).start()
            visitor = threading.Thread(target=self._visit, name="demo-person", daemon=True)
            visitor.start()
            stack.callback(visitor.join, SETTLE_SECONDS)
            stack.callback(self._over.set)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, seconds: float, rate: float, progress: Progress) -> None:
        """Begin one thing after another, at the rate, until the time is over."""
        acts = (self._task, self._task, self._line, self._line, self._submit, self._ask, self._announce)
        began = time.monotonic()
        number = 0
        while (now := time.monotonic() - began) < seconds:
            progress.to(round(now))
            self._chance.choice(acts)(number)
            number += 1
            time.sleep(max(0.0, min(number / rate, seconds) - (time.monotonic() - began)))
        progress.to(round(seconds))

    def tell(self, began: float) -> None:
        """What has happened."""
        counts = self.counts
        told = [
            plural(counts[name], name) for name in ("task", "line", "build", "question", "announcement") if counts[name]
        ]
        seconds = time.monotonic() - began
        dead = plural(counts["dead"], "dead letter")
        click.echo(
            f"{', '.join(told) or 'Nothing'} in {seconds:.0f} s; {counts['results']:,} results, {dead} (purged).",
            err=True,
        )

    # ---- what is begun

    def _task(self, number: int) -> None:
        payload = {"text": f"Mend {self._chance.choice(FILES)}", "number": number}
        self._send(self._planner, "demo-coder", payload, "task", require_ack=True, thread_id=f"demo-{number // 20}")

    def _line(self, number: int) -> None:
        system = self._chance.choice(SYSTEMS)
        payload = {"line": self._chance.choice(LINES), "number": number}
        self._send(self._coder, f"topic:demo.logs.{system}", payload, "line")

    def _submit(self, number: int) -> None:
        priority = self._chance.choice(("high", "normal", "low"))
        payload = {"branch": f"topic-{number}", "system": self._chance.choice(SYSTEMS)}
        self._send(self._coder, f"queue:{QUEUE}", payload, "build", priority=priority)

    def _announce(self, number: int) -> None:
        self._send(self._planner, "all", {"text": f"Stand-up number {number}: who is stuck?"}, "announcement")

    def _ask(self, number: int) -> None:
        payload = {"file": self._chance.choice(FILES), "number": number}
        self._planner.request("demo-reviewer", payload, type="review", ttl=TTL_SECONDS, wait=5.0)
        self._count("question")

    def _send(self, client: Client, to: str, payload: object, type_: str, **terms: Any) -> None:
        client.send_nowait(to, payload, type=type_, ttl=TTL_SECONDS, **terms)
        self._count(type_)

    # ---- what the others do

    def _work(self, message: Message) -> None:
        self._coder.send_nowait(message.sender, {"working": message.payload["number"]}, type="progress", ephemeral=True)
        self._coder.send_nowait(message.sender, {"done": message.payload["text"]}, type="result", ttl=TTL_SECONDS)

    def _review(self, message: Message) -> None:
        self._reviewer.reply(message, {"verdict": "fine", "file": message.payload["file"]}, ttl=TTL_SECONDS)

    def _build(self, message: Message) -> None:
        self._over.wait(0.05)
        if message.payload["branch"].endswith("13"):
            self._count("dead")
            raise Reject("The linker ran out of memory.")

    def _visit(self) -> None:
        """Somebody who comes and goes: presence changes, and what was missed waits."""
        while not self._over.is_set():
            with self._open("person") as person:
                person.on(None, lambda _: self._count("deliveries"))
                self._over.wait(AWAY_SECONDS)
            self._over.wait(AWAY_SECONDS)

    def _await_queue(self) -> None:
        """Let the builds that wait be worked on: none is left behind."""
        until = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < until and any(
            q.depth + q.in_flight for q in self._planner.queues() if q.queue == QUEUE
        ):
            time.sleep(0.1)

    def _count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1
