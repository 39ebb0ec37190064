"""`message_ttl` alone: the documented API, what it promises of time, and that nobody's callback or clock can break it."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.errors import Malformed
from bus.retention import local_messages
from bus.settings import ROOT
from message_ttl import MessageTTLManager, RetentionPolicy, StandardPolicies, TTLConfig

NOW = "2026-02-21T17:27:21+00:00"


class Time:
    """A clock that stands until a test moves it."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """A manager with a clock of its own."""

    def __init__(self, folder: Path) -> None:
        self.time = Time()
        self.folder = folder
        self.manager = MessageTTLManager(default_ttl=100, archive_dir=folder, clock=self.time)

    def add(self, message_id: str, type: str = "plain", **more: Any) -> None:
        self.manager.add_message({"id": message_id, "type": type, "payload": 1, "timestamp": NOW, **more})

    def policy(self, type: str, seconds: float | None = None, **more: Any) -> None:
        self.manager.register_policy(TTLConfig(type, seconds, **more))

    def wait(self, seconds: float) -> None:
        self.time.now += seconds

    def there(self, *ids: str) -> list[str]:
        return [message_id for message_id in ids if self.manager.get_message(message_id) is not None]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "archive")


# ---- the documented snippets


def test_the_upgrade_guides_snippets_run_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ttl_mgr = MessageTTLManager(default_ttl=86400)  # 24 hours default
    ttl_mgr.register_policy(StandardPolicies.get_error_policy())  # 1 hour
    ttl_mgr.register_policy(StandardPolicies.get_log_policy())  # 24 hours
    ttl_mgr.register_policy(StandardPolicies.get_command_policy())  # 7 days
    ttl_mgr.register_policy(StandardPolicies.get_audit_policy())  # Never delete
    ttl_mgr.start_cleanup_worker(interval=60)
    message = {
        "id": "msg-123",
        "type": "error",
        "payload": {...},
        "timestamp": datetime.now(UTC).isoformat(),
    }
    ttl_mgr.add_message(message)

    def on_expire(msg: dict[str, Any]) -> None:
        print(f"Message {msg['id']} expired, archiving to S3...")

    ttl_mgr.register_policy(
        TTLConfig(message_type="analytics", ttl_seconds=3600, on_expire=on_expire, archive_before_delete=True)
    )
    assert ttl_mgr.extend_ttl("msg-123", additional_seconds=3600)
    assert ttl_mgr.get_message("msg-123") == message
    ttl_mgr.stop_cleanup_worker()


def test_the_release_notes_snippet_runs_with_its_defaults() -> None:
    ttl_mgr = MessageTTLManager()
    ttl_mgr.register_policy(StandardPolicies.get_error_policy())
    ttl_mgr.start_cleanup_worker()
    ttl_mgr.stop_cleanup_worker()


def test_the_example_runs(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "message_ttl.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert "Message msg-124 expired" in done.stdout
    assert "Left: ['msg-123', 'msg-125']" in done.stdout


def test_the_standard_policies_are_the_documented_ones() -> None:
    got = [
        StandardPolicies.get_error_policy(),
        StandardPolicies.get_log_policy(),
        StandardPolicies.get_command_policy(),
        StandardPolicies.get_notification_policy(),
        StandardPolicies.get_audit_policy(),
    ]
    assert [(p.message_type, p.policy, p.ttl_seconds, p.archive_before_delete) for p in got] == [
        ("error", RetentionPolicy.SHORT, 3600, True),
        ("log", RetentionPolicy.MEDIUM, 86400, False),
        ("command", RetentionPolicy.LONG, 604800, True),
        ("notification", RetentionPolicy.IMMEDIATE, None, False),
        ("audit", RetentionPolicy.PERMANENT, None, False),
    ]


# ---- time


def test_a_message_is_gone_at_its_moment_swept_or_not_and_not_before(bench: Bench) -> None:
    bench.add("m")
    bench.wait(99.999)
    assert bench.there("m") == ["m"]
    bench.wait(0.001)
    assert bench.there("m") == []
    assert not bench.manager.remove_message("m")
    assert not bench.manager.extend_ttl("m", 10)
    assert bench.manager.get_stats()["total_messages"] == 0


def test_an_extension_adds_to_what_is_left_and_no_old_entry_undoes_it(bench: Bench) -> None:
    bench.add("m")
    bench.wait(90)
    bench.manager.extend_ttl("m", 60)
    bench.wait(69)
    assert bench.manager.cleanup_expired() == 0
    assert bench.there("m") == ["m"]
    bench.wait(1)
    assert bench.manager.cleanup_expired() == 1


def test_an_extension_makes_nothing_mortal(bench: Bench) -> None:
    bench.policy("audit", policy=RetentionPolicy.PERMANENT)
    bench.add("m", "audit")
    assert bench.manager.extend_ttl("m", 1)
    bench.wait(10**9)
    assert bench.manager.cleanup_expired() == 0
    assert bench.there("m") == ["m"]


def test_immediate_is_after_delivery_and_never_before(bench: Bench) -> None:
    bench.policy("note", policy=RetentionPolicy.IMMEDIATE)
    bench.add("m", "note")
    bench.wait(10**9)
    bench.manager.cleanup_expired()
    assert bench.there("m") == ["m"]
    assert bench.manager.mark_delivered("m")
    assert bench.there("m") == []
    assert bench.manager.cleanup_expired() == 1


def test_an_id_that_comes_again_has_its_own_life(bench: Bench) -> None:
    bench.add("m")
    bench.wait(60)
    bench.manager.remove_message("m")
    bench.add("m")
    bench.wait(60)
    assert bench.manager.cleanup_expired() == 0
    assert bench.there("m") == ["m"]


@pytest.mark.parametrize("given", [None, 5, 1.5, "", "yesterday", "2026-13-01T00:00:00Z", ["2026"], True])
def test_a_timestamp_that_is_none_is_refused(bench: Bench, given: object) -> None:
    with pytest.raises(Malformed) as refused:
        bench.manager.add_message({"id": "m", "type": "t", "timestamp": given})
    assert (refused.value.status, refused.value.field) == (400, "timestamp")


@pytest.mark.parametrize("given", ["1970-01-01T00:00:00+00:00", "2100-01-01T00:00:00", "2026-02-21T17:27:21", NOW])
def test_only_the_time_of_receipt_counts(bench: Bench, given: str) -> None:
    bench.add("m", timestamp=given)
    bench.wait(99)
    assert bench.there("m") == ["m"]
    bench.wait(1)
    assert bench.there("m") == []


def test_a_policy_holds_for_what_is_kept_but_not_for_what_was_extended(bench: Bench) -> None:
    bench.add("m")
    bench.add("extended")
    bench.manager.extend_ttl("extended", 10)
    bench.policy("plain", 50)
    bench.wait(50)
    assert bench.there("m", "extended") == ["extended"]
    bench.policy("plain", policy=RetentionPolicy.PERMANENT)
    bench.wait(60)
    assert bench.there("m", "extended") == []


def test_a_policy_by_name_is_obeyed_and_a_contradiction_is_refused(bench: Bench) -> None:
    bench.policy("short", policy=RetentionPolicy.SHORT)
    bench.add("m", "short")
    bench.wait(3599)
    assert bench.there("m")
    bench.wait(1)
    assert not bench.there("m")
    with pytest.raises(ValueError, match="contradicts"):
        TTLConfig("x", 5, RetentionPolicy.LONG)
    assert TTLConfig("x").ttl_seconds == 86400


@pytest.mark.parametrize("step", [10, -10, 3600, -3600, 365 * 86400, -365 * 86400, -(2**31)])
def test_no_step_of_the_wall_clock_expires_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    manager = MessageTTLManager(default_ttl=5, archive_dir=tmp_path)
    manager.add_message({"id": "m", "type": "t", "timestamp": NOW})
    real = local_messages.time.time
    monkeypatch.setattr(local_messages.time, "time", lambda: real() + step)
    assert manager.cleanup_expired() == 0
    assert manager.get_message("m") is not None


_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from("abcd"), st.sampled_from(["plain", "short", "ever", "once"])),
        st.tuples(st.just("extend"), st.sampled_from("abcd"), st.integers(1, 200)),
        st.tuples(st.just("wait"), st.just(""), st.integers(1, 120)),
        st.tuples(st.just("policy"), st.sampled_from(["plain", "short"]), st.sampled_from([30, 70, None])),
        st.tuples(st.just("deliver"), st.sampled_from("abcd"), st.none()),
        st.tuples(st.just("sweep"), st.just(""), st.none()),
    ),
    max_size=40,
)


@settings(max_examples=200, deadline=None)
@given(steps=_STEPS)
def test_lives_are_what_a_plain_reckoning_says(tmp_path_factory: pytest.TempPathFactory, steps: list[Any]) -> None:
    bench = Bench(tmp_path_factory.mktemp("archive"))
    ttls: dict[str, float | None] = {"plain": 100.0, "short": 20.0, "ever": None, "once": None}
    bench.policy("short", 20)
    bench.policy("ever", policy=RetentionPolicy.PERMANENT)
    bench.policy("once", policy=RetentionPolicy.IMMEDIATE)
    lives: dict[str, list[Any]] = {}  # type, received, end (None: never), whether it was extended
    for what, name, value in steps:
        now = bench.time.now
        alive = name in lives and (lives[name][2] is None or lives[name][2] > now)
        if what == "add":
            bench.add(name, value)
            lives[name] = [value, now, None if ttls[value] is None else now + ttls[value], False]
        elif what == "extend":
            assert bench.manager.extend_ttl(name, value) == alive
            if alive and lives[name][2] is not None:
                lives[name][2:] = [lives[name][2] + value, True]
        elif what == "wait":
            bench.wait(value)
        elif what == "policy":
            ttls[name] = value
            bench.policy(name, value, policy=RetentionPolicy.PERMANENT if value is None else None)
            for life in lives.values():
                if life[0] == name and not life[3] and (life[2] is None or life[2] > now):
                    life[2] = None if value is None else life[1] + value
        elif what == "deliver":
            assert bench.manager.mark_delivered(name) == alive
            if alive and lives[name][0] == "once":
                lives[name][2] = now
        else:
            bench.manager.cleanup_expired()
        now = bench.time.now
        assert bench.there(*"abcd") == [n for n in "abcd" if n in lives and (lives[n][2] is None or lives[n][2] > now)]


# ---- the sweep


def test_what_expires_soon_is_all_there_and_in_order(bench: Bench) -> None:
    for at, name in enumerate("abcdefgh"):
        bench.policy(name, 10 * ((at * 5) % 8 + 1))
        bench.add(name, name)
    soon = bench.manager.get_expiring_soon(60)
    assert [message["id"] for message in soon] == sorted("abcdefgh", key=lambda n: ("abcdefgh".index(n) * 5) % 8)[:6]


def test_a_callback_may_call_the_manager_and_comes_after_the_fact(bench: Bench) -> None:
    seen: list[Any] = []

    def on_expire(message: dict[str, Any]) -> None:
        seen.append((message["id"], bench.there(message["id"]), bench.manager.get_stats()["expired"]))
        bench.add(message["id"], "plain")
        bench.manager.cleanup_expired()

    bench.policy("called", 1, on_expire=on_expire)
    bench.add("m", "called")
    bench.wait(1)
    done = threading.Thread(target=bench.manager.cleanup_expired, daemon=True)
    done.start()
    done.join(10)
    assert not done.is_alive(), "A callback that calls the manager must not wait for itself."
    assert seen == [("m", [], 1)]
    assert bench.there("m") == ["m"]


def test_a_callback_that_fails_or_is_slow_is_logged_and_stops_nothing(
    bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on_expire(message: dict[str, Any]) -> None:
        raise RuntimeError("a callback's own trouble")

    monkeypatch.setattr(local_messages, "SLOW_SECONDS", -1.0)
    bench.policy("called", 1, on_expire=on_expire)
    for name in "ab":
        bench.add(name, "called")
    bench.wait(1)
    assert bench.manager.cleanup_expired() == 2
    assert bench.manager.get_stats()["callbacks_failed"] == 2
    assert "on_expire failed" in caplog.text
    assert "took" in caplog.text


def test_while_a_callback_runs_messages_come_and_go(bench: Bench) -> None:
    inside, leave = threading.Event(), threading.Event()

    def on_expire(message: dict[str, Any]) -> None:
        inside.set()
        leave.wait(10)

    bench.policy("called", 1, on_expire=on_expire)
    bench.add("slow", "called")
    bench.wait(1)
    sweep = threading.Thread(target=bench.manager.cleanup_expired)
    sweep.start()
    assert inside.wait(10)
    bench.add("m")
    assert bench.there("m") == ["m"]
    leave.set()
    sweep.join(10)


def test_what_is_archived_lasts_and_can_be_read_by_the_next_process(bench: Bench) -> None:
    bench.policy("kept", 1, archive_before_delete=True)
    for number in range(1500):
        bench.add(f"m{number:04d}", "kept")
    bench.wait(1)
    assert bench.manager.cleanup_expired() == 1500
    later = MessageTTLManager(archive_dir=bench.folder)
    assert len(later.get_expired_messages(limit=5000)) == 1500
    assert [message["id"] for message in later.get_expired_messages(limit=2)] == ["m1498", "m1499"]


def test_what_can_not_be_archived_is_not_removed(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.folder.write_text("in the way")
    bench.policy("kept", 1, archive_before_delete=True)
    bench.add("m", "kept")
    bench.wait(1)
    assert bench.manager.cleanup_expired() == 0
    assert "can't be written" in caplog.text
    bench.folder.unlink()
    assert bench.manager.cleanup_expired() == 1
    assert bench.manager.get_expired_messages()[0]["id"] == "m"


def test_extensions_do_not_fill_the_memory(bench: Bench) -> None:
    bench.add("m")
    for _ in range(5000):
        bench.manager.extend_ttl("m", 1)
    assert len(bench.manager._local._heap) <= local_messages.COMPACT_ABOVE + 1


def test_figures_are_copies(bench: Bench) -> None:
    bench.add("m")
    bench.manager.get_stats()["messages_by_type"]["plain"] = 99
    assert bench.manager.get_stats()["messages_by_type"] == {"plain": 1}
    got = bench.manager.get_message("m")
    assert got is not None
    got["id"] = "other"
    assert bench.there("m") == ["m"]


# ---- the worker


def test_start_and_stop_leave_one_worker_or_none(bench: Bench) -> None:
    before = threading.active_count()
    for _ in range(3):
        bench.manager.start_cleanup_worker(interval=3600)
        bench.manager.start_cleanup_worker(interval=3600)
        assert threading.active_count() == before + 1
        bench.manager.stop_cleanup_worker()
        assert threading.active_count() == before


def test_the_worker_sweeps(bench: Bench) -> None:
    gone = threading.Event()
    bench.policy("called", 1, on_expire=lambda message: gone.set())
    bench.add("m", "called")
    bench.wait(1)
    bench.manager.start_cleanup_worker(interval=0.01)
    assert gone.wait(10)
    bench.manager.stop_cleanup_worker()


@pytest.mark.parametrize(
    "call",
    [
        lambda: MessageTTLManager(default_ttl=0),
        lambda: MessageTTLManager().start_cleanup_worker(0),
        lambda: MessageTTLManager().extend_ttl("m", 0),
        lambda: TTLConfig("x", -1),
    ],
)
def test_nonsense_is_refused(call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="must"):
        call()


def test_a_failed_archive_is_said_once_a_sweep(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.folder.write_text("in the way")
    bench.policy("kept", 1, archive_before_delete=True)
    for number in range(600):
        bench.add(str(number), "kept")
    bench.wait(1)
    with caplog.at_level(logging.ERROR):
        worker = threading.Thread(target=bench.manager.cleanup_expired, daemon=True)
        worker.start()
        worker.join(10)
    assert not worker.is_alive(), "A sweep that can't archive must end."
