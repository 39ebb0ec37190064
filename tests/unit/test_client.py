"""The client against a bus that the test scripts: connecting and coming back, receiving, handlers, closing."""

from __future__ import annotations

import logging
import threading

import pytest

from bus.client import BacklogFull, Client, Gap, Message, Offline
from bus.client import session as session_module
from bus.errors import BusError, Forbidden, Malformed, Unauthenticated
from tests.unit.scripted_bus import PATIENCE_SECONDS, Gathered, ScriptedBus, Start, at


def reader_lives() -> bool:
    return any(thread.name == "bus-client-reader" for thread in threading.enumerate())


# ---- connecting and coming back


def test_the_first_connection_leaves_the_place_to_the_bus_and_later_ones_bring_their_own(
    bus: ScriptedBus, start: Start
) -> None:
    client = start()
    first = bus.accept()
    assert first.path == "/ws/reader"
    first.confirm(at(7))
    first.push(9)
    assert client.receive(PATIENCE_SECONDS).seq == 9
    first.cut()
    second = bus.accept()
    assert second.path == "/ws/reader?since=0123456789ab%3A9"


def test_a_client_that_received_nothing_comes_back_to_where_it_began(bus: ScriptedBus, start: Start) -> None:
    start(since="latest")
    first = bus.accept()
    assert first.path.endswith("?since=latest")
    first.confirm(at(41))
    first.close(1012)
    assert bus.accept().path.endswith("?since=0123456789ab%3A41")


def test_the_api_key_goes_in_a_header(bus: ScriptedBus, start: Start) -> None:
    start(api_key="a-key-of-the-tests")
    peer = bus.accept()
    assert peer.headers["X-API-Key"] == "a-key-of-the-tests"
    assert "a-key" not in peer.path


def test_pongs_echo_what_the_ping_carried(bus: ScriptedBus, start: Start) -> None:
    start()
    assert bus.accept_confirmed().connection.ping("4711").wait(PATIENCE_SECONDS)


def test_a_server_that_gives_no_sign_of_life_is_left(
    bus: ScriptedBus, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "SILENCE_SECONDS", 0.05)
    start()
    peer = bus.accept_confirmed()
    with peer.connection.recv_flow_control:  # it reads no more, so it answers no ping
        assert bus.accept().path.endswith(at(0).replace(":", "%3A"))


@pytest.mark.parametrize(
    ("code", "kind"), [(4400, Malformed), (4401, Unauthenticated), (4403, Forbidden), (4499, BusError)]
)
def test_close_codes_that_mirror_http_are_final(
    bus: ScriptedBus, start: Start, code: int, kind: type[BusError]
) -> None:
    client = start()
    waiting = client.send_nowait("writer", 1)
    bus.accept().close(code, "You may not.")
    with pytest.raises(kind, match="You may not"):
        waiting.result(PATIENCE_SECONDS)
    for call in (client.connect, client.receive, lambda: client.send("writer", 2), lambda: next(iter(client))):
        with pytest.raises(kind):
            call()
    assert bus.is_deserted


@pytest.mark.parametrize(("status", "kind"), [(400, Malformed), (401, Unauthenticated), (403, Forbidden)])
def test_a_refused_handshake_is_final(bus: ScriptedBus, status: int, kind: type[BusError]) -> None:
    bus.refuse(status, "The key is wrong.")
    with pytest.raises(kind, match="The key is wrong"), Client("reader", bus.url):
        pass
    assert bus.is_deserted


def test_a_handshake_refused_for_now_is_tried_again(bus: ScriptedBus, start: Start) -> None:
    bus.refuse(503)
    client = start()
    bus.accept_confirmed()
    client.connect(PATIENCE_SECONDS)


def test_names_and_urls_that_can_not_be_are_refused_at_once() -> None:
    with pytest.raises(Malformed, match="client_id"):
        Client("no spaces")
    with pytest.raises(Malformed, match="not the URL"):
        Client("reader", "127.0.0.1:5001")


def test_connect_says_why_it_failed(bus: ScriptedBus, start: Start) -> None:
    bus.refuse(503, "The server is about to stop.")
    client = start()
    bus.accept()  # the second attempt, which is never confirmed
    with pytest.raises(Offline, match="about to stop"):
        client.connect(0)


# ---- receiving


