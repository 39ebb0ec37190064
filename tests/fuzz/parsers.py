"""What strangers' bytes meet first, fed with broken ones: frames, bodies, cursors, times, addresses, heads, keys, webhooks.

    python -m tests.fuzz.parsers --seconds 600

Each target gets good examples with some bytes changed, cut, doubled or joined, and pure noise. It may refuse in its own way,
and nothing else: no other exception, no answer that contradicts itself. Ends with 1, and prints the bytes, when one does.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import time
import traceback
from collections.abc import Callable, Iterator

from bus import frames
from bus.errors import BusError
from bus.identity import keys
from bus.identity.caller import Grant
from bus.ingress.documents import document_of
from bus.ingress.schemes import SCHEMES
from bus.ingress.signatures import Request, verify
from bus.message import Names, is_cursor, parse_cursor, parse_time
from bus.protocol import (
    decode_batch,
    decode_frame,
    decode_send,
    draft_of,
    parse_address,
    plain_batch,
    plain_frame,
    plain_post,
    read,
)
from bus.topics import TopicSet, check_pattern, patterns_of
from bus.transports.heads import _fields_of
from tests.rawws import CLOSE, PING, TEXT, frame_bytes

MAX_BYTES = 4096
GOOD_SEND = {"from": "a", "to": ["b", "c"], "type": "note", "payload": {"x": [1, None, "é"]}, "priority": "high", "ttl": 5,
             "headers": {"a": "b"}, "delay": 1, "idempotency_key": "k"}  # fmt: skip
BODIES = [
    json.dumps(GOOD_SEND).encode(),
    b'{"from":"a","to":"all","payload":"\\u05e9"}',
    json.dumps({"messages": [GOOD_SEND, {"from": "a", "to": "queue:q"}], "atomic": True}).encode(),
    b'{"type":"send","to":"topic:a.b","ref":1,"msg_type":"m","payload":[]}',
    b'{"type":"subscribe","topics":["a.*","b.>"],"queues":["q"],"max_in_flight":3}',
]
TEXTS = [
    b"6998bd1b4e1f:4711",
    b"2026-02-21T17:27:21.123456+00:00",
    b"2026-02-21",
    b"topic:builds.linux",
    b"a.*.>",
    b"queue:q",
    b"all",
]
HEADS = [
    b"POST /api/send HTTP/1.1\r\nHost: 127.0.0.1:5001\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n",
    b"GET /ws/a HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x==\r\n\r\n",
]
FRAMES = [
    frame_bytes(TEXT, BODIES[3]),
    frame_bytes(PING, b"1"),
    frame_bytes(CLOSE, b"\x03\xe8bye"),
    frame_bytes(TEXT, b"x" * 200) + frame_bytes(TEXT, b"y" * 70_000),
]
KEY = keys.make("dev", "", Grant(clients=("a",)), 0, None)
HEADERS = {
    "botlyne": ["X-Timestamp", "X-Signature"],
    "github": ["X-Hub-Signature-256", "X-GitHub-Delivery", "X-GitHub-Event"],
    "stripe": ["Stripe-Signature"],
    "slack": ["X-Slack-Signature", "X-Slack-Request-Timestamp"],
    "twilio": ["X-Twilio-Signature"],
    "standard-webhooks": ["webhook-id", "webhook-timestamp", "webhook-signature"],
}
VALUES = [
    b"sha256=" + b"a" * 64,
    b"t=1,v1=" + b"b" * 64,
    b"v0=" + b"c" * 64,
    b"v1,AAAA v1,BBBB",
    b"1700000000",
    b"1e999",
    b"-1",
    b"",
]


ODD = [b"\x00", b"\xff\xfe", b'"', b"{", b"[" * 40, b"1e999", b"\\ud800", b"\r\n", b":" * 9]

Chance = random.Random


def broken(good: bytes, chance: Chance) -> bytes:
    """The bytes with something wrong about them, or about none of them."""
    data = bytearray(good)
    for _ in range(chance.randrange(4)):
        at = chance.randrange(len(data) + 1)
        kind = chance.randrange(6)
        if kind == 0 and data:
            data[at % len(data)] = chance.randrange(256)
        elif kind == 1:
            del data[at : at + chance.randrange(1, 9)]
        elif kind == 2:
            data[at:at] = chance.randbytes(chance.randrange(1, 9))
        elif kind == 3:
            data[at:at] = data[at : at + chance.randrange(1, 64)] * chance.randrange(1, 4)
        elif kind == 4:
            data[at:at] = chance.choice(
                (b"\x00", b"\xff\xfe", b'"', b"{", b"[" * 40, b"1e999", b"\\ud800", b"\r\n", b":" * 9)
            )
        else:
            data += chance.choice(BODIES)[: chance.randrange(40)]
    return bytes(data) if chance.random() < 0.97 else chance.randbytes(chance.randrange(200))


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """What is refused within is refused by a sentence."""
    try:
        yield
    except BusError as refusal:
        if not refusal.sentence.endswith("."):
            raise AssertionError(refusal.sentence) from refusal


def of_frames(chance: Chance) -> bytes:
    data = broken(b"".join(chance.choices(FRAMES, k=chance.randrange(1, 4))), chance)
    whole, used, need, problem = frames.read_frames(data, MAX_BYTES)
    assert 0 <= used <= len(data)
    assert need >= 0
    assert all(len(payload) <= MAX_BYTES for _, payload in whole)
    if problem is None:  # read in two parts, the same comes out
        at = chance.randrange(len(data) + 1)
        first, used_first, _, _ = frames.read_frames(data[:at], MAX_BYTES)
        rest, used_rest, _, _ = frames.read_frames(data[used_first:], MAX_BYTES)
        assert first + rest == whole
        assert used_first + used_rest == used
    for opcode, payload in whole:
        if opcode & 0x0F == CLOSE:
            with contextlib.suppress(frames.FrameError):
                frames.read_close(payload)
    return data


def of_bodies(chance: Chance) -> bytes:
    data, names = broken(chance.choice(BODIES), chance), Names()
    for decode in (decode_send, decode_frame, decode_batch):
        with refusing():
            found = read(decode, data, "body")
            if decode is not decode_batch and found.to is not None:
                draft = draft_of(found, "a", "note", names=names, stamp_us=0)
                json.loads(draft.message.payload)
    plain_frame(data), plain_post(data), plain_batch(data)
    return data


def of_texts(chance: Chance) -> bytes:
    data = broken(chance.choice(TEXTS), chance)
    text, names = data.decode("utf-8", "surrogateescape"), Names()
    calls: tuple[Callable[[], object], ...] = (
        lambda: parse_cursor(text),
        lambda: parse_time(text, "since"),
        lambda: parse_address(text, names),
        lambda: check_pattern(text),
        lambda: TopicSet(patterns_of(text)).matches("a.b"),
        lambda: keys.Keyring([KEY.key], 1).check(f"bus_{text}", 0),
    )
    for call in calls:
        with refusing():
            call()
    if is_cursor(text):
        parse_cursor(text)
    return data


def of_heads(chance: Chance) -> bytes:
    data = broken(chance.choice(HEADS), chance)
    fields = _fields_of(data, 100)
    assert fields is None or all(name == name.lower() for name in fields)
    return data


def of_webhooks(chance: Chance) -> bytes:
    scheme, body = chance.choice(list(SCHEMES)), broken(chance.choice(BODIES), chance)
    text = [broken(chance.choice(VALUES), chance).decode("latin-1") for _ in HEADERS.get(scheme, [])]
    fields = {name.lower(): value for name, value in zip(HEADERS.get(scheme, []), text, strict=True)}
    request = Request(_Fields(fields), body, chance.choice(("https://example.com/hook?a=b", "", "::")))
    outcome, _ = verify(SCHEMES[scheme], request, ["a-secret-for-the-fuzzer"], 0)
    assert outcome == "bad_signature", "Nobody signed this."
    with refusing():
        document_of(SCHEMES[scheme], request)
    return scheme.encode() + b" " + body


class _Fields(dict[str, str]):
    """Headers, by their names in lower case."""

    def get(self, name: str, default: str | None = None, /) -> str | None:  # type: ignore[override]
        return super().get(name.lower(), default)


TARGETS = (of_frames, of_bodies, of_texts, of_heads, of_webhooks)


def run(seconds: float, seed: int) -> tuple[int, str]:
    """Feed all targets in turn for so long. Returns how many inputs there were, and the first failure, with its seed."""
    ends, count = time.monotonic() + seconds, 0
    while time.monotonic() < ends:
        for target in TARGETS:
            here = f"{seed}-{count}"
            try:
                target(random.Random(here))
            except Exception:  # noqa: BLE001  # whatever it is, it is what is looked for
                return count, f"{target.__name__} with the seed {here!r}:\n{traceback.format_exc()}"
            count += 1
    return count, ""


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    asked = parser.parse_args()
    count, failure = run(asked.seconds, asked.seed)
    print(failure or f"{count} inputs were taken or refused in their way; seed {asked.seed}.")
    return 1 if failure else 0


if __name__ == "__main__":
    sys.exit(main())
