"""`bus.testing.BusServer`: what tests of the bus, and of programs that use it, stand on."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from bus.testing import BusServer, ServerFailed, eventually, free_port, gunicorn, processes

pytestmark = pytest.mark.one_node("the handle of one server")

Fresh = Callable[..., BusServer]


def gone(pids: list[int]) -> bool:
    return not [process for process in processes() if process.pid in pids and process.is_alive]


def test_a_stopped_server_says_so_and_leaves_nothing(fresh_server: Fresh) -> None:
    server = fresh_server(workers=2)
    pids = [server.pid, *server.worker_pids()]
    assert len(pids) == 3
    assert server.terminate() == 0
    assert not server.is_running
    assert gone(pids)


def test_a_kill_reaches_the_master_and_every_worker(fresh_server: Fresh) -> None:
    server = fresh_server(workers=2)
    pids = [server.pid, *server.worker_pids()]
    server.kill()
    assert gone(pids)
    server.kill()


def test_a_restart_keeps_the_port_and_the_log(fresh_server: Fresh) -> None:
    server = fresh_server()
    before = server.port, server.pid
    server.call("POST", "/api/send", {"from": "code", "to": "browser", "payload": "kept"})
    server.restart()
    assert server.port == before[0]
    assert server.pid != before[1]
    assert server.call("GET", "/api/messages?to=browser").body["messages"][0]["payload"] == "kept"


def test_a_killed_worker_is_replaced(fresh_server: Fresh) -> None:
    server = fresh_server(workers=2)
    victim, other = server.worker_pids()
    server.kill_worker(victim)
    eventually(lambda: len(server.worker_pids()) == 2, what="a second worker")
    assert other in server.worker_pids()
    assert victim not in server.worker_pids()
    with pytest.raises(ValueError, match="not a worker"):
        server.kill_worker(victim)


def test_the_documented_gunicorn_command_starts_it(fresh_server: Fresh) -> None:
    server = fresh_server(workers=2, command=gunicorn(2))
    assert len(server.worker_pids()) == 2
    assert server.call("GET", "/health").body == {"status": "healthy"}


def test_a_server_that_exits_at_once_is_shown_with_its_words(fresh_server: Fresh) -> None:
    with pytest.raises(ServerFailed, match=r"exited with \d+ (?s:.)*DURABILITY"):
        fresh_server(env={"DURABILITY": "sometimes"})


def test_a_server_that_never_answers_is_killed(fresh_server: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    server = BusServer(command=[sys.executable, "-c", "import signal; print('deaf', flush=True); signal.pause()"])
    clock = SimpleNamespace(monotonic=lambda: 1000.0 if "deaf" in server.log else 0.0, sleep=time.sleep)
    monkeypatch.setattr("bus.testing.time", clock)  # the time is over once the server has said its word
    with pytest.raises(ServerFailed, match="deaf"):
        server.start()
    assert not server.is_running
    server.close()


def test_it_sees_none_of_the_callers_settings(fresh_server: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DURABILITY", "nonsense")
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "--worker-class nonsense")
    monkeypatch.setenv("MESSAGE_BUS_PORT", str(free_port()))
    assert fresh_server().call("GET", "/health").status == 200


def test_closing_removes_the_temporary_folder_and_nothing_else(tmp_path_factory: pytest.TempPathFactory) -> None:
    own = tmp_path_factory.mktemp("own")
    with BusServer() as first, BusServer(data_dir=own) as second:
        temporary = first.data_dir
        assert any(temporary.iterdir())
        assert second.data_dir == own
    assert not temporary.exists()
    assert any(own.iterdir())
    with pytest.raises(ServerFailed, match="before it is started"):
        os.fspath(first.url)


def test_eventually_says_what_did_not_come() -> None:
    with pytest.raises(TimeoutError, match="the second coming"):
        eventually(lambda: 0, within_seconds=0.05, what="the second coming")


def test_an_empty_number_of_workers_counts_as_unset(fresh_server: Callable[..., BusServer]) -> None:
    assert len(fresh_server(env={"WEB_CONCURRENCY": ""}).worker_pids()) == 1
