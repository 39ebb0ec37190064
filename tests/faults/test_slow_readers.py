"""Slow readers and stuck ones: what they are owed they get, whole and in order, and nobody else pays for them."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from bus.testing import BusServer, eventually
from tests.faults import short_deadlines
from tests.follower import Follower
from tests.rawws import PING, TEXT, WAIT_SECONDS, Disconnected, RawWebSocket, frame_bytes

MIB = 1024 * 1024
SMALL_BUFFER_BYTES = 4096
"""A receive buffer that makes a slow reader: the kernel doubles it, and takes no more for it."""

STUCK_BOUND_BYTES = 1.5 * MIB
"""What a stuck connection may cost: the 1 MiB that is held for it, and what joining it into chunks wastes."""

BASE_BOUND_BYTES = 48 * MIB
"""What the server may grow by whoever reads: SQLite's pages, the recent part of the log, buffers of the allocator."""


@pytest.fixture(scope="module")
def server() -> Iterator[BusServer]:
    """A server that takes messages of 10 MiB. It commits without waiting for the disk, to fill it quickly."""
    env = {"MAX_MESSAGE_SIZE": str(10 * MIB), "INBOX_LIMIT": "1000000", "DURABILITY": "relaxed"}
    with BusServer(env=env) as running:
        yield running


def send(server: BusServer, sender: str, to: Any, payload: object, **more: object) -> int:
    """Send over REST, and return the seq."""
    answer = server.call("POST", "/api/send", {"from": sender, "to": to, "payload": payload, **more})
    assert answer.status == 200, answer.body
    return answer.body["seq"]


