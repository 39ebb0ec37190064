"""`/api/series` of a running server: what was done is seen in it, from any worker, and after a restart."""

from __future__ import annotations

import re
import secrets
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from bus.series import FIGURES
from bus.testing import BusServer, eventually
from tests.calls import call, send_all
from tests.rawws import RawWebSocket

pytestmark = pytest.mark.one_node("each keeps its own series")

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text().partition("## Series")[2].partition("\n## ")[0]


def series(server: BusServer, query: str = "") -> dict[str, Any]:
    return call(server, "GET", f"/api/series{query}")["series"]  # type: ignore[no-any-return]


def wait_for_rows(server: BusServer) -> None:
    """From now on, what is done is counted."""
    latest = "?last_seconds=2&names=workers"
    eventually(lambda: series(server, latest)["workers"] == [server.workers] * 2, within_seconds=30, what="rows of all")


def total(server: BusServer, name: str) -> float:
    """What a rate adds up to in the last minute, about: a row may be up to half a second late."""
    return sum(value or 0 for value in series(server, f"?last_seconds=60&names={name}")[name])


def test_what_is_sent_read_and_refused_adds_up(each_server: BusServer) -> None:
    name = f"s-{secrets.token_hex(4)}"
    wait_for_rows(each_server)
    before = {rate: total(each_server, rate) for rate in ("published_per_second", "delivered_per_second")}
    with RawWebSocket(each_server.port, f"/ws/{name}") as socket:
        socket.read_json()
        send_all(each_server, [{"to": name, "payload": number} for number in range(40)])
        for _ in range(40):
            socket.read_json()
        for rate, was in before.items():
            eventually(
                lambda rate=rate, was=was: total(each_server, rate) - was == pytest.approx(40, rel=0.5), what=rate
            )
        eventually(lambda: series(each_server, "?last_seconds=1&names=websockets")["websockets"] == [1])
    latest = series(each_server, "?last_seconds=20&step_seconds=20")
    assert list(latest) == list(FIGURES)
    for quantile in ("commit_p99_seconds", "lag_p99_seconds"):
        assert any(
            value is not None and value > 0
            for value in series(each_server, f"?last_seconds=60&names={quantile}")[quantile]
        )


def test_the_answer_says_when_its_points_were(server: BusServer) -> None:
    answer = call(server, "GET", "/api/series?last_seconds=7200&names=workers,websockets")
    assert (answer["step_seconds"], answer["points"]) == (60, 120)
    assert datetime.fromisoformat(answer["begins"]).timestamp() % 60 == 0
    assert {name: len(values) for name, values in answer["series"].items()} == {"workers": 120, "websockets": 120}


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("last_seconds=0", "last_seconds"),
        ("last_seconds=86401", "last_seconds"),
        ("last_seconds=1e3", "last_seconds"),
        ("last_seconds=3601&step_seconds=5", "step_seconds"),
        ("last_seconds=3600&step_seconds=1", "step_seconds"),
        ("last_seconds=5&step_seconds=10", "step_seconds"),
        ("names=workers,secrets", "names"),
    ],
)
def test_what_can_not_be_answered_is_refused(server: BusServer, query: str, field: str) -> None:
    refusal = server.call("GET", f"/api/series?{query}").body
    assert (refusal["code"], refusal["field"]) == ("bad_field", field)


@pytest.mark.full
@pytest.mark.parametrize("how", ["stop", "kill"])
def test_what_went_before_a_restart_is_still_told(fresh_server: Any, how: str) -> None:
    server = fresh_server(workers=2)
    wait_for_rows(server)
    send_all(server, [{"to": "x", "payload": number} for number in range(30)])
    was = eventually(lambda: (found := total(server, "published_per_second")) > 15 and found, within_seconds=30)
    assert was == pytest.approx(30, rel=0.5)
    server.terminate() if how == "stop" else server.kill()
    server.kill()
    server.start()
    wait_for_rows(server)
    send_all(server, [{"to": "x", "payload": number} for number in range(20)])
    told = eventually(lambda: (found := total(server, "published_per_second")) > was and found, within_seconds=30)
    assert told - was == pytest.approx(20, rel=0.5)
    assert all(
        value is None or value >= 0 for values in series(server, "?last_seconds=60").values() for value in values
    )


@pytest.mark.full
def test_another_worker_goes_on_when_the_one_that_writes_is_killed(fresh_server: Any) -> None:
    server = fresh_server(workers=2)
    wait_for_rows(server)
    for _ in range(2):
        was = total(server, "published_per_second")
        server.kill_worker(server.worker_pids()[0])

        def told(was: float = was) -> bool:
            """A second without a row has no rate, nor has the one behind it, so what is sent is sent again."""
            send_all(server, [{"to": "x", "payload": number} for number in range(30)])
            return total(server, "published_per_second") > was + 15

        eventually(told, every_seconds=0.5, what="a row of the other worker")


def test_without_metrics_there_are_no_series(fresh_server: Any) -> None:
    server = fresh_server(env={"ENABLE_METRICS": "false"})
    assert server.call("GET", "/api/series").status == 404


def test_the_page_lists_every_series() -> None:
    listed = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|$", PAGE.partition("| meaning |")[2], re.MULTILINE))
    assert listed == {name: figure.help for name, figure in FIGURES.items()}
