"""`claim`: a worker of a queue, that runs a command for each job."""

from __future__ import annotations

import logging
import os
import queue
import signal
import socket
import threading
from collections.abc import Callable, Collection
from concurrent.futures import Future

import click

from bus.cli.options import with_connection, with_json
from bus.cli.process import log_to_stderr
from bus.cli.run import Runner, payload_of
from bus.cli.show import plural, printer
from bus.client import Calls, Message, Nack, Reject, Release, Worker
from bus.errors import BusError

log = logging.getLogger("bus.client")


@click.command()
@click.argument("queue_name", metavar="QUEUE")
@click.option("--client", help="The worker's own name, another one for each worker. [worker-HOST-PID]")
@click.option(
    "--exec", "command", help="Run this for each job, with its payload on stdin. Without it, jobs are printed."
)
@click.option(
    "--reject-on", type=int, multiple=True, metavar="CODE", help="An exit code that says: never try it again."
)
@click.option("--once", is_flag=True, help="The same as --count 1.")
@click.option("--count", type=click.IntRange(min=1), help="Stop after so many jobs.")
@click.option(
    "--max-in-flight", default=1, show_default=True, type=click.IntRange(1, 100), help="Jobs at the same time."
)
@click.option(
    "--ack-wait",
    default=30.0,
    show_default=True,
    type=click.FloatRange(1, 86400),
    help="Seconds until a job of a worker that died goes to another one.",
)
@click.option(
    "--grace",
    default=25.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Seconds that running commands have to finish when this is asked to stop.",
)
@with_json
@with_connection
def claim(  # noqa: PLR0913 - one for each option
    *,
    queue_name: str,
    client: str | None,
    command: str | None,
    reject_on: tuple[int, ...],
    once: bool,
    count: int | None,
    max_in_flight: int,
    ack_wait: float,
    grace: float,
    as_json: bool,
    url: str,
    api_key: str | None,
) -> None:
    """Work on the jobs of QUEUE, one after another, or --max-in-flight at a time, through restarts of the bus.

    The command reads the job's payload on stdin (a text as it is, anything else as JSON) and finds BUS_MESSAGE_ID,
    BUS_ATTEMPT, BUS_FROM, BUS_TYPE, BUS_TIMESTAMP, BUS_QUEUE, BUS_REDELIVERED, BUS_CORRELATION_ID and BUS_THREAD_ID in
    its environment. Exit code 0 acks the job; a code of --reject-on makes it a dead letter; with any other code it is
    delivered again after a while, five times at most. While the command runs the job stays ours, however long it takes.

    SIGTERM or Ctrl-C: no more jobs are taken, and running commands may finish within --grace seconds; then, or at a
    second signal, they are ended, and their jobs given back at once, uncounted.
    """
    calls = Calls(client or _own_name(), url, api_key=api_key)
    calls.health()
    log_to_stderr()
    shift = _Shift(Runner(command) if command else None, printer(as_json), reject_on)
    count = 1 if once else count
    worker = calls.worker(queue_name, shift.handle, max_in_flight=max_in_flight, ack_wait=ack_wait, count=count)
    shift.run(worker, grace)
    failed = f", {shift.failed} failed" if shift.failed else ""
    click.echo(f"Stopped after {plural(shift.done + shift.failed, 'job')}{failed}.", err=True)
    if shift.failed and count is not None:
        raise click.exceptions.Exit(1)


def _own_name() -> str:
    """A name for this process, of letters that a name may have."""
    host = "".join(c if c.isascii() and (c.isalnum() or c == ".") else "-" for c in socket.gethostname())
    return f"worker-{host[:100]}-{os.getpid()}"


class _Shift:
    """The jobs from the start of a worker to its end. `handle` runs on the worker's threads, all else on the main one."""

    def __init__(self, runner: Runner | None, show: Callable[[Message], None], reject_on: Collection[int]) -> None:
        self._runner = runner
        self._show = show
        self._reject_on = reject_on
        # Guards the two counts, and what is printed.
        self._lock = threading.Lock()
        self.done = 0
        self.failed = 0
        # Signals by their numbers, and None when the worker has ended. Its `put` may be called by a signal's handler.
        self._events: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._pipe_broke = False

    def run(self, worker: Worker, grace_seconds: float) -> None:
        """Let the worker work to its end, or to a signal. Raises what made it fail."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: self._events.put(number))
        ending: Future[int] = Future()
        ending.add_done_callback(lambda _: self._events.put(None))
        threading.Thread(target=_run_into, args=(worker, ending), name="bus-shift").start()
        if self._events.get() is not None:
            worker.stop()
            if running := len(worker.running):
                what = f"{plural(running, 'job')} may finish within {grace_seconds:g} s"
                click.echo(f"Stopping: {what}; a second signal stops at once.", err=True)
            self._await_end(grace_seconds)
        ending.result()
        if self._pipe_broke:
            raise BrokenPipeError

    def _await_end(self, grace_seconds: float) -> None:
        try:
            event = self._events.get(timeout=grace_seconds)
        except queue.Empty:
            event = signal.SIGTERM
        if event is not None and self._runner is not None:
            self._runner.stop()

    def handle(self, message: Message) -> None:
        """One job. Raises a verdict, unless it is done."""
        if self._runner is None:
            with self._lock:
                self._print(message)
                self.done += 1
            return
        code = self._runner.run(message, payload_of(message))
        if code != 0 and self._runner.is_stopped:
            raise Release
        with self._lock:
            self.done += code == 0
            self.failed += code != 0
        if code == 0:
            return
        said = f"{self._runner.name} ended with {code}"
        click.echo(f"{said} on {message.id}, attempt {message.attempt}.", err=True)
        raise (Reject if code in self._reject_on else Nack)(said)

    def _print(self, message: Message) -> None:
        try:
            self._show(message)
        except BrokenPipeError:
            self._pipe_broke = True
            self._events.put(signal.SIGPIPE)
            raise Release from None


def _run_into(worker: Worker, ending: Future[int]) -> None:
    try:
        ending.set_result(worker.run())
    except BusError as failure:
        ending.set_exception(failure)
    except Exception as failure:
        log.exception("The worker failed", extra={"action": "worker_failed"})
        ending.set_exception(failure)
