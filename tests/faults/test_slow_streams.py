"""Slow and stuck readers of event streams: they are owed everything, whole and in order, and nobody else pays for them."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from bus.testing import BusServer, eventually
from tests.calls import call, send, send_all
from tests.event_source import EventSource
from tests.faults import short_deadlines
from tests.faults.test_slow_readers import BASE_BOUND_BYTES, MIB, SMALL_BUFFER_BYTES, STUCK_BOUND_BYTES, resident_bytes


@pytest.fixture(scope="module")
def server() -> Iterator[BusServer]:
    """A server that commits without waiting for the disk, to fill it quickly."""
    with BusServer(env={"INBOX_LIMIT": "1000000", "DURABILITY": "relaxed"}) as running:
        yield running


@pytest.fixture(scope="module")
def hasty_server() -> Iterator[BusServer]:
    """A server whose heartbeat has short deadlines, and whose streams a quick one."""
    extensions = f"{short_deadlines.__name__},tests.faults.quick_streams"
    with BusServer(env={"BUS_EXTENSIONS": extensions, "INBOX_LIMIT": "1000000"}) as running:
        yield running


def stuck(server: BusServer, client: str, query: str = "") -> EventSource:
    """A stream with a small buffer that reads its welcome, and then nothing."""
    source = EventSource(server, f"client_id={client}{query}", receive_buffer_bytes=SMALL_BUFFER_BYTES)
    assert source.read().event == "connected"
    return source


def widen(source: EventSource, size: int = MIB) -> None:
    source.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)


def send_numbered(server: BusServer, to: str, count: int, size: int) -> None:
    send_all(server, [{"to": to, "payload": {"n": number, "pad": "x" * size}} for number in range(count)])


def numbers(source: EventSource, count: int) -> list[int]:
    return [event.payload["n"] for event in source.take(count, within_seconds=30)]


def test_stuck_streams_hold_back_nobody_cost_a_bounded_amount_and_miss_nothing(server: BusServer) -> None:
    count, size, crowd = 1500, 4000, 20
    with ExitStack() as stack:
        slow = [stack.enter_context(stuck(server, f"stuck-{number}")) for number in range(crowd)]
        lively = stack.enter_context(EventSource(server, "client_id=lively"))
        before = resident_bytes(server)
        for start in range(0, count, 500):
            batch = [{"to": "all", "payload": {"n": n, "pad": "x" * size}} for n in range(start, start + 500)]
            send_all(server, batch)
        lively.read_until("connected")
        assert numbers(lively, count) == list(range(count))
        assert resident_bytes(server) - before < BASE_BOUND_BYTES + crowd * STUCK_BOUND_BYTES
        for source in slow:
            widen(source)
            assert numbers(source, count) == list(range(count))
        send(server, "all", {"n": -1})
        for source in slow:
            assert numbers(source, 1) == [-1]


def test_a_filtered_stream_that_stops_for_a_while_gets_its_own_in_order(server: BusServer) -> None:
    with stuck(server, "picky", "&types=wanted") as source:
        for start in range(0, 1200, 300):
            send_all(
                server,
                [
                    {"to": "picky", "type": "wanted" if n % 3 == 0 else "other", "payload": {"n": n, "pad": "x" * 4000}}
                    for n in range(start, start + 300)
                ],
            )
        widen(source)
        assert numbers(source, 400) == list(range(0, 1200, 3))


def test_a_stuck_stream_is_ended_and_goes_on_where_it_was(hasty_server: BusServer) -> None:
    with stuck(hasty_server, "frozen") as frozen:
        began = time.monotonic()
        send_numbered(hasty_server, "frozen", 1000, 10_000)
        eventually(
            lambda: not call(hasty_server, "GET", "/api/clients/frozen")["online"], what="the end of the stuck stream"
        )
        assert time.monotonic() - began >= short_deadlines.STUCK_SECONDS
        widen(frozen)
        got = [event.payload["n"] for event in frozen.read_end()]
        last = frozen.id
    with EventSource(hasty_server, "client_id=frozen", {"Last-Event-ID": last}) as back:
        back.read_until("connected")
        got += numbers(back, 1000 - len(got))
    assert got == list(range(1000))


def test_a_stream_that_reads_more_slowly_than_it_is_written_to_is_left_alone(hasty_server: BusServer) -> None:
    with stuck(hasty_server, "outrun") as source:
        sent = 0
        got: list[int] = []
        ends = time.monotonic() + 4 * short_deadlines.STUCK_SECONDS
        while time.monotonic() < ends:
            for _ in range(3):  # what waits for it grows all the time
                send(hasty_server, "outrun", {"n": sent, "pad": "x" * 3000})
                sent += 1
            got += numbers(source, 1)
            time.sleep(0.02)  # this is what is tested: somebody slow
        widen(source)
        got += numbers(source, sent - len(got))
    assert got == list(range(sent))


def test_a_peer_whose_kernel_takes_nothing_is_dropped_though_nothing_is_held(hasty_server: BusServer) -> None:
    with stuck(hasty_server, "dead"):
        began = time.monotonic()
        send(hasty_server, "dead", "x" * 60_000)
        eventually(lambda: not call(hasty_server, "GET", "/api/clients/dead")["online"], what="the end of the stream")
        assert time.monotonic() - began >= short_deadlines.STUCK_SECONDS


def test_an_idle_stream_is_never_taken_for_a_silent_peer(hasty_server: BusServer) -> None:
    with EventSource(hasty_server, "client_id=idle") as source:
        source.read_until("connected")
        ends = time.monotonic() + 3 * short_deadlines.SILENT_SECONDS
        while time.monotonic() < ends:
            assert source.read_comment() == "heartbeat"
        send(hasty_server, "idle", 1)
        assert source.read().payload == 1


def test_what_a_stuck_peer_did_not_take_moves_no_cursor(server: BusServer) -> None:
    with stuck(server, "unread") as source:
        send_numbered(server, "unread", 200, 10_000)
        source.take(1)
    with EventSource(server, "client_id=unread") as back:
        back.read_until("connected")
        assert numbers(back, 200) == list(range(200))


@pytest.mark.full
@pytest.mark.timeout(300)
def test_two_thousand_idle_streams_leave_the_server_to_others(server: BusServer) -> None:
    count = 2000
    with ExitStack() as stack:
        sources = [stack.enter_context(EventSource(server)) for _ in range(count)]
        for source in sources:
            source.read_until("connected")
        before = resident_bytes(server)
        assert call(server, "GET", "/stream/stats")["anonymous_streams"] == count
        call(server, "POST", "/stream/broadcast", {"event": "all", "data": 1})
        for source in sources:
            assert source.read().event == "all"
        assert resident_bytes(server) - before < BASE_BOUND_BYTES
