"""What `python server_ws.py` says before it becomes gunicorn."""

from __future__ import annotations

import socket

from bus.launch import in_the_way


def test_a_port_that_is_taken_is_told_with_the_cure() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = in_the_way("127.0.0.1", port)
    assert said is not None
    assert f"127.0.0.1:{port}" in said
    assert "MESSAGE_BUS_PORT" in said
    assert in_the_way("127.0.0.1", port) is None


def test_what_can_not_be_told_is_left_to_gunicorn() -> None:
    assert in_the_way("no.such.host.invalid", 5001) is None
    assert in_the_way("203.0.113.1", 5001) is None
