"""Connections of the lane for sends: who serves what on one, however its bytes come, and how it ends."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from bus.testing import HOST, BusServer, eventually, free_port, gunicorn
from tests.calls import call
from tests.line import FLASK, LANE, SEAMS, TO_FLASK, Line, get, post
from tests.refusals import GOOD, MAX_BYTES, sending

Start = Callable[..., BusServer]


# ---- who serves what

OTHERS: dict[str, tuple[bytes, int]] = {
    "another path": (get(), 200),
    "another method": (post().replace(b"POST", b"PUT", 1), 405),
    "a query": (post(path="/api/send?a=b"), 200),
    "an escape": (post(path="/api/%73end"), 200),
    "no type": (post(Content_Type="text/plain"), 415),
    "a coding": (post(Content_Encoding="identity"), 200),
    "an unknown coding": (post(Content_Encoding="br"), 415),
    "a header twice": (post().replace(b"\r\n", b"\r\nX-A: 1\r\nX-A: 2\r\n", 1), 200),
    "a cookie": (post(Cookie="a=b"), 200),
    "a page behind it": (post(Origin="https://example.com"), 403),
    "a foreign host": (post(Host="example.com"), 403),
    "no host": (post().replace(b"Host: localhost\r\n", b""), 200),
    "an upgrade": (post(Upgrade="h2c", Connection="Upgrade"), 200),
    "a list of connection options": (post(Connection="keep-alive, te"), 200),
    "a large head": (post(X_Large="x" * 8100), 200),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_requests_and_sends_share_a_connection(each_seams: BusServer, name: str) -> None:
    text, status = OTHERS[name]
    asked = (post(), text, get(), post(), text, text, get(), post())
    with Line(each_seams) as line:
        answers = [line.ask(data) for data in asked]
    assert [answer.by for answer in answers] == [FLASK if data in (text, get()) else LANE for data in asked]
    assert [answer.status for answer in answers] == [status if data == text else 200 for data in asked]


def test_expect_and_chunks_are_gunicorns(seams: BusServer) -> None:
    with Line(seams) as line:
        head, body = post(Expect="100-continue").split(b"\r\n\r\n")
        line.send(head + b"\r\n\r\n")
        assert line.file.readline() == b"HTTP/1.1 100 Continue\r\n"
        assert line.file.readline() == b"\r\n"
        assert line.ask(body).by == FLASK
        chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(sending()), sending())
        assert line.ask(post(chunks, Transfer_Encoding="chunked")).by == FLASK


def test_http_1_0_and_close_end_the_connection(seams: BusServer) -> None:
    with Line(seams) as line:
        answer = line.ask(post().replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert (answer.by, answer.status) == (FLASK, 200)
        assert line.has_ended()
    with Line(seams) as line:
        answer = line.ask(post(Connection="Close"))
        assert (answer.by, dict(answer.headers)["Connection"]) == (LANE, "close")
        assert line.has_ended()


def test_a_websocket_opens_on_a_connection_that_sent(each_seams: BusServer) -> None:
    with Line(each_seams) as line:
        assert line.ask(post(sending(to="late"))).by == LANE
        fields = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13"
        key = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="
        line.send(f"GET /ws/late HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n{key}\r\n\r\n".encode())
        assert line.file.readline().startswith(b"HTTP/1.1 101 ")
        while line.file.readline() != b"\r\n":
            pass
        assert line.file.read(2)[0] == 0x81


def test_where_somebody_wants_to_see_each_request_flask_serves_them_all(fresh_server: Start) -> None:
    server = fresh_server(env=SEAMS, command=gunicorn(1, "--access-logfile", "-"))
    with Line(server) as line:
        assert [line.ask(post()).by for _ in range(2)] == [FLASK, FLASK]
    assert "Flask serves every send" in server.log


# ---- how bytes come


def test_pipelined_requests_are_answered_in_order(each_seams: BusServer) -> None:
    names = [f"r{number}" for number in range(100)]
    asked = [post(sending(to=name)) if at % 7 != 6 else get(f"/api/clients/{name}") for at, name in enumerate(names)]
    with Line(each_seams) as line:
        line.send(b"".join(asked))
        answers = [line.read() for _ in asked]
    for at, (name, answer) in enumerate(zip(names, answers, strict=True)):
        if at % 7 != 6:
            assert [recipient["client"] for recipient in answer.body["recipients"]] == [name]
        else:
            assert answer.status == 404
    seqs = [answer.body["seq"] for answer in answers if answer.status == 200]
    assert seqs == sorted(set(seqs))
    assert [answer.by for answer in answers[:8]] == [LANE] * 6 + [FLASK] * 2


def test_a_request_may_come_byte_by_byte(each_seams: BusServer) -> None:
    with Line(each_seams) as line:
        for _ in range(2):
            for byte in post():
                line.send(bytes([byte]))
            answer = line.read()
            assert (answer.status, answer.by) == (200, LANE)
        for byte in get():
            line.send(bytes([byte]))
        assert line.read().by == FLASK
        assert line.ask(post()).by == LANE


@pytest.mark.parametrize("size", [8192, 100_000, MAX_BYTES - 100])
def test_a_large_body_comes_in_parts(seams: BusServer, size: int) -> None:
    with Line(seams) as line:
        line.send(post(sending(payload="x" * size)) * 3)
        assert [line.read().by for _ in range(3)] == [LANE] * 3


@pytest.mark.parametrize(("path", "factor"), [("/api/send", 1), ("/api/send/batch", 16)])
def test_what_is_too_large_is_flasks_before_its_body_is_there(seams: BusServer, path: str, factor: int) -> None:
    with Line(seams) as line:
        answer = line.ask(post(b" ", path=path, announced=factor * MAX_BYTES + 1))
    assert (answer.by, answer.status, answer.body["code"]) == (FLASK, 413, "too_large")


@pytest.mark.parametrize(
    "rubbish", [b"\r\n\r\n\r\n", b"\0" * 100, b"POST /api/send HTTP/1.1\r\nx\r\n\r\n", b"\x16\x03\x01"]
)
def test_rubbish_behind_a_send_harms_nobody(seams: BusServer, rubbish: bytes) -> None:
    with Line(seams) as other, Line(seams) as line:
        line.send(post() + rubbish)
        assert line.read().status == 200
        line.sock.shutdown(socket.SHUT_WR)
        assert line.file.read(12) in (b"", b"HTTP/1.1 400")
        assert other.ask(post()).status == 200


def test_a_client_that_hangs_up_is_let_go(seams: BusServer) -> None:
    half = post(announced=len(sending()) + 1)
    with Line(seams) as line:
        line.send(half)
        line.sock.shutdown(socket.SHUT_WR)
        answer = line.read()
        assert (answer.by, answer.status, answer.body["code"]) == (LANE, 400, "bad_body")
        assert line.has_ended()
    with Line(seams) as line:  # what is whole is answered, though nothing more will come
        line.send(post())
        line.sock.shutdown(socket.SHUT_WR)
        assert line.read().status == 200
        assert line.has_ended()
    before = call(seams, "GET", "/api/status")["metrics"]["total_messages"]
    for data in (b"", b"POST", post()[:30], half, half[:-20]):
        with Line(seams) as line:
            line.send(data)
            line.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # an RST
    assert call(seams, "GET", "/api/status")["metrics"]["total_messages"] == before
    with ExitStack() as lines:
        for _ in range(20):
            lines.enter_context(Line(seams)).send(post())
    eventually(
        lambda: call(seams, "GET", "/api/status")["metrics"]["total_messages"] == before + 20, what="what was whole"
    )
    assert "Traceback" not in seams.log


@pytest.mark.parametrize("headers", [{}, TO_FLASK, {"Transfer-Encoding": "chunked"}], ids=["lane", "flask", "chunks"])
def test_a_body_that_does_not_come_is_not_waited_for(seams: BusServer, headers: dict[str, str]) -> None:
    with Line(seams) as line:
        line.send(post(b"5\r\n{", announced=1000, **headers))
        answer = line.read()
        assert (answer.status, answer.body["code"], answer.by) == (408, "too_slow", FLASK if headers else LANE)
        assert line.has_ended()


@pytest.mark.parametrize("beginning", [b"", b"POST /api/s", post()[:-60], b"GET /hea"])
def test_a_head_that_does_not_come_is_not_waited_for(impatient: BusServer, beginning: bytes) -> None:
    with Line(impatient) as line:
        assert line.ask(post()).by == LANE
        line.send(beginning)
        assert line.has_ended()


@pytest.fixture(scope="module")
def impatient() -> Iterator[BusServer]:
    """A server that waits for a head for a second only."""
    with BusServer(env=SEAMS, command=gunicorn(1, "--keep-alive", "1")) as running:
        yield running


LARGE_BATCH = post(
    json.dumps({"messages": [{**GOOD, "to": "all"}] * 1000}).encode().ljust(10**6), path="/api/send/batch"
)
"""Long to send, and with a long answer."""


@contextmanager
def narrow_line(server: BusServer) -> Iterator[Line]:
    """A connection whose answers soon find no room."""
    with Line(server) as line:
        line.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        yield line


def test_answers_that_are_taken_slowly_come_whole_and_in_order(server: BusServer) -> None:
    count, sent = 20, 0
    data = memoryview(LARGE_BATCH * count)
    with narrow_line(server) as line:
        line.sock.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            while sent < len(data):
                sent += line.sock.send(data[sent:])
        assert sent < len(data), "It reads on though its answers are not taken."
        line.sock.settimeout(10)
        sender = threading.Thread(target=line.send, args=(data[sent:],))
        sender.start()
        seqs = [result["seq"] for _ in range(count) for result in line.read().body["results"]]
        sender.join()
    assert len(seqs) == count * 1000
    assert seqs == sorted(set(seqs))


def test_a_client_that_takes_no_answers_is_dropped(seams: BusServer) -> None:
    with narrow_line(seams) as line, pytest.raises((ConnectionResetError, BrokenPipeError)):
        line.send(LARGE_BATCH * 40)


def test_a_client_that_takes_no_answer_of_flasks_is_dropped(seams: BusServer) -> None:
    (worker,) = map(psutil.Process, seams.worker_pids())
    sends = [{**GOOD, "to": "never-read", "type": "large", "payload": "x" * 500_000}] * 20
    assert call(seams, "POST", "/api/send/batch", {"messages": sends})["count"] == 20
    with narrow_line(seams) as line:
        port = line.sock.getsockname()[1]
        line.send(get("/api/messages?to=never-read&since=earliest&type=large"))

        def is_held() -> bool:
            return any(found.raddr and found.raddr.port == port for found in worker.net_connections("tcp"))

        assert line.sock.recv(100).startswith(b"HTTP/1.1 200 OK")
        eventually(lambda: not is_held(), what="the end of a connection whose answer is not read")
    assert call(seams, "GET", "/health") == {"status": "healthy"}
    assert "Traceback" not in seams.log


# ---- the server around it


@pytest.mark.one_node("signals to one master")
def test_at_sigterm_idle_connections_end_and_what_is_under_way_is_answered(fresh_server: Start) -> None:
    server = fresh_server()
    with Line(server) as idle, Line(server) as fresh, Line(server) as busy:
        assert idle.ask(post()).status == 200
        text = post()
        busy.send(text[:-5])
        assert call(server, "GET", "/health") == {"status": "healthy"}
        os.kill(server.pid, signal.SIGTERM)
        assert idle.has_ended()
        assert fresh.has_ended()
        answer = busy.ask(text[-5:])
        assert (answer.status, dict(answer.headers)["Connection"]) == (200, "close")
        assert busy.has_ended()
        assert server.wait(10) == 0


@pytest.mark.one_node("a full process")
def test_the_lanes_connections_count_against_gunicorns_limit(fresh_server: Start) -> None:
    server = fresh_server(env=SEAMS, command=gunicorn(1, "--worker-connections", "3"))
    with Line(server) as one, Line(server) as two, Line(server) as three, Line(server) as late:
        asked = ((one, post()), (two, get()), (three, post()))
        assert [line.ask(data).by for line, data in asked] == [LANE, FLASK, LANE]
        late.send(post())
        assert [line.ask(data).by for line, data in asked] == [LANE, FLASK, LANE]
        assert not readable(late.sock)
        one.__exit__()
        assert late.read().by == LANE


def readable(sock: socket.socket) -> bool:
    """Whether there is something to read now."""
    return bool(select.select([sock], [], [], 0)[0])


def test_every_listener_has_the_lane(fresh_server: Start, tmp_path: Path) -> None:
    path, port, other_port = tmp_path / "bus.sock", free_port(), free_port()
    binds = ["--bind", f"{HOST}:{port}", "--bind", f"unix:{path}", "--bind", f"[::1]:{other_port}"]
    server = fresh_server(env=SEAMS, port=port, command=gunicorn(1, *binds))
    for line in (Line(path), Line(other_port, "::1"), Line(server)):
        with line:
            answers = [line.ask(data) for data in (post(), get(), post())]
            assert [answer.by for answer in answers] == [LANE, FLASK, LANE]
            for byte in post():
                line.send(bytes([byte]))
            assert line.read().status == 200


def test_a_hundred_clients_lose_nothing(each_seams: BusServer) -> None:
    connections = [http.client.HTTPConnection(HOST, each_seams.port, timeout=10) for _ in range(100)]
    before = call(each_seams, "GET", "/api/status")["metrics"]["total_messages"]
    for _ in range(5):
        for connection in connections:
            connection.request("POST", "/api/send", sending(), {"Content-Type": "application/json"})
        answers = [json.loads(connection.getresponse().read()) for connection in connections]
        assert len({answer["seq"] for answer in answers}) == 100
    for connection in connections:
        connection.close()
    assert call(each_seams, "GET", "/api/status")["metrics"]["total_messages"] == before + 500
