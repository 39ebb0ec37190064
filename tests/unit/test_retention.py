"""Retention over the log: lives, deliveries, policies, the archive, clocks. With a clock that the test moves."""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.errors import Conflict, InboxFull, Malformed, NotFound
from bus.events import ClockJumped, MessageExpired, RetentionHeld
from bus.message import text_of
from bus.retention import archive, sweep
from bus.retention.archiver import Archiver
from bus.retention.retention import Wanted
from bus.storage.deliveries import Slot
from tests.unit.retention_bench import DAY, HOUR, SECOND, RetentionBench


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[RetentionBench]:
    made = RetentionBench(tmp_path)
    made.sweep()
    yield made
    made.close()


# ---- lives


@pytest.mark.parametrize(
    ("type_", "life"), [("message", DAY), ("log", DAY), ("error", HOUR), ("command", 7 * DAY), ("anything", DAY)]
)
def test_a_message_lives_as_long_as_its_types_policy_says(bench: RetentionBench, type_: str, life: int) -> None:
    plain, tracked = bench.send(type_), bench.send(type_, ack=True)
    bench.wait(life - 1, sweep=False)
    assert bench.readable() == [plain, tracked]
    bench.wait(1, sweep=False)
    assert bench.readable() == []
    assert bench.stored() == [plain, tracked], "It can't be read, and is there until a sweep."
    bench.sweep()
    assert bench.stored() == []


def test_no_way_of_reading_shows_what_has_expired(bench: RetentionBench) -> None:
    seq = bench.send("error", "bob", thread_id="t")
    tracked = bench.send("error", ack=True)
    queued = bench.send("error", "queue:work")
    bench.wait(HOUR, sweep=False)
    reader = bench.reader
    assert reader.message(seq) is None
    assert reader.messages([seq, tracked, queued]) == []
    assert reader.log(0, None, 10, 10**6).messages == []
    assert reader.inbox("bob", 0, None, 10, 10**6).messages == []
    assert reader.open_deliveries("bob", 10, 10**6) == []
    assert bench.write(lambda t: t.ledger.lease("queue:work", [Slot("worker")])) == []
    assert bench.write(lambda t: t.ledger.lease_to_client("bob")) == []
    client = reader.client("bob")
    assert client is not None
    assert client.waiting == 1  # the tracked one, until the sweep buries it


def test_a_sender_may_shorten_a_life_but_not_that_of_what_is_kept_for_ever(bench: RetentionBench) -> None:
    short, ever = bench.send(ttl_us=SECOND), bench.send("audit", ttl_us=SECOND)
    bench.wait(SECOND)
    assert bench.readable() == [ever]
    assert bench.stored() == [ever]
    assert short < ever
    bench.wait(3000 * DAY)
    assert bench.stored() == [ever]


def test_only_what_is_not_the_defaults_shows_its_end(bench: RetentionBench) -> None:
    for type_, shown in (("message", False), ("error", True), ("audit", False), ("log", True)):
        found = bench.reader.message(bench.send(type_))
        assert found is not None
        assert (b'"expires_at"' in text_of(found, bench.store.epochs)) == shown
        assert found.flags == 0


def test_an_extension_adds_to_what_is_left(bench: RetentionBench) -> None:
    seq, other = bench.send(), bench.send("error", ack=True)
    bench.wait(HOUR - SECOND)
    life = bench.retention.extend(bench.id_of(other), 60)
    assert life.expires_us == bench.now + 61 * SECOND
    bench.wait(61 * SECOND - 1)
    assert bench.readable() == [seq, other]
    bench.wait(1)
    assert bench.readable() == [seq]
    assert [failure.reason for failure in bench.failures] == ["expired"]
    with pytest.raises(NotFound):
        bench.retention.extend(bench.id_of(other), 60)


def test_an_extension_makes_nothing_mortal_and_is_refused_where_it_means_nothing(bench: RetentionBench) -> None:
    ever, note = bench.send("audit"), bench.send("notification")
    for seq in (ever, note):
        assert bench.retention.extend(bench.id_of(seq), 1).expires_us is None
    bench.wait(100 * DAY)
    assert bench.stored() == [ever, note]
    for seconds in (0, -5, 10**12):
        with pytest.raises(Malformed):
            bench.retention.extend(bench.id_of(ever), seconds)


