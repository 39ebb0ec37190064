"""What an acknowledgement means: with DURABILITY=full the log was synced before, in the order the kernel saw."""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from bus.testing import BusServer, eventually
from tests.faults import syscalls
from tests.rawws import RawWebSocket

SYNCS = ("fdatasync", "fsync")
WRITES = ("write", "writev", "sendto", "sendmsg")
WAL_HEADER_BYTES, FRAME_HEADER_BYTES = 32, 24
_MARK = re.compile(rb"mark-[\w-]+-end")
_SEQ = re.compile(rb'"seq":(\d+)')

Marks = dict[int, str]
"""By seq, what its payload is: found again in the pages that SQLite writes."""

pytestmark = pytest.mark.full


class Log:
    """What of the log is written, what is committed, and what is on the disk, as the calls go by.

    A transaction is a run of frames in the WAL, a header and a page each; the last header says how long the file is
    then (SQLite file format, 4.1), so a sync before that frame does not cover it.
    """

    def __init__(self) -> None:
        self.durable: set[str] = set()
        self.syncs = 0
        self._written: set[str] = set()
        self._committed: set[str] = set()
        self._covered: set[str] = set()
        self._is_last_frame = False

    def take(self, event: syscalls.Event) -> None:
        """Follow a call on the WAL."""
        if event.call == "pwrite64" and event.is_end:
            if len(event.data) == FRAME_HEADER_BYTES:
                self._is_last_frame = event.data[4:8] != bytes(4)
            elif len(event.data) != WAL_HEADER_BYTES:
                self._written.update(mark.decode() for mark in _MARK.findall(event.data))
                if self._is_last_frame:
                    self._committed |= self._written
        elif event.call in SYNCS and not event.is_end:
            self._covered = set(self._committed)
        elif event.call in SYNCS and event.succeeded:
            self.durable |= self._covered
            self.syncs += 1


def acknowledged_early(trace: Path, marks: Marks) -> tuple[list[str], Log]:
    """The marks that a socket heard of before they were on the disk."""
    early: list[str] = []
    told: set[int] = set()
    folder_is_synced = False
    log = Log()
    for event in syscalls.events(trace):
        if event.target.endswith("-wal"):
            log.take(event)
        elif event.call in SYNCS and event.target.endswith("/data"):
            folder_is_synced |= event.succeeded  # or the log's files might be gone, whatever they held
        elif event.call in WRITES and not event.is_end and event.target.startswith("socket:"):
            for seq in map(int, _SEQ.findall(event.data)):
                told.add(seq)
                if seq in marks and not (folder_is_synced and marks[seq] in log.durable):
                    early.append(marks[seq])
    assert told >= set(marks), "The trace lacks acknowledgements."
    return early, log


def send_over_websocket(server: BusServer, name: str, count: int, *, under_way: int) -> Marks:
    """Send marked messages, so many at a time. Returns what was acknowledged."""
    marks: Marks = {}
    with RawWebSocket(server.port, f"/ws/{name}") as socket:
        for start in range(0, count, under_way):
            for number in range(start, start + under_way):
                mark = f"mark-{name}-{number:04}-end"
                socket.send_json({"type": "send", "to": "listener", "payload": mark, "ref": mark})
            for _ in range(under_way):
                sent = socket.read_until("sent")
                marks[sent["seq"]] = sent["ref"]
    return marks


def send_over_rest(server: BusServer, name: str, count: int) -> Marks:
    """Send marked messages one after the other. Returns what was acknowledged."""
    marks: Marks = {}
    for number in range(count):
        mark = f"mark-{name}-{number:04}-end"
        answer = server.call("POST", "/api/send", {"from": name, "to": "listener", "payload": mark})
        assert answer.status == 200
        marks[answer.body["seq"]] = mark
    return marks


