"""When a client comes back, and how many sends at once get through: without a network and without waiting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from bus.client.bulk import BulkSender, GivenUp
from bus.client.errors import Offline
from bus.client.received import Receipt
from bus.client.reconnection import Backoff, Ending
from bus.client.rest import Rest, address_of
from bus.errors import BusError, Forbidden, InboxFull, Malformed, TooLarge


class Limits:
    """A `chance` that draws the upper limit and notes both."""

    def __init__(self) -> None:
        self.drawn: list[tuple[float, float]] = []

    def __call__(self, low: float, high: float) -> float:
        self.drawn.append((low, high))
        return high


def test_pauses_are_drawn_from_zero_to_a_limit_that_doubles_up_to_twenty_seconds() -> None:
    limits = Limits()
    backoff = Backoff(limits)
    pauses = [backoff.pause(Ending(reason="cut")) for _ in range(8)]
    assert pauses == [0.5, 1, 2, 4, 8, 16, 20, 20]
    assert {low for low, _ in limits.drawn} == {0}


def test_a_connection_that_lasted_makes_the_next_pause_small_and_a_short_one_does_not() -> None:
    backoff = Backoff(Limits())
    assert [backoff.pause(Ending(reason="cut", lasted_seconds=1)) for _ in range(3)] == [0.5, 1, 2]
    assert backoff.pause(Ending(reason="cut", lasted_seconds=60)) == 0.5


def test_a_restart_spreads_over_three_seconds_once_and_overload_waits_longer() -> None:
    limits = Limits()
    backoff = Backoff(limits)
    assert backoff.pause(Ending(reason="restart", close_code=1012)) == 3
    assert backoff.pause(Ending(reason="restart", close_code=1012)) == 1
    backoff.pause(Ending(reason="too slow", close_code=1013))
    assert limits.drawn[-1] == (5, 20)


def test_what_the_server_asked_for_is_the_least() -> None:
    limits = Limits()
    assert Backoff(limits).pause(Ending(reason="restart", close_code=1012, after_seconds=7)) == 10
    assert Backoff(lambda low, _: low).pause(Ending(reason="restart", close_code=1012, after_seconds=7)) == 7


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1006, 1008, 1009, 1011, 1012, 1013, 4000, 4399, 4500])
def test_other_close_codes_are_not_final(code: int) -> None:
    assert Ending(reason="", close_code=code).refusal() is None


@pytest.mark.parametrize("status", [404, 429, 500, 502, 503])
def test_other_statuses_are_not_final(status: int) -> None:
    assert Ending(reason="", status=status).refusal() is None


@pytest.mark.parametrize(
    ("url", "socket"),
    [
        ("http://127.0.0.1:5001", "ws://127.0.0.1:5001/ws/a@b:c"),
        ("wss://bus.example/mounted/", "wss://bus.example/mounted/ws/a@b:c"),
    ],
)
def test_the_socket_is_at_the_url_of_the_bus(url: str, socket: str) -> None:
    assert address_of(url).websocket("a@b:c", None) == socket


@pytest.mark.parametrize("url", ["", "localhost:5001", "ftp://bus", "http://", "http://bus:0", "http://bus/?x=1"])
def test_what_is_no_url_of_a_bus_is_refused(url: str) -> None:
    with pytest.raises(Malformed):
        address_of(url)


# ---- many sends


class ScriptedRest(Rest):
    """Answers each batch with the next step: a function of the bodies, or an error to raise."""

    def __init__(self, *steps: BusError | list[BusError | None]) -> None:
        super().__init__("http://127.0.0.1:1")
        self._steps = list(steps)
        self.sent: list[list[object]] = []

    def send_batch(self, bodies: Sequence[Mapping[str, object]]) -> list[Receipt | BusError]:
        self.sent.append([body["payload"] for body in bodies])
        step = self._steps.pop(0) if self._steps else [None] * len(bodies)
        if isinstance(step, BusError):
            raise step
        return [
            Receipt(f"msg-{body['payload']}", 1) if error is None else error
            for body, error in zip(bodies, step, strict=True)
        ]


def sender(rest: Rest, pauses: list[float] | None = None) -> BulkSender:
    """One whose clock moves only while it sleeps, a second at least."""
    slept = [] if pauses is None else pauses
    return BulkSender(rest, patience_seconds=10, sleep=lambda s: slept.append(s + 1), clock=lambda: sum(slept))


def bodies(count: int) -> list[dict[str, object]]:
    return [{"payload": n} for n in range(count)]


def test_a_batch_is_sent_again_when_the_connection_broke() -> None:
    rest = ScriptedRest(Offline("gone"), Offline("gone"))
    assert len(sender(rest).send(bodies(2))) == 2
    assert rest.sent == [[0, 1]] * 3


def test_what_follows_a_full_inbox_is_sent_again_from_there() -> None:
    rest = ScriptedRest([None, InboxFull("full"), InboxFull("full")])
    outcomes = sender(rest).send(bodies(3))
    assert [isinstance(outcome, Receipt) for outcome in outcomes] == [True] * 3
    assert rest.sent == [[0, 1, 2], [1, 2]]


def test_a_refusal_that_stays_is_an_outcome_and_holds_nothing_up() -> None:
    rest = ScriptedRest([None, Malformed("bad"), None])
    outcomes = sender(rest).send(bodies(3))
    assert [type(outcome) for outcome in outcomes] == [Receipt, Malformed, Receipt]
    assert len(rest.sent) == 1


def test_a_body_too_large_as_a_whole_is_sent_one_by_one() -> None:
    rest = ScriptedRest(TooLarge("all"), [None], TooLarge("rest"), TooLarge("this one"))
    outcomes = sender(rest).send(bodies(3))
    assert [type(outcome) for outcome in outcomes] == [Receipt, TooLarge, Receipt]


def test_a_wrong_key_ends_it_at_once() -> None:
    with pytest.raises(Forbidden):
        sender(ScriptedRest(Forbidden("no"))).send(bodies(1))


def test_patience_ends_when_nothing_gets_through_and_tells_what_did() -> None:
    pauses: list[float] = []
    rest = ScriptedRest([None, InboxFull("full")], *[InboxFull("full")] * 100)
    with pytest.raises(GivenUp, match="full") as given_up:
        sender(rest, pauses).send(bodies(2))
    assert len(given_up.value.outcomes) == 1
    assert sum(pauses) >= 10