def send_numbered(
    server: BusServer, sender: str, to: str, count: int, size: int, seqs: list[int] | None = None
) -> list[int]:
    """Send `count` numbered messages of `size` bytes over REST, in batches. Their seqs, also added to `seqs`."""
    seqs = [] if seqs is None else seqs
    step = max(1, min(100, 8 * MIB // size))
    for start in range(0, count, step):
        batch = [
            {"from": sender, "to": to, "payload": {"n": number, "pad": "x" * size}}
            for number in range(start, min(start + step, count))
        ]
        answer = server.call("POST", "/api/send/batch", {"messages": batch})
        assert answer.status == 200, answer.body
        seqs += [result["seq"] for result in answer.body["results"]]
    return seqs


def stuck_reader(server: BusServer, client: str, query: str = "") -> RawWebSocket:
    """A connection with a small buffer that reads its welcome, and then nothing."""
    path = f"/ws/{client}" + (f"?{query}" if query else "")
    reader = RawWebSocket(server.port, path, receive_buffer_bytes=SMALL_BUFFER_BYTES)
    assert reader.read_json()["type"] == "connection_confirmed"
    return reader


def widen(reader: RawWebSocket, size: int) -> None:
    """Give a reader another receive buffer; it does not shrink below what has come."""
    reader.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)


def read_messages(reader: RawWebSocket, count: int) -> list[dict[str, Any]]:
    """The next `count` messages."""
    messages = []
    while len(messages) < count:
        frame = reader.read_json()
        if frame["type"] == "message":
            messages.append(frame["message"])
    return messages


def resident_bytes(server: BusServer) -> int:
    """What the server's only worker has in memory."""
    (pid,) = server.worker_pids()
    path = Path(f"/proc/{pid}/status")
    if not path.exists():
        pytest.skip("The memory of a process is read from /proc, which this system does not have.")
    (line,) = [line for line in path.read_text().splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) * 1024


def send_until_refused(asker: RawWebSocket, data: bytes, most_bytes: int) -> bytes:
    """Send and read nothing, until the server has not read for a second. Returns what is left of `data`."""
    asker.socket.settimeout(1.0)
    sent = 0
    while sent < most_bytes:
        try:
            sent += asker.socket.send(data[sent % len(data) :])
        except TimeoutError:
            return data[sent % len(data) :]
    raise AssertionError(f"The server took {most_bytes} bytes from a client that reads nothing.")


def settled_bytes(server: BusServer) -> int:
    """What the server has in memory once that does not grow any more."""
    readings: list[int] = []

    def is_settled() -> bool:
        readings.append(resident_bytes(server))
        return len(readings) > 10 and max(readings[-10:]) <= readings[-10] + MIB

    eventually(is_settled, within_seconds=20, what="an end of the growth")
    return max(readings)


def status_of(server: BusServer, client: str) -> dict[str, Any]:
    """What `/api/clients/<client>` says."""
    return server.call("GET", f"/api/clients/{client}").body


# ---- large messages


def test_a_message_of_eight_megabytes_reaches_a_slow_reader_whole(server: BusServer) -> None:
    chance = random.Random(8)
    text = "".join(chance.choices('abcdefghijklmnopqrstuvwxyz שלום€"\\\n', k=1_000_000))
    whole = {"text": text * 7, "end": True}
    assert len(json.dumps(whole, ensure_ascii=False).encode()) > 8_000_000
    with stuck_reader(server, "slow-whole") as reader:
        before = send(server, "giver", "slow-whole", "before")
        large = send(server, "giver", "slow-whole", whole)
        again = send(server, "giver", "slow-whole", whole)
        after = send(server, "giver", "slow-whole", "after")
        widen(reader, 256 * 1024)
        messages = read_messages(reader, 4)
    assert [message["seq"] for message in messages] == [before, large, again, after]
    assert messages[1]["payload"] == whole
    assert messages[2]["payload"] == whole


def test_two_senders_of_large_messages_to_one_socket_never_interleave(server: BusServer) -> None:
    count, size = 40, 200_000

    def payload(sender: str, number: int) -> dict[str, Any]:
        return {"sender": sender, "n": number, "body": (f"{sender}-{number:03}-" * (size // 6))[:size]}

    def send_all(sender: str) -> None:
        with RawWebSocket(server.port, f"/ws/{sender}") as socket:
            for number in range(count):
                socket.send_json({"type": "send", "to": "narrow", "payload": payload(sender, number), "ref": number})
            for _ in range(count):
                socket.read_until("sent")

    with stuck_reader(server, "narrow") as reader:
        senders = [threading.Thread(target=send_all, args=(name,)) for name in ("one", "two")]
        for thread in senders:
            thread.start()
        messages: list[dict[str, Any]] = []
        pongs = 0
        widen(reader, 64 * 1024)
        while len(messages) < 2 * count:
            if len(messages) % 10 == 0:
                reader.send_json({"type": "ping"})  # what answers it goes out between the pieces
            frame = reader.read_json()
            pongs += frame["type"] == "pong"
            if frame["type"] == "message":
                messages.append(frame["message"])
        for thread in senders:
            thread.join()
    for name in ("one", "two"):
        of_one = [message["payload"] for message in messages if message["from"] == name]
        assert of_one == [payload(name, number) for number in range(count)]
    assert [message["seq"] for message in messages] == sorted(message["seq"] for message in messages)
    assert pongs > 0


# ---- stuck readers


def test_stuck_readers_cost_a_bounded_memory_and_nobody_else_any_message(server: BusServer) -> None:
    stuck_count, healthy_count, to_all, to_each, size = 16, 8, 400, 500, 16_000
    with ExitStack() as open_sockets:
        healthy = [open_sockets.enter_context(Follower(server.port, f"well-{i}")) for i in range(healthy_count)]
        stuck = [open_sockets.enter_context(stuck_reader(server, f"stuck-{i}")) for i in range(stuck_count)]
        before = resident_bytes(server)
        shared = send_numbered(server, "crier", "all", to_all, size)
        owed = [shared + send_numbered(server, "crier", f"stuck-{i}", to_each, size) for i in range(stuck_count)]
        for follower in healthy:
            follower.wait_for(to_all)
            assert follower.seqs == shared
        grown = settled_bytes(server) - before
        assert grown < BASE_BOUND_BYTES + stuck_count * STUCK_BOUND_BYTES, f"{grown / MIB:.0f} MiB more"

        # Half of them read again; what they get has no hole and no repeat.
        for reader, seqs in zip(stuck[::2], owed[::2], strict=True):
            widen(reader, MIB)
            assert [message["seq"] for message in read_messages(reader, len(seqs))] == seqs
        # The others give up and come back, and are stuck again: with all that the log has for them.
        for index in range(1, stuck_count, 2):
            stuck[index].close()
            stuck[index] = open_sockets.enter_context(stuck_reader(server, f"stuck-{index}"))
        grown = settled_bytes(server) - before
        assert grown < BASE_BOUND_BYTES + stuck_count * STUCK_BOUND_BYTES, f"{grown / MIB:.0f} MiB more"
        for reader, seqs in zip(stuck[1::2], owed[1::2], strict=True):
            widen(reader, MIB)
            assert [message["seq"] for message in read_messages(reader, len(seqs))] == seqs
        # They keep up again.
        last = send(server, "crier", "all", "last")
        for reader in stuck:
            assert read_messages(reader, 1)[0]["seq"] == last


def test_a_reader_that_stops_and_goes_by_turns_gets_all_in_order_while_messages_flow(server: BusServer) -> None:
    count, size, far = 6000, 5000, 800
    seqs: list[int] = []
    with stuck_reader(server, "moody") as reader:
        sender = threading.Thread(target=send_numbered, args=(server, "flow", "moody", count, size, seqs))
        sender.start()
        messages: list[dict[str, Any]] = []
        chance = random.Random(3)
        while len(messages) < count:
            # It waits until it is far behind, so that it was left out, and then reads past where that was.
            wanted = min(len(messages) + far, count)
            eventually(lambda wanted=wanted: len(seqs) >= wanted, what="more messages")
            widen(reader, chance.choice((SMALL_BUFFER_BYTES, 65536, MIB)))
            messages += read_messages(reader, min(chance.randrange(1, 2 * far), len(seqs) - len(messages)))
        sender.join()
    assert [message["seq"] for message in messages] == seqs


def test_ephemeral_messages_that_a_stuck_reader_loses_are_counted(server: BusServer) -> None:
    count, size = 400, 20_000
    with stuck_reader(server, "blink") as reader, RawWebSocket(server.port, "/ws/flash") as flash:
        for number in range(count):
            send = {"type": "send", "to": "blink", "payload": {"n": number, "pad": "x" * size}, "ref": number}
            flash.send_json(send | {"ephemeral": True})
        states = [flash.read_until("sent")["recipients"][0]["state"] for _ in range(count)]
        assert states.count("dropped") > 100
        (durable,) = send_numbered(server, "flash", "blink", 1, 10)
        widen(reader, MIB)
        got, dropped, seqs = [], 0, []
        while not (dropped and seqs):
            frame = reader.read_json()
            if frame["type"] == "dropped":
                dropped += frame["n"]
            elif frame["type"] == "message" and frame["message"]["seq"] is None:
                got.append(frame["message"]["payload"]["n"])
            elif frame["type"] == "message":
                seqs.append(frame["message"]["seq"])
    assert got == sorted(got)
    assert len(got) + dropped == count
    assert seqs == [durable]


@pytest.mark.parametrize(
    "kind", ["error", *(pytest.param(kind, marks=pytest.mark.full) for kind in ("ping", "control"))]
)
def test_a_client_that_asks_without_reading_the_answers_is_not_answered_into_memory(
    server: BusServer, kind: str
) -> None:
    frames = {
        "ping": frame_bytes(TEXT, b'{"type":"ping"}') * 1000,
        "error": frame_bytes(TEXT, b'{"type":"unheard-of","ref":"%b"}' % (b"r" * 50_000)),
        "control": frame_bytes(PING, b"x" * 100) * 1000,
    }
    before = resident_bytes(server)
    with stuck_reader(server, f"asker-{kind}") as asker:
        rest = send_until_refused(asker, frames[kind], 100 * MIB)
        assert resident_bytes(server) - before < BASE_BOUND_BYTES
        # When it reads the answers, the server reads on.
        last = frame_bytes(TEXT, b'{"type":"send","to":"nobody","payload":1,"ref":"last"}')
        asker.socket.settimeout(WAIT_SECONDS)
        sender = threading.Thread(target=asker.socket.sendall, args=(rest + last,))
        sender.start()
        widen(asker, MIB)
        assert asker.read_until("sent")["ref"] == "last"
        sender.join()


# ---- deadlines


@pytest.fixture(scope="module")
def hasty_server() -> Iterator[BusServer]:
    """A server whose heartbeat has short deadlines."""
    with BusServer(env={"BUS_EXTENSIONS": short_deadlines.__name__, "INBOX_LIMIT": "1000000"}) as running:
        yield running


def test_a_reader_that_makes_no_progress_is_closed_and_misses_nothing(hasty_server: BusServer) -> None:
    count = 800
    with Follower(hasty_server.port, "lively") as lively, stuck_reader(hasty_server, "frozen") as frozen:
        began = time.monotonic()
        seqs = send_numbered(hasty_server, "crier", "all", count, 10_000)

        def is_gone() -> bool:
            with suppress(ConnectionError):
                frozen.send_json({"type": "ping"})  # it is not silent, it only does not read
            return not status_of(hasty_server, "frozen")["online"]

        eventually(is_gone, what="the end of the stuck connection")
        assert time.monotonic() - began >= short_deadlines.STUCK_SECONDS
        lively.wait_for(count)
        assert status_of(hasty_server, "lively")["online"]
        with pytest.raises(Disconnected):
            read_messages(frozen, count)
        with Follower(hasty_server.port, "frozen") as back:
            back.wait_for(count)
            assert back.seqs == seqs


def test_a_reader_that_is_slow_but_reads_is_left_alone(hasty_server: BusServer) -> None:
    count = 2000
    with stuck_reader(hasty_server, "crawling") as crawling:
        seqs = send_numbered(hasty_server, "crier", "crawling", count, 4_000)
        ends = time.monotonic() + 2.5 * short_deadlines.STUCK_SECONDS
        messages: list[dict[str, Any]] = []
        while time.monotonic() < ends:
            messages += read_messages(crawling, 1)
            time.sleep(0.05)  # this is what is tested: somebody slow
        assert len(messages) < count
        widen(crawling, MIB)
        messages += read_messages(crawling, count - len(messages))
    assert [message["seq"] for message in messages] == seqs


def test_a_peer_that_is_silent_is_dropped_and_one_that_answers_pings_stays(hasty_server: BusServer) -> None:
    with (
        RawWebSocket(hasty_server.port, "/ws/mute", answers_pings=False) as mute,
        Follower(hasty_server.port, "polite") as polite,
    ):
        began = time.monotonic()
        with pytest.raises(Disconnected):
            read_messages(mute, 1)
        assert time.monotonic() - began >= short_deadlines.SILENT_SECONDS
        assert mute.pings
        assert polite.close_code is None
        send(hasty_server, "crier", "polite", "still there?")
        polite.wait_for(1)