# ---- immediate


def test_an_immediate_one_goes_after_its_ack_and_not_before(bench: RetentionBench) -> None:
    seq = bench.send("notification", ack=True)
    bench.wait(100 * DAY)
    assert bench.readable() == [seq]
    bench.settle("ack", seq)
    bench.sweep()
    assert bench.stored() == []


def test_an_immediate_one_goes_when_the_kept_cursor_of_everybody_has_passed(bench: RetentionBench) -> None:
    item = bench.message("notification")
    item.kind, item.address, item.names = 1, '["bob","eve"]', ("bob", "eve")
    (sent,) = bench.send_all([item])
    bench.wait(100 * DAY)
    bench.read_confirmed("bob", sent.seq)
    bench.sweep()
    assert bench.stored() == [sent.seq]
    bench.read_confirmed("eve", sent.seq)
    bench.sweep()
    assert bench.stored() == []
    assert bench.retention.figures()["delivered"] == 1


def test_a_fetch_is_no_delivery_but_what_was_fetched_goes_by_the_default(bench: RetentionBench) -> None:
    fetched, waiting = bench.send("notification"), bench.send("notification")
    bench.write(lambda t: t.execute("UPDATE clients SET mark = ? WHERE name = 'bob'", (fetched,)))
    bench.wait(DAY - 1)
    assert bench.stored() == [fetched, waiting]
    bench.wait(1)
    assert bench.stored() == [waiting]


def test_to_all_and_to_topics_immediate_means_the_default(bench: RetentionBench) -> None:
    bench.send("notification", "all")
    bench.send("notification", "topic:news")
    bench.wait(DAY - 1)
    assert len(bench.stored()) == 2
    bench.wait(1)
    assert bench.stored() == []


def test_an_item_of_a_queue_that_is_immediate_goes_when_it_is_done(bench: RetentionBench) -> None:
    seq = bench.send("notification", "queue:work")
    bench.write(lambda t: t.ledger.lease("queue:work", [Slot("bob")]))
    bench.wait(100 * DAY)
    assert bench.stored() == [seq]
    bench.settle("ack", seq)
    bench.sweep()
    assert bench.stored() == []


# ---- nothing that is needed goes silently


def test_what_still_waits_for_an_ack_becomes_a_dead_letter(bench: RetentionBench) -> None:
    seq, queued = bench.send("error", ack=True), bench.send("error", "queue:work")
    bench.wait(HOUR)
    letters = bench.reader.execute("SELECT id, owner, reason FROM dead_letters ORDER BY owner")
    assert letters == [(bench.id_of(seq), "bob", "expired"), (bench.id_of(queued), "queue:work", "expired")]
    assert bench.stored() == []
    assert bench.reader.execute("SELECT sum(waiting), sum(leased) FROM backlogs") == [(0, 0)]


def test_what_is_in_somebodys_hands_stays_until_it_is_settled(bench: RetentionBench) -> None:
    done, dropped = bench.send("error", "queue:work"), bench.send("error", "queue:work")
    bench.wait(HOUR - SECOND)
    bench.write(lambda t: t.ledger.lease("queue:work", [Slot("bob")] * 2))
    bench.wait(2 * SECOND)
    assert bench.stored() == [done, dropped]
    assert bench.archived() == []
    bench.settle("ack", done)
    bench.settle("nack", dropped)
    bench.sweep()
    assert bench.stored() == []
    assert [(failure.owner, failure.reason) for failure in bench.failures] == [("queue:work", "expired")]


def test_a_full_inbox_has_room_again_when_its_mail_has_expired(tmp_path: Path) -> None:
    bench = RetentionBench(tmp_path, inbox_limit=3)
    for _ in range(3):
        bench.send("error")
    with pytest.raises(InboxFull):
        bench.send("error")
    bench.wait(HOUR - 1, sweep=False)
    with pytest.raises(InboxFull):
        bench.send("error")
    bench.wait(1, sweep=False)
    bench.send("error")
    bench.close()