def test_repeats_are_dropped_but_not_what_was_replayed_or_redriven(bus: ScriptedBus, start: Start) -> None:
    client = start()
    peer = bus.accept_confirmed()
    peer.push(1)
    peer.push(1)
    peer.push(1, attempt=2, redelivered=True)
    peer.push(1, replayed=True, replay_of="msg-0")
    peer.push(1, redriven=True)
    peer.push(2)
    received = [client.receive(PATIENCE_SECONDS) for _ in range(5)]
    assert [(m.seq, m.attempt, m.replayed, m.redriven) for m in received] == [
        (1, 1, False, False),
        (1, 2, False, False),
        (1, 1, True, False),
        (1, 1, False, True),
        (2, 1, False, False),
    ]


def test_repeats_are_dropped_over_a_reconnect(bus: ScriptedBus, start: Start) -> None:
    client = start()
    first = bus.accept_confirmed()
    first.push(1)
    first.push(2)
    assert [client.receive(PATIENCE_SECONDS).seq for _ in range(2)] == [1, 2]
    first.cut()
    second = bus.accept_confirmed()
    for seq in (1, 2, 3):
        second.push(seq)
    assert client.receive(PATIENCE_SECONDS).seq == 3


def test_waiting_for_one_type_keeps_the_others_in_order(bus: ScriptedBus, start: Start) -> None:
    client = start()
    peer = bus.accept_confirmed()
    for seq, type_ in enumerate(["note", "note", "result", "note"], 1):
        peer.push(seq, type=type_)
    assert client.receive(PATIENCE_SECONDS, type="result").seq == 3
    assert client.cursor == at(0), "two notes before it were not handed out"
    assert [client.receive(PATIENCE_SECONDS).seq for _ in range(3)] == [1, 2, 4]
    assert client.cursor == at(4)


def test_waiting_for_a_type_that_can_not_come_is_an_error(bus: ScriptedBus, start: Start) -> None:
    client = start(max_received=2)
    peer = bus.accept_confirmed()
    for seq in (1, 2, 3):
        peer.push(seq)
    with pytest.raises(BacklogFull, match="2 messages of other types"):
        client.receive(PATIENCE_SECONDS, type="result")
    assert [client.receive(PATIENCE_SECONDS).seq for _ in range(3)] == [1, 2, 3]


def test_receive_times_out_without_losing_anything(bus: ScriptedBus, start: Start) -> None:
    client = start()
    peer = bus.accept_confirmed()
    with pytest.raises(TimeoutError):
        client.receive(0)
    peer.push(1)
    assert client.receive(PATIENCE_SECONDS).seq == 1


def test_the_cursor_counts_plain_messages_only(bus: ScriptedBus, start: Start) -> None:
    client = start()
    peer = bus.accept_confirmed(at(5))
    peer.push(6)
    peer.push(9, requires_ack=True)
    peer.push(None, id="msg-e1")
    assert [client.receive(PATIENCE_SECONDS).seq for _ in range(3)] == [6, 9, None]
    assert client.cursor == at(6)
    peer.cut()
    assert bus.accept().path.endswith("%3A6")


def test_a_gap_is_told_and_logged(bus: ScriptedBus, start: Start, caplog: pytest.LogCaptureFixture) -> None:
    gaps = Gathered()
    client = start(since=at(3), on_gap=gaps)
    peer = bus.accept()
    gap = {"requested": at(3), "resumed_from": at(50), "reason": "evicted", "lost": 47}
    peer.confirm(at(50), gap=gap)
    assert gaps.next() == Gap(at(3), at(50), "evicted", 47)
    client.connect(PATIENCE_SECONDS)
    assert client.cursor == at(50)
    assert any("up to 47 messages" in record.message and record.levelno == logging.WARNING for record in caplog.records)


def test_dropped_ephemeral_messages_are_told(bus: ScriptedBus, start: Start) -> None:
    dropped = Gathered()
    start(on_dropped=dropped)
    bus.accept_confirmed().say(type="dropped", n=12)
    assert dropped.next() == 12


