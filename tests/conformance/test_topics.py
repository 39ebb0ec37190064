"""Topics: subscriptions with wildcards. A bus that does not have them yet answers 501, and this file is skipped."""

from __future__ import annotations

import pytest
from websockets.exceptions import InvalidStatus

from tests.conformance.remote import Remote


@pytest.fixture
def topics(remote: Remote) -> Remote:
    """As `remote`, of a bus that has topics."""
    try:
        remote.connect(remote.name(), topics=remote.name("topic")).close()
    except InvalidStatus as refused:
        if refused.response.status_code == 501:
            pytest.skip("The bus has no topics yet.")
        raise
    return remote


def test_a_message_to_a_topic_reaches_who_subscribed_to_it(topics: Remote) -> None:
    topic = topics.name("topic")
    with topics.connect(topics.name(), topics=topic) as one, topics.connect(topics.name()) as two:
        answer = two.ask("subscribe", topics=[topic])
        assert (answer["type"], answer["topics"]) == ("subscribed", [topic])
        receipt = topics.send(topics.name("sender"), f"topic:{topic}", 1)
        (entry,) = receipt["recipients"]
        assert (entry["client"], entry["state"]) == (f"topic:{topic}", "sent")
        assert 0 <= entry["online"] <= 2  # other processes of the bus hear of subscriptions a moment later
        for socket in (one, two):
            message = socket.message()
            assert (message["to"], message["payload"], message["seq"]) == (f"topic:{topic}", 1, receipt["seq"])


def test_a_star_is_one_level_and_an_arrow_all_below(topics: Remote) -> None:
    root = topics.name("topic")
    with (
        topics.connect(topics.name(), topics=f"{root}.*") as level,
        topics.connect(topics.name(), topics=f"{root}.>") as below,
        topics.connect(topics.name(), topics=f"{root}.*.c") as middle,
    ):
        for topic in (root, f"{root}.a", f"{root}.a.b", f"{root}.a.c"):
            topics.send(topics.name("sender"), f"topic:{topic}", topic.removeprefix(root))
        assert level.message()["payload"] == ".a"
        assert [message["payload"] for message in below.messages(3)] == [".a", ".a.b", ".a.c"]
        assert middle.message()["payload"] == ".a.c"
        assert all(socket.is_quiet() for socket in (level, below, middle))


def test_two_patterns_that_match_bring_one_message(topics: Remote) -> None:
    root = topics.name("topic")
    with topics.connect(topics.name(), topics=f"{root}.a,{root}.*") as socket:
        topics.send(topics.name("sender"), f"topic:{root}.a")
        socket.message()
        assert socket.is_quiet()


def test_an_unsubscribed_topic_is_silent(topics: Remote) -> None:
    one, two = sorted([topics.name("topic"), topics.name("topic")])
    with topics.connect(topics.name(), topics=f"{one},{two}") as socket:
        assert socket.ask("unsubscribe", topics=[one])["topics"] == [two]
        topics.send(topics.name("sender"), f"topic:{one}")
        topics.send(topics.name("sender"), f"topic:{two}", "heard")
        assert socket.message()["payload"] == "heard"


def test_topics_come_in_one_order_with_what_is_addressed(topics: Remote) -> None:
    topic, sender = topics.name("topic"), topics.name("sender")
    with topics.connect(topics.name(), topics=topic) as socket:
        for number in range(20):
            topics.send(sender, socket.client if number % 2 else f"topic:{topic}", number)
        assert [message["payload"] for message in socket.messages(20)] == list(range(20))


def test_who_names_its_topics_again_with_its_cursor_misses_nothing(topics: Remote) -> None:
    topic, sender, name = topics.name("topic"), topics.name("sender"), topics.name()
    with topics.connect(name, topics=topic) as socket:
        topics.send(sender, f"topic:{topic}", "live")
        seq = socket.message()["seq"]
    topics.send(sender, f"topic:{topic}", "away")
    with topics.connect(name, topics=topic, since=f"{socket.hello['epoch']}:{seq}") as socket:
        assert socket.message()["payload"] == "away"
        assert socket.is_quiet()


def test_topics_can_be_read_over_rest(topics: Remote) -> None:
    root = topics.name("topic")
    sender = topics.name("sender")
    topics.send(sender, f"topic:{root}.a", 1)
    page = topics.read(topics.name(), since=topics.start, topics=f"{root}.*", from_=sender)
    assert [message["payload"] for message in page["messages"]] == [1]
    if topics.may_administer:
        log = topics.get("/api/log", since=topics.start, topic=f"{root}.*").body
        assert [message["payload"] for message in log["messages"]] == [1]


@pytest.mark.parametrize("pattern", ["a.>.b", "a*", ">a", "a b"])
def test_a_pattern_that_is_none_is_refused(topics: Remote, pattern: str) -> None:
    assert topics.refusal(topics.name(), topics=pattern).status == 400
    with topics.connect(topics.name()) as socket:
        answer = socket.ask("subscribe", topics=[pattern])
        assert (answer["type"], answer["field"]) == ("error", "topics")