def test_who_missed_a_message_is_told_how_many_expired(bench: RetentionBench) -> None:
    seqs = [bench.send("error") for _ in range(5)]
    bench.read_confirmed("bob", seqs[1])
    bench.wait(HOUR)
    assert bench.reader.expired("bob", seqs[1]) == 3
    assert bench.reader.expired("bob", seqs[-1]) == 0
    assert bench.reader.head().lost_through == 0, "What expired is no gap."


def test_each_of_many_who_missed_a_message_is_told(bench: RetentionBench) -> None:
    names = [f"client-{n}" for n in range(140)]
    seqs = {name: [bench.send("error", to=name) for _ in range(1 + n % 2)] for n, name in enumerate(names)}
    bench.read_confirmed(names[0], seqs[names[0]][-1])
    bench.wait(HOUR)
    bench.send("error", to=names[1])
    bench.wait(HOUR)
    expected = {name: len(seqs[name]) for name in names} | {names[0]: 0, names[1]: 3}
    assert {name: bench.reader.expired(name, 0) for name in names} == expected


# ---- policies


def test_a_policy_changes_what_is_stored_and_what_comes(bench: RetentionBench) -> None:
    old = bench.send("build")
    own = bench.send("build", ttl_us=5 * DAY)
    bench.policy("build", seconds=60)
    bench.sweep()
    new = bench.send("build")
    bench.wait(60 * SECOND)
    assert bench.readable() == bench.stored() == [own], f"{old} and {new} go by the new policy."


def test_a_policy_may_leave_what_is_stored_alone(bench: RetentionBench) -> None:
    old = bench.send("build")
    bench.policy("build", seconds=60, to_stored=False)
    bench.sweep()
    bench.send("build")
    bench.wait(60 * SECOND)
    assert bench.readable() == [old]
    bench.wait(DAY)
    assert bench.stored() == []


def test_a_policy_that_keeps_for_ever_saves_what_is_stored_and_its_end_gives_it_back(bench: RetentionBench) -> None:
    seq = bench.send("build")
    bench.policy("build", name="permanent")
    bench.sweep()
    bench.wait(10 * DAY)
    assert bench.readable() == [seq]
    bench.retention.delete("build")
    bench.sweep()
    assert bench.stored() == []


def test_a_type_becomes_immediate_and_mortal_again(bench: RetentionBench) -> None:
    had, waits = bench.send("build"), bench.send("build")
    bench.read_confirmed("bob", had)
    bench.policy("build", name="immediate")
    bench.sweep()
    assert bench.stored() == [waits]
    bench.policy("build", seconds=60)
    bench.wait(60 * SECOND)
    assert bench.stored() == []
    assert bench.reader.execute("SELECT count(*) FROM undelivered") == [(0,)]


def test_what_must_be_there_can_not_be_deleted(bench: RetentionBench) -> None:
    for type_ in ("$default", "$archive", "$audit"):
        with pytest.raises(Conflict):
            bench.retention.delete(type_)
    with pytest.raises(NotFound):
        bench.retention.delete("unheard-of")


def test_a_log_of_a_former_version_gets_its_lives(bench: RetentionBench) -> None:
    seqs = [bench.send(type_) for type_ in ("message", "error", "audit")]
    bench.write(lambda t: t.execute("UPDATE messages SET expires_at = NULL, flags = 0"))
    bench.write(lambda t: t.execute("INSERT INTO meta VALUES ('retention_restamp', 0)"))
    bench.wait(HOUR)
    assert bench.stored() == [seqs[0], seqs[2]]
    bench.wait(DAY)
    assert bench.stored() == [seqs[2]]


@pytest.mark.parametrize("stamp", [0, 1_700_000_000 * SECOND + 365 * DAY], ids=["1970", "a year on"])
def test_a_stamp_of_a_wrong_clock_is_not_believed_when_policies_change(bench: RetentionBench, stamp: int) -> None:
    bench.send("build")
    odd = bench.message("build")
    odd.stamp_us = stamp
    bench.send_all([odd])
    bench.policy("build", seconds=3600)
    bench.wait(HOUR - 1)
    assert len(bench.stored()) == 2
    bench.wait(DAY)
    assert bench.stored() == []


