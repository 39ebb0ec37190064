"""Hostile webhooks by the thousand: nothing but a signature lets one in, and nothing makes the server fail.

    python -m tests.fuzz.ingress --requests 100000 --workers 2

A request is a good one of some scheme with something wrong about it, or a good signature over garbage, or noise. Whether it
has to be taken, refused for its signature, or refused for its body is known beforehand; at the end the log holds just what
was taken. Prints what came, by status, and ends with 1 if anything was not as it has to be.
"""

from __future__ import annotations

import argparse
import http.client
import random
import string
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from bus.testing import HOST, BusServer
from tests.calls import call
from tests.ingress_calls import FORM, SCHEMES, SECRET, fresh_body, headers_for, integrate

EXPECTED = {
    "good": {202},
    "signed": {200, 202, 400, 409},
    "form": {202, 401, 409},  # what is no form can't have been signed as one
    "bad": {400, 401, 403, 404, 415},
}
"""Statuses that a webhook may be answered with: 400, 403, 404 and 415 for a path, a Host or a head that can't be one."""

TEXT = string.printable.replace("\r", "").replace("\n", "").replace("\x0b", "").replace("\x0c", "") + "äß€é\u00ff"
ODD = b'{"type": 5, "id": {}, "event": []}'
BODIES = (b"", b"{", b'{"a": NaN}', b"[" * 3000, b'"\xff"', b"\x00" * 50, ODD, b"null", b"%%%=&&")


class Fuzzer:
    """One thread's requests, on a connection that is kept. `came` counts statuses; `taken` what the log has to hold."""

    def __init__(self, server: BusServer, integrations: list[dict[str, Any]], seed: int) -> None:
        self._server = server
        self._integrations = integrations
        self._chance = random.Random(seed)
        self._link = http.client.HTTPConnection(HOST, server.port, timeout=60)
        self.came: Counter[int] = Counter()
        self.taken = 0
        self.wrong: list[str] = []

    def run(self, count: int) -> None:
        """Send so many, and stop at the first dozen of wrong answers."""
        for _ in range(count):
            self._one()
            if len(self.wrong) > 12:
                break
        self._link.close()

    def _one(self) -> None:
        chance = self._chance
        made = chance.choice(self._integrations)
        kind, path, headers, body = chance.choice(KINDS)(chance, made)
        try:
            status = self._post(path, headers, body)
        except (http.client.HTTPException, OSError) as error:
            self._link.close()
            self.wrong.append(f"{kind}: {error!r} for {headers!r} {body[:80]!r}")
            return
        self.came[status] += 1
        if status not in EXPECTED[kind]:
            self.wrong.append(f"{kind}: {status} for {path!r} {headers!r} {body[:200]!r}")
        self.taken += status == 202

    def _post(self, path: str, headers: dict[str, str], body: bytes) -> int:
        self._link.request(
            "POST", path, body, {key: value.encode("latin-1", "replace") for key, value in headers.items()}
        )
        response = self._link.getresponse()
        response.read()
        return response.status


NAMES = ("X-Signature", "X-Timestamp", "webhook-id", "Stripe-Signature", "X-Hub-Signature-256", "Content-Type", "Cookie",
         "X-Twilio-Signature", "X-Slack-Signature", "Content-Encoding", "X-Request-ID", "Host", "Origin")  # fmt: skip

Made = tuple[str, str, dict[str, str], bytes]
"""What is expected of it, its path, headers and body."""


def good(chance: random.Random, made: dict[str, Any]) -> Made:
    """As a sender makes it."""
    body = fresh_body(made["scheme"])
    return "good", made["path"], headers_for(made, body), body


def garbage(chance: random.Random, made: dict[str, Any]) -> Made:
    """A good signature over what is no good body."""
    body = chance.choice(BODIES) if chance.random() < 0.5 else chance.randbytes(chance.randrange(200))
    headers = headers_for(made, body, event=_text(chance, 30).strip() or "x")
    if made["scheme"] == "twilio":
        return "form", made["path"], headers, body
    if chance.random() < 0.3:
        headers["Content-Type"] = chance.choice([FORM, "text/plain; charset=\xff", "a/b", ""])
    return "signed", made["path"], headers, body


