"""What docs/health.md says is what there is: its paths, checks, numbers and snippets."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bus.health import canary, checks, disk, pulse
from bus.health.report import Status
from bus.settings import Settings
from bus.transports import health
from health_checks import CommonChecks, HealthCheckManager, Views, _operations

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "health.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def test_it_names_every_path() -> None:
    paths = {operation.path for operation in _operations(Views(HealthCheckManager()))}
    table = PAGE.partition("## ")[0]
    assert set(re.findall(r"`(/[a-z/]+)`", table)) == paths | {"/health"}


def test_it_names_every_check_of_the_bus() -> None:
    manager = HealthCheckManager()
    bus: Any = SimpleNamespace(on=lambda *_: None, settings=Settings(database_url="postgresql://localhost/bus"))
    health.BusHealth(bus, manager).watch()
    section = re.search(r"## What is checked\n(.*?)^## ", PAGE, re.DOTALL | re.MULTILINE)
    assert section is not None
    named = re.findall(r"^\| `(\w+)` \| (live|startup|ready)", section[1], re.MULTILINE)
    kinds = {"live": "liveness", "startup": "startup", "ready": "readiness"}
    assert {name: kinds[kind] for name, kind in named} == {
        name: kind for kind, names in manager.board._kinds.items() for name in names
    }


def test_its_numbers_are_true() -> None:
    settings = Settings()
    said = {
        f"every {health.INTERVAL_SECONDS:.0f} s",
        f"for {pulse.STALLED_SECONDS:.0f} s",
        f"for {health.UNWRITTEN_SECONDS:.0f} s",
        f"every {canary.BEAT_SECONDS:.0f} s",
        f"{health.FULL:.0%}".replace("%", " %"),
        f"{health.HAS_ROOM:.0%}".replace("%", " %"),
        f"for {canary.STALE_SECONDS:.0f} s",
        f"for {health.SILENT_SECONDS:.0f} s",
        f"every {canary.INTERVAL_SECONDS:.0f} s",
        f"every {disk.INTERVAL_SECONDS:.0f} s",
        f"{settings.disk_alarm_bytes / 1e9:.0f} GB (`DISK_ALARM_BYTES`)",
        f"{settings.disk_alarm_percent:.0f} % (`DISK_ALARM_PERCENT`)",
        f"`DRAIN_NOTICE_SECONDS` ({settings.drain_notice_seconds:.0f})",
        f"`DRAIN_SPREAD_SECONDS` ({settings.drain_spread_seconds:.0f})",
        f"{checks.FIRST_WAIT_SECONDS:.0f} s.",
    }
    assert {each for each in said if each not in PAGE} == set()


def test_its_example_of_a_status_has_the_fields_there_are() -> None:
    (example,) = blocks("json")
    assert set(re.findall(r'"(\w+)": ', example)) >= set(Status.__struct_fields__) - {
        *("timestamp", "service", "version", "uptime_seconds")
    }


def test_its_snippet_runs() -> None:
    (snippet,) = blocks("python")
    names: dict[str, Any] = {"__name__": "page"}
    exec(snippet, names)
    assert names["app"].test_client().get("/health/status").get_json()["status"] == "healthy"
    names["health"].stop()


def test_it_names_every_common_check() -> None:
    there = {name for name in vars(CommonChecks) if not name.startswith("_")}
    assert there == set(re.findall(r"`(\w+_check)\b", PAGE.partition("`CommonChecks`:")[2]))
