"""Grants, the policy, and the form of keys: decided by values alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.errors import Forbidden, Malformed, Unauthenticated
from bus.identity import keys, policy
from bus.identity.caller import ADMIN, ANYBODY, SCOPES, Caller, Grant, Right
from bus.identity.policy import Action, covers
from bus.message import Kind, Message
from bus.topics import TopicSet

NOW = 1_000_000_000_000


def caller(**granted: object) -> Caller:
    return Caller("key:abc", Grant(**{"clients": ("alice",), **granted}).check())  # type: ignore[arg-type]


def message(kind: Kind = Kind.CLIENT, address: str = "bob", sender: str = "alice") -> Message:
    names = (address,) if kind is Kind.CLIENT else ()
    return Message(kind, address, names, sender, "note", b"{}", NOW)


@pytest.mark.parametrize("action", list(Action))
def test_administrators_and_everybody_without_auth_may_do_all(action: Action) -> None:
    assert policy.decide(ADMIN, action, "x").allowed
    assert policy.decide(ANYBODY, action, "x").allowed


@pytest.mark.parametrize("action", list(Action))
def test_without_a_scope_nothing_is_allowed_but_to_have_a_name(action: Action) -> None:
    me = Caller("key:none", Grant(scopes=(), clients=("alice",)))
    assert policy.decide(me, action, "alice").allowed is (action is Action.ACT)


@pytest.mark.parametrize(
    ("granted", "action", "target", "allowed"),
    [
        ({}, Action.ACT, "alice", True),
        ({}, Action.ACT, "alice2", False),
        ({"clients": ("ci-*",)}, Action.ACT, "ci-7", True),
        ({"clients": ("ci-*",)}, Action.ACT, "xci-7", False),
        ({"clients": ("*",)}, Action.ACT, "anyone", True),
        ({}, Action.READ, "alice", True),
        ({}, Action.READ, "bob", False),
        ({}, Action.SEND, "bob", True),
        ({}, Action.SEND, "all", True),
        ({"send_to": ("bob",)}, Action.SEND, "bob", True),
        ({"send_to": ("bob",)}, Action.SEND, "bobby", False),
        ({"send_to": ("bob*",)}, Action.SEND, "bobby", True),
        ({"send_to": ("bob",)}, Action.SEND, "all", False),
        ({"send_to": ("all",)}, Action.SEND, "all", True),
        ({"send_to": ("topic:a.>",)}, Action.SEND, "topic:a.b", True),
        ({"send_to": ("topic:a.>",)}, Action.SEND, "topic:a", False),
        ({"send_to": ("topic:a.>",)}, Action.SEND, "topic:b.c", False),
        ({"send_to": ("queue:jobs*",)}, Action.SEND, "queue:jobs.new", True),
        ({"send_to": ("queue:jobs",)}, Action.SEND, "queue:other", False),
        ({"send_to": ("jobs",)}, Action.SEND, "queue:jobs", False),
        ({"topics": ("a.*",)}, Action.SUBSCRIBE, "a.b", True),
        ({"topics": ("a.*",)}, Action.SUBSCRIBE, "a.*", True),
        ({"topics": ("a.*",)}, Action.SUBSCRIBE, "a.>", False),
        ({"topics": ("a.*",)}, Action.SUBSCRIBE, ">", False),
        ({"topics": ()}, Action.SUBSCRIBE, "a.b", False),
        ({"queues": ("q",)}, Action.CLAIM, "q", True),
        ({"queues": ("q",)}, Action.CLAIM, "q2", False),
        ({}, Action.PRESENCE, "", True),
        ({}, Action.READ_ALL, "", False),
        ({}, Action.ON_BEHALF, "bob", False),
        ({"scopes": ("send", "on-behalf-of")}, Action.ON_BEHALF, "bob", True),
        ({}, Action.ADMINISTER, "", False),
    ],
)
def test_what_is_granted_decides(granted: dict[str, object], action: Action, target: str, allowed: bool) -> None:
    decision = policy.decide(caller(**granted), action, target)
    assert decision.allowed is allowed, decision.why
    assert decision.why.endswith(".")


@pytest.mark.parametrize("right", [Right.SEND, Right.READ, Right.PRESENCE, Right.READ_ALL])
def test_a_right_is_the_scope_of_its_name(right: Right) -> None:
    policy.need_right(caller(scopes=(right.value,)), right)
    others = tuple(scope for scope in SCOPES if scope not in (right.value, "admin"))
    with pytest.raises(Forbidden):
        policy.need_right(caller(scopes=others), right)
    with pytest.raises(Forbidden):
        policy.need_right(caller(scopes=(right.value,)), Right.ADMIN)


def test_a_bound_sender_is_verified_and_nobody_else() -> None:
    mine = message()
    policy.authorise(caller(), mine)
    assert mine.extras == policy.VERIFIED
    for anyone in (ADMIN, ANYBODY, caller(clients=("*",))):
        claimed = message()
        policy.authorise(anyone, claimed)
        assert claimed.extras == b""


def test_a_send_in_anothers_name_is_refused_whatever_it_says() -> None:
    with pytest.raises(Forbidden, match="alice") as refusal:
        policy.authorise(caller(), message(sender="bob"))
    assert refusal.value.code == "not_your_name"


def test_every_name_of_a_list_has_to_be_allowed() -> None:
    several = Message(Kind.LIST, '["bob","eve"]', ("bob", "eve"), "alice", "note", b"{}", NOW)
    policy.authorise(caller(), several)
    with pytest.raises(Forbidden, match="eve"):
        policy.authorise(caller(send_to=("bob",)), several)


@pytest.mark.parametrize(
    ("granted", "seen", "allowed"),
    [
        ({}, message(), True),  # it sent it
        ({}, message(address="alice", sender="bob"), True),
        ({}, message(address="eve", sender="bob"), False),
        ({}, message(Kind.ALL, "", "bob"), True),
        ({"topics": ("a.>",)}, message(Kind.TOPIC, "a.b", "bob"), True),
        ({"topics": ("a.>",)}, message(Kind.TOPIC, "c", "bob"), False),
        ({"queues": ("q",)}, message(Kind.QUEUE, "q", "bob"), True),
        ({"queues": ("q",)}, message(Kind.QUEUE, "p", "bob"), False),
        ({"scopes": ("read-all",)}, message(address="eve", sender="bob"), True),
        ({"scopes": ("presence",)}, message(address="alice", sender="bob"), False),
    ],
)
def test_who_may_see_a_message(granted: dict[str, object], seen: Message, allowed: bool) -> None:
    assert policy.may_see(caller(**granted), seen) is allowed


LEVEL = st.sampled_from(["a", "b", "c"])
TOPIC = st.lists(LEVEL, min_size=1, max_size=4).map(".".join)
PATTERN = st.tuples(st.lists(st.one_of(LEVEL, st.just("*")), min_size=1, max_size=3), st.booleans()).map(
    lambda parts: ".".join(parts[0] + ([">"] if parts[1] else []))
)


@given(PATTERN, PATTERN, TOPIC)
def test_what_covers_a_pattern_matches_all_that_it_matches(granted: str, asked: str, topic: str) -> None:
    if covers(granted, asked) and TopicSet([asked]).matches(topic):
        assert TopicSet([granted]).matches(topic)


@given(PATTERN, TOPIC)
def test_of_topics_to_cover_is_to_match(granted: str, topic: str) -> None:
    assert covers(granted, topic) is TopicSet([granted]).matches(topic)


@pytest.mark.parametrize(
    "granted",
    [
        {"clients": ("bad name",)},
        {"clients": ("all",)},
        {"clients": ()},
        {"clients": ("$bus",)},
        {"scopes": ()},
        {"topics": ("a.>.b",)},
        {"queues": ("a b",)},
        {"send_to": ("topic:a.>.b",)},
        {"send_to": ("queue:",)},
        {"rate_per_minute": 0},
        {"clients": tuple(f"c{n}" for n in range(1001))},
    ],
)
def test_a_grant_that_cannot_be_meant_is_refused(granted: dict[str, object]) -> None:
    with pytest.raises(Malformed):
        caller(**granted)


# ---- keys


def made(ends_us: int | None = None) -> keys.Made:
    return keys.make("prod", "label", Grant(clients=("alice",)), NOW, ends_us)


def test_a_key_is_found_by_its_id_and_kept_as_a_hash() -> None:
    key = made()
    assert key.text.startswith("bus_prod_")
    assert keys.id_of(key.text) == key.key.id
    assert len(key.text) == len("bus_prod_") + 12 + 1 + 43 + 1 + 6
    assert key.text.encode() not in key.key.digest
    assert keys.Keyring([key.key], 1).check(key.text, NOW).name == f"key:{key.key.id}"


def test_ten_thousand_keys_differ() -> None:
    assert len({made().text for _ in range(10_000)}) == 10_000


def test_any_changed_character_is_told_by_the_check_alone() -> None:
    text = made().text
    for at in range(len(text)):
        changed = text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :]
        assert keys.id_of(changed) is None or at < len("bus_prod_"), f"character {at}"


@given(st.text(max_size=200))
def test_what_is_no_key_is_refused_without_a_crash(text: str) -> None:
    with pytest.raises(Unauthenticated):
        keys.Keyring([made().key], 1).check(f"bus_{text}", NOW)


def test_a_key_with_a_good_check_and_another_secret_is_refused() -> None:
    key, other = made(), made()
    parts = other.text.split("_")
    parts[2] = key.key.id
    forged = "_".join(parts[:-1])
    with pytest.raises(Unauthenticated):
        keys.Keyring([key.key], 1).check(f"{forged}_{keys.check_of(forged)}", NOW)


def test_an_expired_key_is_refused_from_its_moment_on() -> None:
    key = made(NOW + 1)
    ring = keys.Keyring([key.key], 1)
    ring.check(key.text, NOW)
    with pytest.raises(Unauthenticated, match="expired"):
        ring.check(key.text, NOW + 1)