_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.sampled_from(["message", "error", "audit", "build"]), st.none()),
        st.tuples(st.just("own"), st.sampled_from(["message", "error", "audit", "build"]), st.integers(1, 90)),
        st.tuples(st.just("extend"), st.integers(0, 7), st.integers(1, 2000)),
        st.tuples(st.just("wait"), st.none(), st.integers(1, 2 * 86400)),
        st.tuples(st.just("policy"), st.sampled_from(["error", "build"]), st.sampled_from([60, 5000, None])),
        st.tuples(st.just("step"), st.none(), st.sampled_from([10, -10, 3600, -3600, 365 * 86400, -1_700_000_000])),
        st.tuples(st.just("tick"), st.none(), st.none()),
        st.tuples(st.just("restart"), st.none(), st.none()),
    ),
    min_size=5,
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(steps=_STEPS)
def test_lives_are_what_a_plain_reckoning_says(tmp_path_factory: pytest.TempPathFactory, steps: list[Any]) -> None:
    """Extensions, changed policies, what is kept for ever, and steps of the wall's clock, in any order."""
    bench = RetentionBench(tmp_path_factory.mktemp("bench"))
    bench.sweep()
    ttls: dict[str, int | None] = {"message": DAY, "error": HOUR, "audit": None, "build": DAY}
    lives: dict[int, list[Any]] = {}  # seq: type, born, end (None: never), its own
    for what, which, value in steps:
        if what in ("send", "own"):
            own = value is not None
            seq = bench.send(which, **({"ttl_us": value * SECOND} if own else {}))
            ttl = ttls[which]
            ttl = value * SECOND if own and ttl is not None else ttl
            lives[seq] = [which, bench.now, None if ttl is None else bench.now + ttl, own and ttl is not None]
        elif what == "extend" and which < len(lives):
            life = list(lives.values())[which]
            alive = life[2] is None or life[2] > bench.now
            try:
                bench.retention.extend(bench.id_of(list(lives)[which]), value)
                assert alive
            except NotFound:
                assert not alive
            if alive and life[2] is not None:
                life[2:] = [life[2] + value * SECOND, True]
        elif what == "wait":
            bench.wait(value * SECOND, sweep=False)
        elif what == "policy" and bench.wall_ahead == 0:
            ttls[which] = None if value is None else value * SECOND
            bench.policy(which, seconds=value, name="permanent" if value is None else None)
            bench.sweep()
            for life in lives.values():
                if life[0] == which and not life[3] and (life[2] is None or life[2] > bench.now):
                    life[2] = None if value is None else life[1] + value * SECOND
        elif what == "step":
            bench.wall_ahead += value * SECOND
        elif what == "restart":
            bench.restart()
        else:
            bench.sweep()
        assert bench.readable() == [seq for seq, life in lives.items() if life[2] is None or life[2] > bench.now]
        assert set(bench.readable()) <= set(bench.stored())
    bench.close()


# ---- events


def test_events_come_after_the_fact_and_only_if_somebody_hears_them(bench: RetentionBench) -> None:
    bench.send("message")
    bench.wait(DAY)
    assert bench.events == []
    bench.heard.add(MessageExpired)
    seq, note = bench.send("message"), bench.send("notification", ack=True)
    bench.settle("ack", note)
    bench.wait(DAY)
    assert sorted(bench.expired_events()) == [(seq, "expired"), (note, "delivered")]


# ---- clocks


@pytest.mark.parametrize("seconds", [3600, -3600, 365 * 86400, -365 * 86400, -1_700_000_000])
def test_a_step_of_the_wall_expires_nothing_raises_an_alarm_and_pauses_the_sweep(
    bench: RetentionBench, seconds: int
) -> None:
    seqs = [bench.send(type_) for type_ in ("message", "error", "command")]
    bench.wall_ahead = seconds * SECOND
    bench.sweep()
    assert bench.readable() == bench.stored() == seqs
    assert [event for event in bench.events if isinstance(event, ClockJumped)] == [ClockJumped(seconds)]
    bench.wait(HOUR, sweep=False)
    seqs.append(bench.send("error"))
    assert bench.readable() == [seqs[0], seqs[2], seqs[3]]
    bench.wall_ahead += 3600 * SECOND
    bench.sweep()
    assert bench.stored() == seqs, "The sweep pauses after a step."
    bench.wait(600 * SECOND)
    assert bench.stored() == [seqs[0], seqs[2], seqs[3]]


