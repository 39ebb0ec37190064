"""The questions that are asked of each system, and the load that answers them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from benchmarks.systems import Kind


@dataclass(frozen=True)
class Question:
    """One test: `load` is what the generator is told beside what the system says about itself.

    `ours` is the form of the bus that the others are compared with. `only` narrows who is asked, all who can without.
    """

    name: str
    asks: str
    kind: Kind
    load: tuple[str, ...]
    unit: str
    ours: str = "bus"
    only: frozenset[str] = frozenset()


def fan_out(subscribers: int, window: int, *, ours: str) -> Question:
    """One publisher to many subscribers, as fast as it goes."""
    waits = f"{window} messages under way" if window > 1 else "the next message when all have this one"
    return Question(
        name=f"fanout{subscribers}-w{window}",
        asks=f"One publisher, {subscribers} subscribers on one id, {waits}: deliveries a second?",
        kind="deliver",
        load=("--subscribers", str(subscribers), "--window", str(window)),
        unit="deliveries/s",
        ours=ours,
    )


def event_stream(subscribers: int) -> Question:
    """The same to subscribers that listen to server-sent events."""
    alike = fan_out(subscribers, 64, ours="bus")
    asks = alike.asks.replace("subscribers", "server-sent event streams").replace("on one id", "of one id")
    return replace(alike, name=f"sse{subscribers}", kind="sse", asks=asks)


def one_to_one(name: str, kind: Kind, counts: str, *, ours: str, load: tuple[str, ...] = ()) -> Question:
    """Pairs, pipelined."""
    return Question(
        name=name,
        asks=f"8 pairs of publisher and subscriber, 32 messages under way in each{counts}: messages a second?",
        kind=kind,
        load=("--groups", "8", "--subscribers", "1", "--window", "32", *load),
        unit="messages/s",
        ours=ours,
    )


def batches(connections: int) -> Question:
    """A hundred messages a request."""
    plural = "s that each wait" if connections > 1 else " that waits"
    return Question(
        name=f"batch100-{connections}",
        asks=f"{connections} HTTP connection{plural} for the answer to a POST of 100 messages: messages a second?",
        kind="batch",
        load=("--groups", str(connections), "--window", "1", "--size", "0"),
        unit="messages/s",
    )


def idle(kind: Kind, what: str) -> Question:
    """Connections that only cost memory."""
    return Question(
        name=f"{kind.replace('idle', 'idle10000')}",
        asks=f"10,000 {what}, each its own client, silent: memory for one, and does /health still answer a stranger?",
        kind=kind,
        load=("--idle", "10000"),
        unit="KiB/connection",
    )


QUESTIONS = (
    fan_out(100, 64, ours="bus"),
    fan_out(1000, 64, ours="bus"),
    fan_out(100, 16, ours="bus-ephemeral"),
    fan_out(1000, 1, ours="bus-ephemeral"),
    Question(
        name="steady1000",
        asks="20 messages a second to 1,000 subscribers: how late do they come?",
        kind="deliver",
        load=("--subscribers", "1000", "--rate", "20"),
        unit="deliveries/s",
    ),
    one_to_one("one-to-one", "deliver", "", ours="bus-ephemeral"),
    one_to_one(
        "one-to-one-kept",
        "both",
        ", complete when the receiver has it and the sender knows that it is kept",
        ours="bus",
        load=("--both",),
    ),
    Question(
        name="pingpong",
        asks="One pair, one message under way: how long from send to receipt?",
        kind="deliver",
        load=("--subscribers", "1", "--window", "1"),
        unit="messages/s",
        ours="bus-ephemeral",
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
        asks="64 HTTP connections that each wait for the answer to a POST of one message: answers a second?",
        kind="post",
        load=("--groups", "64", "--window", "1"),
        unit="answers/s",
    ),
    batches(8),
    batches(1),
    event_stream(100),
    event_stream(1000),
    idle("idle", "WebSockets"),
    idle("idle-sse", "server-sent event streams"),
    replace(
        one_to_one("metrics", "measured", ", complete at receiver and sender", ours="bus-unmeasured", load=("--both",)),
        asks="One-to-one, kept, with metrics and without (`ENABLE_METRICS=false`): what does counting cost?",
    ),
    replace(
        one_to_one("guarded", "guarded", ", complete at receiver and sender", ours="bus-guarded", load=("--both",)),
        asks="One-to-one, kept: credentials, limits, metrics, retention and webhooks in force, and none of them?",
    ),
    Question(
        name="guarded-post64",
        asks="64 HTTP connections, a POST of one message at a time: all of that in force, and none of it?",
        kind="guarded-post",
        load=("--groups", "64", "--window", "1"),
        unit="answers/s",
        ours="bus-guarded",
    ),
    Question(
        name="hop",
        asks="Two workers, a pair on one of them and a pair across both, in turn: what does the hop add?",
        kind="hop",
        load=(),
        unit="ms added",
        ours="bus-2-workers",
    ),
)
