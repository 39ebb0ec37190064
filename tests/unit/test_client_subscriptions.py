"""Topics and queues of a client, against a bus that the test scripts: asked for, refused, asked for again."""

from __future__ import annotations

import threading
from urllib.parse import parse_qs, urlsplit

import pytest

from bus.client import Client, Offline, ReceiptTimeout
from bus.errors import BusError, Malformed
from tests.unit.scripted_bus import PATIENCE_SECONDS, Gathered, Peer, ScriptedBus, Start


def topics_of(peer: Peer) -> list[str]:
    """The topics in the URL of a connection."""
    return parse_qs(urlsplit(peer.path).query).get("topics", [])


def subscribing(client: Client, **what: object) -> tuple[threading.Thread, Gathered]:
    """Subscribe on another thread; what it raised, or None, is gathered."""
    outcome = Gathered()

    def subscribe() -> None:
        try:
            outcome(client.subscribe(timeout=PATIENCE_SECONDS, **what))  # type: ignore[arg-type]
        except BusError as error:
            outcome(error)

    thread = threading.Thread(target=subscribe)
    thread.start()
    return thread, outcome


def test_what_is_subscribed_before_connecting_goes_in_the_url_and_in_the_first_frames(bus: ScriptedBus) -> None:
    with_topics = Client("reader", bus.url)
    with_topics.subscribe(topics=["builds.*", "logs.>"], queues=["jobs", "mail"], max_in_flight=3)
    with_topics.subscribe(queues=["slow"], max_in_flight=1)
    with pytest.raises(Offline):
        with_topics.connect(0)
    peer = bus.accept_confirmed()
    assert topics_of(peer) == ["builds.*,logs.>"]
    assert peer.hear() == {"type": "subscribe", "queues": ["jobs", "mail", "slow"], "max_in_flight": 1}
    with_topics.close(0)


def test_subscribing_waits_for_the_bus_and_lasts_over_a_reconnect(bus: ScriptedBus, start: Start) -> None:
    client = start()
    first = bus.accept_confirmed()
    client.connect(PATIENCE_SECONDS)
    thread, outcome = subscribing(client, topics=["builds.*"], queues=["jobs"])
    heard = first.hear()
    assert heard == {
        "type": "subscribe",
        "topics": ["builds.*"],
        "queues": ["jobs"],
        "max_in_flight": 10,
        "ref": heard["ref"],
    }
    assert outcome.is_empty
    first.say(type="subscribed", topics=["builds.*"], queues=["jobs"], ref=heard["ref"])
    assert outcome.next() is None
    thread.join()
    first.cut()
    second = bus.accept_confirmed()
    assert topics_of(second) == ["builds.*"]
    assert second.hear() == {"type": "subscribe", "queues": ["jobs"], "max_in_flight": 10}


def test_what_the_bus_refuses_is_raised_and_not_asked_for_again(bus: ScriptedBus, start: Start) -> None:
    client = start()
    first = bus.accept_confirmed()
    client.connect(PATIENCE_SECONDS)
    thread, outcome = subscribing(client, topics=["a..b"])
    first.say(type="error", ref=first.hear()["ref"], code="bad_topic", error="No such pattern.", field="topics")
    assert isinstance(outcome.next(), Malformed)
    thread.join()
    first.cut()
    assert topics_of(bus.accept()) == []


def test_what_no_frame_can_be_made_of_is_not_asked_for_again(bus: ScriptedBus, start: Start) -> None:
    client = start()
    first = bus.accept_confirmed()
    client.connect(PATIENCE_SECONDS)
    with pytest.raises(ValueError, match="surrogates"):
        client.subscribe(topics=["\ud800"])
    first.cut()
    assert topics_of(bus.accept()) == []


def test_a_connection_lost_while_subscribing_is_said_and_the_next_one_has_it(bus: ScriptedBus, start: Start) -> None:
    client = start()
    first = bus.accept_confirmed()
    client.connect(PATIENCE_SECONDS)
    thread, outcome = subscribing(client, topics=["builds.*"])
    first.hear()
    first.cut()
    assert isinstance(outcome.next(), Offline)
    thread.join()
    assert topics_of(bus.accept()) == ["builds.*"]


def test_a_confirmation_that_does_not_come_is_a_time_out(bus: ScriptedBus, start: Start) -> None:
    client = start()
    bus.accept_confirmed()
    client.connect(PATIENCE_SECONDS)
    with pytest.raises(ReceiptTimeout, match="did not confirm"):
        client.subscribe(topics=["builds.*"], timeout=0)


def test_unsubscribing_is_said_and_lasts(bus: ScriptedBus) -> None:
    client = Client("reader", bus.url)
    client.subscribe(topics=["a.*", "b.*"], queues=["jobs"])
    with pytest.raises(Offline):
        client.connect(0)
    first = bus.accept()
    client.unsubscribe(topics=["b.*"], queues=["jobs"])
    first.confirm()
    assert topics_of(first) == ["a.*,b.*"]
    assert first.hear() == {"type": "unsubscribe", "topics": ["b.*"]}
    client.connect(PATIENCE_SECONDS)
    with pytest.raises(ReceiptTimeout):
        client.unsubscribe(topics=["a.*"], timeout=0)
    heard = first.hear()
    assert heard == {"type": "unsubscribe", "topics": ["a.*"], "ref": heard["ref"]}
    first.cut()
    assert topics_of(bus.accept()) == []
    client.close(0)


def test_what_is_subscribed_while_a_connection_comes_about_is_asked_for_on_it(bus: ScriptedBus, start: Start) -> None:
    client = start()
    peer = bus.accept()
    client.subscribe(topics=["late.*"])
    peer.confirm()
    assert peer.hear() == {"type": "subscribe", "topics": ["late.*"]}