def test_steps_of_ten_seconds_are_nothing(bench: RetentionBench) -> None:
    seq = bench.send("error")
    for step in (10, -10):
        bench.wall_ahead = step * SECOND
        bench.sweep()
    assert bench.stored() == [seq]
    assert bench.events == []
    bench.wait(HOUR)
    assert bench.stored() == []


def test_after_a_jump_over_a_restart_a_mass_removal_waits_for_a_person(bench: RetentionBench) -> None:
    seqs = [bench.send() for _ in range(10)]
    bench.sweep()
    bench.now += 365 * DAY
    bench.restart()
    bench.sweep()
    bench.wait(HOUR)
    assert bench.stored() == seqs
    assert [event for event in bench.events if isinstance(event, RetentionHeld)] == [RetentionHeld(10, 10)]
    assert bench.sweeper.guard.state == "held"
    bench.retention.ask_for_sweep()
    bench.sweep()
    assert bench.stored() == []


def test_a_held_sweep_goes_on_by_itself_after_a_day(bench: RetentionBench) -> None:
    bench.send()
    bench.now += 365 * DAY
    bench.restart()
    bench.sweep()
    bench.wait(DAY - 1)
    assert len(bench.stored()) == 1
    bench.wait(1)
    assert bench.stored() == []


def test_a_pause_of_the_server_removes_what_has_expired_meanwhile(bench: RetentionBench) -> None:
    old = bench.send("error")
    seqs = [bench.send("command") for _ in range(10)]
    bench.now += 2 * HOUR
    bench.restart()
    bench.sweep()
    assert bench.stored() == seqs
    assert old not in seqs


def test_a_clock_that_went_back_over_a_restart_is_told_and_expires_nothing(bench: RetentionBench) -> None:
    seqs = [bench.send() for _ in range(3)]
    bench.now -= 365 * DAY
    bench.restart()
    bench.sweep()
    assert bench.stored() == seqs
    assert [type(event) for event in bench.events] == [ClockJumped]


# ---- the archive


def test_what_is_to_be_archived_is_found_there_by_time_and_restored(bench: RetentionBench) -> None:
    first = bench.send("error")
    bench.wait(60 * SECOND)
    since = bench.now
    second = bench.send("error", ack=True, priority=1)
    bench.settle("ack", second)
    bench.wait(HOUR)
    assert bench.archived() == [first, second]
    found = bench.retention.search(Wanted(since_us=since), (0, 0), 10)
    assert [line.seq for line in found.lines] == [second]
    assert not found.more
    assert bench.retention.restore(Wanted(), None, 10) == (2, 2, [])
    assert bench.retention.restore(Wanted(), None, 10) == (2, 0, []), "What is in the log is left alone."
    restored = [bench.reader.message(seq) for seq in bench.readable()]
    assert [message.own_id for message in restored if message] == [bench.id_of(first), bench.id_of(second)]
    assert b'"restored":true' in text_of(restored[0], bench.store.epochs)  # type: ignore[arg-type]
    bench.wait(HOUR)
    assert bench.stored() == []


def test_files_that_another_node_has_are_named(bench: RetentionBench) -> None:
    for _ in range(2):
        bench.send("error")
        bench.wait(2 * HOUR)
    folder = archive.Folder(bench.folder / "archive")
    there, here = folder.names()
    lines = list(folder.read(here))
    folder.forget(there)
    found = bench.retention.search(Wanted(), (0, 0), 10)
    assert (found.lines, found.elsewhere) == (lines, [there])
    assert bench.retention.restore(Wanted(), None, 10) == (1, 1, [there])


