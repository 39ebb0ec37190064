"""The questions that are asked of each system, and the load that answers them."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.systems import Kind


@dataclass(frozen=True)
class Question:
    """One test: `load` is what the generator is told beside what the system says about itself."""

    name: str
    asks: str
    kind: Kind
    load: tuple[str, ...]
    unit: str


def fan_out(subscribers: int) -> Question:
    """One publisher to many subscribers, as fast as it goes."""
    return Question(
        name=f"fanout{subscribers}",
        asks=f"One publisher, {subscribers} subscribers on one id, 64 messages under way: deliveries a second?",
        kind="deliver",
        load=("--subscribers", str(subscribers), "--window", "64"),
        unit="deliveries/s",
    )


QUESTIONS = (
    fan_out(100),
    fan_out(1000),
    Question(
        name="steady1000",
        asks="20 messages a second to 1,000 subscribers: how late do they come?",
        kind="deliver",
        load=("--subscribers", "1000", "--rate", "20"),
        unit="deliveries/s",
    ),
    Question(
        name="one-to-one",
        asks="8 pairs of publisher and subscriber, 32 messages under way in each: messages a second?",
        kind="deliver",
        load=("--groups", "8", "--subscribers", "1", "--window", "32"),
        unit="messages/s",
    ),
    Question(
        name="pingpong",
        asks="One pair, one message under way: how long from send to receipt?",
        kind="deliver",
        load=("--subscribers", "1", "--window", "1"),
        unit="messages/s",
    ),
    Question(
        name="ingest",
        asks="8 producers, 256 unanswered messages each, nobody listening: acknowledgements a second?",
        kind="ingest",
        load=("--groups", "8", "--window", "256"),
        unit="acks/s",
    ),
    Question(
        name="ingest64",
        asks="64 producers that each wait for the acknowledgement: acknowledgements a second?",
        kind="ingest",
        load=("--groups", "64", "--window", "1"),
        unit="acks/s",
    ),
    Question(
        name="post64",
        asks="64 HTTP connections that each wait for the answer to POST /api/send: answers a second?",
        kind="post",
        load=("--groups", "64", "--window", "1"),
        unit="answers/s",
    ),
    Question(
        name="idle5000",
        asks="5,000 connections, each its own client, that do nothing: server memory for one?",
        kind="idle",
        load=("--idle", "5000"),
        unit="KiB/connection",
    ),
)
