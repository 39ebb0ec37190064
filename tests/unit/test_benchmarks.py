"""The benchmark judges rightly: its load generator notices what is lost or repeated, and a goal knows better from worse."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from websockets.sync.server import ServerConnection, serve

from benchmarks import machine
from benchmarks.goals import Goal
from benchmarks.nodes import Costs, simulate
from benchmarks.runs import Result


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("gcc"):
        pytest.skip("There is no gcc here.")
    return machine.build(tmp_path_factory.mktemp("native"))["load"]


@contextmanager
def relay(copies: Callable[[int], int]) -> Iterator[int]:
    """A server that hands message n of whoever is on /pub to whoever is on /sub, as often as it is told. Its port."""
    subscribers: list[ServerConnection] = []

    def handle(socket: ServerConnection) -> None:
        if socket.request is not None and socket.request.path == "/sub":
            subscribers.append(socket)
        for n, text in enumerate(socket, start=1):
            for _ in range(copies(n)):
                subscribers[0].send(text)

    with serve(handle, "127.0.0.1", 0, compression=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.socket.getsockname()[1]
        server.shutdown()
        thread.join()


def figures_of(load: Path, copies: Callable[[int], int]) -> dict[str, float]:
    """What the generator says of such a server."""
    with relay(copies) as port:
        command = [str(load), "--port", str(port), "--subscribers", "1", "--window", "8", "--message", "{marker}{pad}"]
        command += [
            "--subscriber-path",
            "/sub",
            "--publisher-path",
            "/pub",
            "--seconds",
            "0.2",
            "--warm-seconds",
            "0.1",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def test_a_server_that_does_its_work_is_not_accused(load: Path) -> None:
    figures = figures_of(load, lambda n: 1)
    assert figures["per_second"] > 0
    assert [figures[name] for name in ("gaps", "duplicates", "undelivered", "errors")] == [0, 0, 0, 0]


def test_a_lost_message_is_a_gap(load: Path) -> None:
    assert figures_of(load, lambda n: 0 if n % 10 == 0 else 1)["gaps"] > 0


def test_a_repeated_message_is_a_duplicate(load: Path) -> None:
    assert figures_of(load, lambda n: 2 if n % 10 == 0 else 1)["duplicates"] > 0


def results(**rates: list[float]) -> list[Result]:
    return [
        Result("q", system, number, {"per_second": rate, "p50_us": 1e6 / rate})
        for system, of_rounds in rates.items()
        for number, rate in enumerate(of_rounds, start=1)
    ]


def test_a_goal_takes_the_median_of_the_ratios_round_by_round() -> None:
    measured = results(bus=[10, 200, 3000], peer=[10, 100, 1000])
    assert Goal("q", "bus", 2, peer="peer").came_out(measured) == 2
    assert Goal("q", "bus", 2, peer="nobody").came_out(measured) is None


def test_of_a_rate_more_is_better_and_of_a_time_less() -> None:
    rate, time = Goal("q", "bus", 2, peer="peer"), Goal("q", "bus", 2, peer="peer", figure="p50_us")
    assert [rate.met(2), rate.met(1.9)] == [True, False]
    assert [time.met(2), time.met(2.1)] == [True, False]


def test_simulated_nodes_share_what_goes_to_clients_and_not_what_each_of_them_hears() -> None:
    costs = Costs(accept=0.0001, tell=0.0, hear=0.0, write=0.000_01)
    one, two = costs.mean(1, 100), costs.mean(2, 100)
    assert one == pytest.approx(0.0011)
    assert two == pytest.approx(one / 2)
    dear = Costs(accept=0.0001, tell=0.00005, hear=0.0002, write=0.000_01)
    assert dear.mean(2, 100) == pytest.approx((0.0001 + 0.00005 + 0.0005 + 0.0002 + 0.0005) / 2)
    assert dear.mean(50, 100) > 0.9 * dear.hear
    busy, late = simulate(costs, 2, 100, rate=500.0)
    assert busy == pytest.approx(500 * two, rel=0.1)
    assert costs.of_node(2, 50, here=True) <= late < 0.05
    assert simulate(costs, 2, 100, rate=2000.0)[1] > 1.0  # more than two can do: it piles up