def test_pages_of_the_archive_hold_everything_once(bench: RetentionBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bus.retention.archiver.FILE_MESSAGES", 7)
    bench.send_all([bench.message("error") for _ in range(100)])
    bench.wait(HOUR)
    place, more, found = (0, 0), True, []
    while more:
        page = bench.retention.search(Wanted(), place, 9)
        place, more = page.cursor, page.more
        found += [line.seq for line in page.lines]
    assert found == list(range(1, 101))
    assert len(bench.retention.files(0, 1000, None, None)) == 15


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("place", ["draft", "file", "catalogue", "half", "last"])
def test_a_crash_between_archive_and_removal_loses_nothing_and_doubles_nothing(
    bench: RetentionBench, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    seqs = [message.seq for message in bench.send_all([bench.message("error") for _ in range(200)])]
    with monkeypatch.context() as patch:
        if place == "draft":
            patch.setattr(archive.os, "fsync", _kill)
        elif place == "file":
            patch.setattr("bus.retention.archiver._catalogue", _kill)
        elif place == "catalogue":
            patch.setattr(Archiver, "_begin_removal", _kill)
        elif place == "half":
            patch.setattr(bench.host, "pause", _kill)
        else:
            patch.setattr("bus.retention.archiver._complete", _kill)
        with pytest.raises(Killed):
            bench.wait(HOUR)
    there = set(bench.stored()) | set(bench.archived())
    assert there == set(seqs)
    bench.restart()
    bench.retention.ask_for_sweep()  # an hour without a sweep, and all is due: the guard would wait
    bench.sweep()
    assert bench.stored() == []
    assert sorted(bench.archived()) == seqs
    figures = bench.retention.figures()
    assert (figures["expired"], figures["archived"], figures["archive"]["messages"]) == (200, 200, 200)
    assert not list((bench.folder / "archive").glob("*.draft"))


def _kill(*_: object, **__: object) -> None:
    raise Killed


def test_a_file_that_only_the_folder_knows_is_catalogued(bench: RetentionBench) -> None:
    bench.send("error")
    bench.wait(HOUR)
    bench.write(lambda t: t.execute("DELETE FROM archives"))  # the log was restored from an older copy
    bench.restart()
    bench.sweep()
    assert bench.retention.figures()["archive"]["messages"] == 1


def test_an_archive_that_can_not_be_written_keeps_its_own_and_nothing_else(
    bench: RetentionBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.policy("own", seconds=60, archive=True)
    kept = [bench.send("error"), bench.send("own", ttl_us=SECOND)]
    bench.send("message")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(archive.Folder, "finish", full)
        bench.wait(DAY)
        assert bench.stored() == kept
        assert bench.readable() == []
    bench.sweep()
    assert bench.stored() == []
    assert sorted(bench.archived()) == kept


def test_what_is_archived_goes_once_an_hour_and_holds_nothing_else_back(bench: RetentionBench) -> None:
    bench.archive_seconds = 3600.0
    bench.restart()
    bench.sweep()
    bench.policy("own", seconds=60, archive=True)
    bench.policy("brief", seconds=60)
    kept = [bench.send("own"), bench.send("own", ttl_us=SECOND)]
    bench.send("brief")
    bench.send("brief", ttl_us=SECOND)
    bench.wait(60 * SECOND)
    assert bench.readable() == []
    assert bench.stored() == kept
    bench.wait(HOUR)
    assert bench.stored() == []
    assert sorted(bench.archived()) == kept


def test_an_archive_has_a_time_of_its_own(bench: RetentionBench) -> None:
    bench.policy("$archive", seconds=10 * 86400)
    bench.send("error")
    bench.wait(HOUR)
    bench.wait(10 * DAY - 1)
    assert len(bench.archived()) == 1
    bench.wait(1)
    assert bench.archived() == []
    assert bench.retention.search(Wanted(), (0, 0), 10).lines == []


# ---- soon


def test_what_expires_soon_is_complete(bench: RetentionBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bus.retention.retention.SCANNED", 50)
    chance = random.Random(7)
    expected = set()
    for _ in range(300):
        type_, ttl = chance.choice([("error", None), ("message", None), ("audit", None), ("command", 1800)])
        seq = bench.send(type_, **({"ttl_us": ttl * SECOND} if ttl else {}))
        if type_ in ("error", "command"):
            expected.add(seq)
    place, more, found = 0, True, []
    while more:
        page, place, more = bench.retention.expiring(HOUR, place, 7)
        found += [message.seq for message, _ in page]
    assert len(found) == len(set(found))
    assert set(found) == expected


# ---- at size


def test_twenty_thousand_of_mixed_policies_go_at_their_time_and_the_counts_agree(bench: RetentionBench) -> None:
    chance = random.Random(11)
    types = ["message", "error", "command", "audit", "log", "build"]
    bench.policy("build", seconds=600, archive=True)
    bench.sweep()
    lives: dict[int, tuple[str, int | None]] = {}
    ttls = {"message": DAY, "log": DAY, "error": HOUR, "command": 7 * DAY, "audit": None, "build": 600 * SECOND}
    for _ in range(100):
        batch = []
        for _ in range(200):
            type_ = chance.choice(types)
            own = chance.random() < 0.1
            batch.append(bench.message(type_, f"c{chance.randrange(50)}", **({"ttl_us": 30 * SECOND} if own else {})))
        for message in bench.send_all(batch):
            ttl = ttls[message.type]
            if message.terms is not None and ttl is not None:
                ttl = 30 * SECOND
            lives[message.seq] = (message.type, None if ttl is None else bench.now + ttl)
        bench.now += SECOND
    for pause in (20 * SECOND, 300 * SECOND, HOUR // 2, HOUR, DAY, 7 * DAY):
        bench.wait(pause)
        alive = [seq for seq, (_, end) in lives.items() if end is None or end > bench.now]
        gone = set(lives) - set(alive)
        assert bench.stored() == alive
        figures = bench.retention.figures()
        assert figures["expired"] == 20_000 - len(alive)
        archived = [s for s, (t, _) in lives.items() if t in ("error", "command", "build") and s in gone]
        assert (figures["archived"], figures["archive"]["messages"]) == (len(archived), len(archived))
        assert sorted(bench.archived()) == archived
    assert {type_ for type_, _ in [lives[seq] for seq in bench.stored()]} == {"audit"}


def test_a_sweep_is_made_of_small_transactions_with_pauses(
    bench: RetentionBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    whole = sweep.remove

    def counted(transaction: Any, seqs: list[int], *rest: Any, **more: Any) -> Any:
        sizes.append(len(seqs))
        return whole(transaction, seqs, *rest, **more)

    monkeypatch.setattr(sweep, "remove", counted)
    bench.send_all([bench.message() for _ in range(3000)])
    bench.wait(DAY)
    assert sum(sizes) == 3000
    assert max(sizes) <= sweep.BATCH
    assert len(bench.pauses) >= len(sizes)


def test_large_messages_go_a_few_at_a_time(bench: RetentionBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "BATCH_BYTES", 100)
    rows = [(seq, "message", 40) for seq in range(7)]
    assert [len(sweep._batch(rows, at, 500)) for at in (0, 5)] == [2, 2]
    assert len(sweep._batch([(1, "message", 1000)], 0, 500)) == 1


def test_freed_space_goes_back_to_the_disk(bench: RetentionBench) -> None:
    bench.send_all([bench.message("error") for _ in range(30_000)])
    _settle_file(bench)
    full = (bench.folder / "bus.db").stat().st_size
    bench.wait(HOUR)
    for _ in range(3600 * 4):  # an hour of idle time
        if bench.reader.execute("PRAGMA freelist_count")[0][0] <= bench.upkeep.SPARE_PAGES:
            break
        bench.upkeep.tick()
    _settle_file(bench)
    assert (bench.folder / "bus.db").stat().st_size < full / 2 + 1024 * 4096


def _settle_file(bench: RetentionBench) -> None:
    bench.upkeep._connection.wal_checkpoint(mode=3)


@pytest.mark.full
def test_in_ten_days_at_ten_a_second_the_file_stays_flat_after_the_second(bench: RetentionBench) -> None:
    """A hundredth of the rate, and so of the file: one message stands for a hundred. A sweep each ten minutes."""
    sizes = []
    bench.archive_seconds = 3600.0
    bench.restart()
    for step in range(10 * 144):
        types = ("message", "error", "log", "notification")
        batch = [bench.message(types[n % 4], "bob") for n in range(60)]
        sent = bench.send_all(batch)
        bench.read_confirmed("bob", sent[-1].seq)
        bench.wait(600 * SECOND)
        bench.upkeep.tick()
        if step % 144 == 143:
            _settle_file(bench)
            sizes.append((bench.folder / "bus.db").stat().st_size)
    second, last = sizes[1], max(sizes[2:])
    assert last <= second * 1.1, sizes
    assert bench.retention.figures()["total_messages"] == 10 * 144 * 60