def changed_body(chance: random.Random, made: dict[str, Any]) -> Made:
    """A signature of other bytes."""
    body = fresh_body(made["scheme"])
    headers = headers_for(made, body)
    at = chance.randrange(len(body))
    other = body[:at] + bytes([body[at] ^ (1 << chance.randrange(7))]) + body[at + 1 :]
    if made["scheme"] == "twilio":  # what is signed are the fields: so change what they say
        other = body + b"&" + chance.choice([b"x=1", b"Body=c", b"%ff=1", b"a" * 100])
    return "bad", made["path"], headers, other


def changed_header(chance: random.Random, made: dict[str, Any]) -> Made:
    """A signature, or a time, that was meddled with."""
    body = fresh_body(made["scheme"])
    headers = headers_for(made, body)
    names = [name for name in headers if any(word in name.lower() for word in ("signature", "timestamp", "webhook-id"))]
    name = chance.choice(names)
    value = headers[name]
    at = chance.randrange(len(value))
    digit = "0" if value[at] != "0" else "1"
    changed = value[:at] + digit + value[at + 1 :]
    headers[name] = chance.choice([_text(chance, 60), value[:at], changed, "x" * 4000, ""]).strip()
    if headers[name].lower() == value.lower():
        headers.pop(name)
    return "bad", made["path"], headers, body


def other_secret(chance: random.Random, made: dict[str, Any]) -> Made:
    """Well signed by a stranger, or for another integration."""
    body = fresh_body(made["scheme"])
    return "bad", made["path"], headers_for(made, body, secret=SECRET + chance.choice(["x", " ", SECRET])), body


def old(chance: random.Random, made: dict[str, Any]) -> Made:
    """Well signed long ago, or of times to come; of schemes without a time, by a stranger."""
    if made["scheme"] in ("github", "twilio"):
        return other_secret(chance, made)
    body = fresh_body(made["scheme"])
    off = chance.choice([-310, 310, -(10**6), 10**6, -int(time.time())])
    return "bad", made["path"], headers_for(made, body, stamp=int(time.time()) + off), body


def noise(chance: random.Random, made: dict[str, Any]) -> Made:
    """Any headers, any body, any path below."""
    headers = {name: _text(chance, 80).strip() for name in chance.sample(NAMES, chance.randrange(6))}
    tail = "".join(chance.choices(string.ascii_letters + "%.-_~;:@", k=chance.randrange(1, 30)))
    path = chance.choice([made["path"], f"/api/v1/integrations/webhook/{tail}", f"{made['path']}?{tail}"])
    return "bad", path, headers, chance.randbytes(chance.randrange(300))


KINDS: tuple[Callable[[random.Random, dict[str, Any]], Made], ...] = (
    good, garbage, garbage, changed_body, changed_body, changed_header, changed_header, other_secret, old, noise,
)  # fmt: skip


def _text(chance: random.Random, most: int) -> str:
    return "".join(chance.choices(TEXT, k=chance.randrange(most)))


def fuzz(server: BusServer, requests: int, *, seed: int, threads: int = 4) -> tuple[Counter[int], list[str]]:
    """Send so many requests. Returns what came by status, and every sentence about what was not as it has to be."""
    integrations = [integrate(server, scheme, "topic:fuzzed") for scheme in SCHEMES]
    workers = server.worker_pids()
    fuzzers = [Fuzzer(server, integrations, seed * 1000 + number) for number in range(threads)]
    running = [threading.Thread(target=fuzzer.run, args=(requests // threads,)) for fuzzer in fuzzers]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    came = sum((fuzzer.came for fuzzer in fuzzers), Counter())
    wrong = [problem for fuzzer in fuzzers for problem in fuzzer.wrong]
    total = call(server, "GET", "/api/status")["metrics"]["total_messages"]
    if total != sum(fuzzer.taken for fuzzer in fuzzers):
        wrong.append(f"The log has {total} messages, though {came[202]} were taken.")
    if "Traceback" in server.log:
        wrong.append("The server's log has a traceback.")
    if server.worker_pids() != workers:
        wrong.append("A worker died.")
    return came, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    began = time.monotonic()
    with BusServer(workers=given.workers) as server:
        came, wrong = fuzz(server, given.requests, seed=given.seed)
    spent = time.monotonic() - began
    print(
        f"{sum(came.values())} requests in {spent:.0f} s: " + ", ".join(f"{n} × {s}" for s, n in sorted(came.items()))
    )
    print("\n".join(wrong) or "Nothing was wrong.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