@pytest.fixture
def run(tmp_path: Path, fresh_server: Callable[..., BusServer]) -> Callable[..., tuple[Path, Marks]]:
    """A function that starts a server under strace, sends to it and stops it; gives what strace wrote and the marks."""

    def run(
        *sends: Callable[[BusServer], Marks], workers: int = 1, env: dict[str, str] | None = None
    ) -> tuple[Path, Marks]:
        trace = tmp_path / "trace"
        server = fresh_server(command=syscalls.traced(trace), workers=workers, env=env)
        marks: Marks = {}
        with RawWebSocket(server.port, "/ws/listener"):
            threads = [threading.Thread(target=lambda send=send: marks.update(send(server))) for send in sends]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert server.terminate() == 0
        last = json.dumps(f'"seq":{max(marks)}')[1:-1]
        eventually(lambda: last in trace.read_text(errors="replace"), what="the end of the trace")
        return trace, marks

    return run


def test_a_sync_of_the_log_that_covers_it_precedes_each_acknowledgement(run: Callable[..., tuple[Path, Marks]]) -> None:
    trace, marks = run(
        lambda server: send_over_websocket(server, "single", 30, under_way=1) | send_over_rest(server, "rest", 30)
    )
    early, log = acknowledged_early(trace, marks)
    assert early == []
    assert len(marks) == 60
    assert log.syncs >= 60  # one at a time: a sync for each


def test_many_senders_on_several_workers_share_syncs_and_each_is_covered(
    run: Callable[..., tuple[Path, Marks]],
) -> None:
    trace, marks = run(
        lambda server: send_over_websocket(server, "ws-one", 300, under_way=30),
        lambda server: send_over_websocket(server, "ws-two", 300, under_way=30),
        lambda server: send_over_rest(server, "rest", 40),
        workers=2,
    )
    early, log = acknowledged_early(trace, marks)
    assert early == []
    assert len(marks) == 640
    assert 0 < log.syncs < 640


def test_with_relaxed_durability_no_send_waits_for_a_sync(run: Callable[..., tuple[Path, Marks]]) -> None:
    trace, marks = run(
        lambda server: send_over_websocket(server, "single", 20, under_way=1), env={"DURABILITY": "relaxed"}
    )
    sends_began = False
    syncs = []
    for event in syscalls.events(trace):
        sends_began |= marks[min(marks)].encode() in event.data
        if sends_began and event.call in SYNCS and not event.is_end:
            syncs.append(event)
        if marks[max(marks)].encode() in event.data and event.target.startswith("socket:"):
            break
    assert sends_began
    assert syncs == []


def test_acknowledgements_without_a_sync_are_found_out(run: Callable[..., tuple[Path, Marks]]) -> None:
    """The test of the test."""
    trace, marks = run(
        lambda server: send_over_websocket(server, "single", 10, under_way=1), env={"DURABILITY": "relaxed"}
    )
    early, _ = acknowledged_early(trace, marks)
    assert len(early) >= 10


def test_a_send_whose_sync_fails_is_refused_and_the_bus_goes_on(
    tmp_path: Path, fresh_server: Callable[..., BusServer]
) -> None:
    # Each thread counts its own; the writer's begin with the first send, and the start needs fewer.
    failing = syscalls.traced(tmp_path / "trace", "-e", "inject=fdatasync:error=EIO:when=20..24")
    server = fresh_server(command=failing)
    answers = [server.call("POST", "/api/send", {"from": "giver", "to": "taker", "payload": n}) for n in range(40)]
    refused = [n for n, answer in enumerate(answers) if answer.status != 200]
    assert len(refused) == 5
    for n in refused:
        assert (answers[n].status, answers[n].body["code"]) == (503, "outcome_unknown")
        assert "retry-after" in answers[n].headers
    taken = [n for n in range(40) if n not in refused]
    assert payloads(server) == taken
    server.kill()
    server.command = [sys.executable, "server_ws.py"]
    server.start()
    assert payloads(server) == taken


def payloads(server: BusServer) -> list[object]:
    """What is in the log."""
    return [message["payload"] for message in server.call("GET", "/api/log?limit=1000").body["messages"]]
