"""What a random history is drawn from: names, what senders say, how long one waits. Few of each, so that they meet."""

from __future__ import annotations

import hypothesis.strategies as st

from tests.model.model import SECOND, Sending

CLIENTS = ("bob", "cy")
QUEUES = ("queue:jobs", "queue:mail")
HOLDERS = ("bob", "cy", "bob/1", "cy/1")
HOURS = 3600 * SECOND

clients = st.sampled_from(CLIENTS)
queues = st.sampled_from((*QUEUES[:1], *QUEUES))
holders = st.sampled_from(HOLDERS)
owners = st.sampled_from((*CLIENTS, *QUEUES))
picks = st.integers(0, 999)
writers = st.integers(0, 1)
priorities = st.sampled_from(("critical", "high", "normal", "normal", "low", "bulk"))
sendings = st.builds(
    Sending,
    sender=st.sampled_from(("ann", "bob")),
    to=st.sampled_from(("bob", "bob", "cy", ("bob", "cy"), "queue:jobs", "queue:jobs", "queue:mail")),
    payload=st.sampled_from((b"{}", b"{}", b'"' + 200 * b"x" + b'"')),
    require_ack=st.sampled_from((True, True, False)),
    priority=priorities,
    ack_wait=st.sampled_from((30 * SECOND, 30 * SECOND, SECOND, 2 * HOURS)),
    ttl=st.sampled_from((None, None, None, 10 * SECOND, 60 * SECOND)),
    delay=st.sampled_from((0, 0, 0, 7 * SECOND)),
    key=st.sampled_from((None, None, None, "k1", "k2")),
)
pauses = st.sampled_from(
    (1, SECOND, 4 * SECOND, 6 * SECOND, 29 * SECOND, 30 * SECOND, 150 * SECOND, 700 * SECOND, HOURS)
)