def test_a_message_keeps_its_own_spelling_and_stays_one_line(bus: ScriptedBus, start: Start) -> None:
    client = start()
    text = '{"type":"message","message":{"id":"m","seq":1,"from":"a","to":"reader","type":"t","payload":\n[1.0, 1e400]'
    bus.accept_confirmed().connection.send(text + ',"timestamp":"2026-02-21T17:27:21+00:00","requires_ack":false}}')
    message = client.receive(PATIENCE_SECONDS)
    assert message.payload == [1.0, float("inf")]
    assert b'"payload": [1.0, 1e400],' in message.json_line()
    assert message.json_line().count(b"\n") == 1


# ---- handlers


def test_handlers_and_receive_share_by_type(bus: ScriptedBus, start: Start) -> None:
    client = start()
    notes, tasks = Gathered(), Gathered()
    client.on("task", tasks)
    peer = bus.accept_confirmed()
    peer.push(1, type="note")
    peer.push(2, type="task")
    assert client.receive(PATIENCE_SECONDS).seq == 1
    assert tasks.next().seq == 2
    client.on()(notes)
    peer.push(3, type="task")
    assert (tasks.next().seq, notes.next().seq) == (3, 3)
    with pytest.raises(ValueError, match="handler"):
        client.receive(0, type="task")


def test_the_cursor_waits_for_the_handler(bus: ScriptedBus, start: Start) -> None:
    client = start()
    entered, leave = threading.Event(), threading.Event()

    def work(message: Message) -> None:
        entered.set()
        assert leave.wait(PATIENCE_SECONDS)

    client.on("task", work)
    peer = bus.accept_confirmed()
    peer.push(1)
    peer.push(2, type="task")
    assert client.receive(PATIENCE_SECONDS).seq == 1
    assert entered.wait(PATIENCE_SECONDS)
    assert client.cursor == at(1)
    leave.set()
    client.close()
    assert client.cursor == at(2)


# ---- closing


def test_close_shakes_hands_and_does_not_come_back(bus: ScriptedBus, start: Start) -> None:
    client = start()
    peer = bus.accept_confirmed()
    client.connect(PATIENCE_SECONDS)
    assert client.close() == 0
    assert peer.closed_with() == 1000
    assert not reader_lives()
    assert bus.is_deserted
    for call in (client.connect, client.receive, lambda: client.send("writer", 1)):
        with pytest.raises(Offline, match="closed"):
            call()
    assert client.close() == 0


def test_close_ends_a_pause_between_attempts(bus: ScriptedBus, start: Start) -> None:
    client = start()
    bus.accept_confirmed().close(1013)
    client.close()
    assert not reader_lives()
    assert bus.is_deserted


def test_close_waits_for_receipts_and_says_what_it_gave_up(bus: ScriptedBus, start: Start) -> None:
    client = start()
    peer = bus.accept_confirmed()
    client.connect(PATIENCE_SECONDS)
    kept = client.send_nowait("writer", 1)
    answering = threading.Thread(target=lambda: peer.answer(peer.hear(), 1))
    answering.start()
    assert client.close(PATIENCE_SECONDS) == 0
    answering.join()
    assert kept.result(0).seq == 1

    other = start()
    lost = other.send_nowait("writer", 2)
    assert other.close(0) == 1
    with pytest.raises(Offline, match="before the message could be sent"):
        lost.result(0)


def test_iteration_ends_when_the_client_is_closed(bus: ScriptedBus, start: Start) -> None:
    client = start()
    peer = bus.accept_confirmed()
    peer.push(1)
    peer.push(2)
    seqs = []
    for message in client:
        seqs.append(message.seq)
        if message.seq == 2:
            client.close()
    assert seqs == [1, 2]


def test_a_full_local_queue_does_not_stand_in_the_way_of_closing(bus: ScriptedBus, start: Start) -> None:
    client = start(max_received=1)
    peer = bus.accept_confirmed()
    for seq in range(1, 200):
        peer.push(seq)
    assert client.receive(PATIENCE_SECONDS).seq == 1
    client.close()
    assert peer.closed_with() == 1000
    left = [message.seq for message in client]
    assert left in ([], [2]), "one fits the queue, and nothing is put in after closing"
    assert client.cursor == at(1 + len(left)), "the rest comes again from here"


def test_a_handler_may_close_its_client(bus: ScriptedBus, start: Start) -> None:
    client = start()
    closed = Gathered()
    client.on("stop", lambda _: closed(client.close()))
    bus.accept_confirmed().push(1, type="stop")
    assert closed.next() == 0
    assert not reader_lives()
