"""A bus as a stranger sees it: an address, HTTP and WebSocket. Nothing here imports the product.

A `Remote` remembers the names it gave out and the messages it sent that somebody has to settle, so that `tidy` can leave
the bus as it was found.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlencode

import requests
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.closing import Closing

WAIT_SECONDS = 10.0
"""How long an answer, a message or a close may take."""

PREFIX = "conformance-"
"""How the names of the tests begin."""

QUIET_SECONDS = 0.3
"""How long nothing has to come before a test believes that nothing will."""

EPOCH, MESSAGE_ID = r"[0-9a-f]{12}", r"[A-Za-z0-9_-]+"
CURSOR = rf"{EPOCH}:\d+"
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00"

T = TypeVar("T")
Frame = dict[str, Any]


class Answer(NamedTuple):
    """What an HTTP request brought."""

    status: int
    body: Any
    headers: Mapping[str, str]


class Refused(NamedTuple):
    """A handshake that was refused."""

    status: int
    body: Any


def eventually(condition: Callable[[], T], within_seconds: float = WAIT_SECONDS) -> T:
    """Call `condition` until it returns something true, and return that. Raises AssertionError when the time is over."""
    deadline = time.monotonic() + within_seconds
    while not (outcome := condition()):
        assert time.monotonic() < deadline, f"After {within_seconds} s it still does not hold (last: {outcome!r})."
        time.sleep(0.02)
    return outcome


def is_foreign(message: Frame) -> bool:
    """True for what somebody else says to everybody: tests on a bus in use pass over it."""
    return message["to"] == "all" and not message["from"].startswith(PREFIX)


class Socket(Closing):
    """One WebSocket of one client. `hello` is its first frame; frames that were not asked for yet wait in order.

    `taken` remembers what it got that needs an ack: (id, attempt).
    """

    def __init__(self, connection: ClientConnection, client: str) -> None:
        self.connection = connection
        self.client = client
        self.taken: list[tuple[str, int]] = []
        self._waiting: list[Frame] = []
        self._refs = itertools.count(1)
        self.hello = self.read()

    def send(self, type_: str, **members: object) -> None:
        """Send a frame."""
        self.connection.send(json.dumps({"type": type_, **members}))

    def ask(self, type_: str, **members: object) -> Frame:
        """Send a frame with a ref, and return its answer."""
        ref = next(self._refs)
        self.send(type_, ref=ref, **members)
        return self.expect(lambda frame: frame.get("ref") == ref)

    def read(self, within_seconds: float = WAIT_SECONDS) -> Frame:
        """The next frame. Raises TimeoutError."""
        if self._waiting:
            return self._waiting.pop(0)
        return self._receive(within_seconds)

    def expect(self, wanted: str | Callable[[Frame], bool], within_seconds: float = WAIT_SECONDS) -> Frame:
        """The next frame of a type, or the next that is wanted; others are kept. Raises TimeoutError."""
        fits = (lambda frame: frame["type"] == wanted) if isinstance(wanted, str) else wanted
        for frame in self._waiting:
            if fits(frame):
                self._waiting.remove(frame)
                return frame
        deadline = time.monotonic() + within_seconds
        while True:
            frame = self._receive(max(deadline - time.monotonic(), 0.0))
            if fits(frame):
                return frame
            self._waiting.append(frame)

    def message(self, within_seconds: float = WAIT_SECONDS) -> Frame:
        """The next message."""
        found: Frame = self.expect("message", within_seconds)["message"]
        return found

    def messages(self, count: int) -> list[Frame]:
        """The next messages, so many."""
        return [self.message() for _ in range(count)]

    def is_quiet(self, seconds: float = QUIET_SECONDS) -> bool:
        """True when no message comes for so long."""
        with contextlib.suppress(TimeoutError):
            self._waiting.insert(0, self.expect("message", seconds))
            return False
        return True

    def settle(self, verb: str, message: Frame, **said: object) -> Frame:
        """Say ack, nack, progress, release or reject of a message; the answer."""
        return self.ask(verb, message_id=message["id"], **said)

    def close(self) -> None:
        """Say goodbye."""
        self.connection.close()

    def cut(self) -> None:
        """Leave without a word, as a crash does."""
        self.connection.socket.shutdown(socket.SHUT_RDWR)

    def send_bytes(self, data: bytes) -> None:
        """Put these bytes on the wire, as they are."""
        self.connection.socket.sendall(data)

    def close_code(self) -> int:
        """The code with which the server closes, once all that went before is read; 1006 when it says none."""
        with contextlib.suppress(ConnectionClosed):
            while True:
                self._receive(WAIT_SECONDS)
        return int(self.connection.close_code or 1006)

    def _receive(self, within_seconds: float) -> Frame:
        deadline = time.monotonic() + within_seconds
        while True:
            frame = json.loads(self.connection.recv(timeout=max(deadline - time.monotonic(), 0.0)))
            assert isinstance(frame, dict), frame
            if frame["type"] != "message":
                return frame
            if frame["message"]["requires_ack"]:
                self.taken.append((frame["message"]["id"], frame["message"].get("attempt", 1)))
            if not is_foreign(frame["message"]):
                return frame


class Remote:
    """A bus at an address, asked for anew each time, since a bus may have several.

    `is_ours`: nobody else uses it, so tests may speak to everybody. `start`: the cursor from which on what the tests do
    stands in the log.
    """

    def __init__(self, address: Callable[[], str], key: str = "", *, is_ours: bool = False) -> None:
        self._address = address
        self.key = key
        self.is_ours = is_ours
        self._prefix = f"{PREFIX}{secrets.token_hex(5)}"
        self._numbers = itertools.count(1)
        self._names: list[str] = []
        self._queues: list[str] = []
        self._owed: list[tuple[str, str, int | None]] = []  # (message, who may settle it, attempt)
        self._sockets: list[Socket] = []
        self._open = contextlib.ExitStack()
        self._local = threading.local()
        self.start = self.get("/api/messages", to=self._prefix, since="latest").body["cursor"]

    # ---- what is there

    @property
    def url(self) -> str:
        """Where the next request or connection goes."""
        return self._address().rstrip("/")

    @property
    def asks_for_a_key(self) -> bool:
        """True when the bus answers only to who shows a key."""
        return requests.get(f"{self.url}/api/status", timeout=WAIT_SECONDS).status_code == 401

    @property
    def may_administer(self) -> bool:
        """True when the key has the right to administer, or none is needed."""
        return self.get("/api/dead-letters", limit=0).status == 200

    # ---- names

    def name(self, what: str = "client") -> str:
        """A name that nobody else has."""
        self._names.append(f"{self._prefix}-{what}-{next(self._numbers)}")
        return self._names[-1]

    def queue(self) -> str:
        """The name of a queue that nobody else uses."""
        self._queues.append(f"{self._prefix}-queue-{next(self._numbers)}")
        return self._queues[-1]

    # ---- HTTP

    def call(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None, **query: object
    ) -> Answer:
        """One request; `body` is sent as JSON, bytes as they are."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        sent = {"X-API-Key": self.key, **({"Content-Type": "application/json"} if data is not None else {})}
        response = self._session().request(
            method,
            self.url + path,
            params={field.rstrip("_"): str(value) for field, value in query.items()},
            data=data,
            headers={name: value for name, value in {**sent, **(headers or {})}.items() if value},
            timeout=WAIT_SECONDS + 50,
            allow_redirects=False,
        )
        is_json = response.headers.get("Content-Type", "").startswith("application/json")
        return Answer(response.status_code, response.json() if is_json else response.text, response.headers)

    def get(self, path: str, **query: object) -> Answer:
        return self.call("GET", path, **query)

    def post(self, path: str, body: object = None, **query: object) -> Answer:
        return self.call("POST", path, {} if body is None else body, **query)

    def send(self, from_: str, to: str | list[str], payload: object = None, **members: object) -> Frame:
        """Send a message, which has to succeed; the receipt."""
        answer = self.post("/api/send", {"from": from_, "to": to, "payload": payload, **members})
        assert answer.status == 200, answer
        if members.get("require_ack"):
            names = [to] if isinstance(to, str) else to
            self._owed += [(answer.body["message_id"], name, None) for name in names]
        receipt: Frame = answer.body
        return receipt

    def read(self, name: str, **query: object) -> Frame:
        """A page of an inbox, without what is said to everybody: by others, or by a test that ran before."""
        answer = self.get("/api/messages", to=name, **query)
        assert answer.status == 200, answer
        page: Frame = answer.body
        assert page["count"] == len(page["messages"])
        page["messages"] = [message for message in page["messages"] if message["to"] != "all"]
        page["count"] = len(page["messages"])
        return page

    def state(self, message_id: str) -> dict[str, Frame]:
        """How a message stands with each recipient."""
        answer = self.get(f"/api/messages/{message_id}")
        assert answer.status == 200, answer
        return {standing["client"]: standing for standing in answer.body["recipients"]}

    def settle(self, verb: str, message_id: str, client: str, **said: object) -> Frame:
        """Say what becomes of a message, which has to be taken; the answer."""
        answer = self.post(f"/api/messages/{message_id}/{verb}", {"client": client, **said})
        assert answer.status == 200, answer
        settled: Frame = answer.body
        return settled

    def claim(self, queue: str, client: str, **said: object) -> list[Frame]:
        """Take items of a queue."""
        answer = self.post(f"/api/queues/{queue}/claim", {"client": client, **said})
        assert answer.status == 200, answer
        items: list[Frame] = answer.body["messages"]
        self._owed += [(item["id"], client, item.get("attempt", 1)) for item in items]
        return items

    # ---- WebSocket

    def connect(self, client: str, **query: object) -> Socket:
        """A connection of this client. Raises InvalidStatus when the handshake is refused."""
        socket = Socket(self.open(client, **query), client)
        self._sockets.append(socket)
        return socket

    def open(self, client: str, headers: Mapping[str, str] | None = None, **query: object) -> ClientConnection:
        """As `connect`, with nothing read. It is closed at the latest with `tidy`."""
        url = f"{self.url.replace('http', 'ws', 1)}/ws/{client}" + (f"?{urlencode(query)}" if query else "")
        sent = {"X-API-Key": self.key, **(headers or {})}
        opening = connect(
            url,
            additional_headers={name: value for name, value in sent.items() if value},
            open_timeout=WAIT_SECONDS,
            close_timeout=WAIT_SECONDS,
            max_size=None,
            proxy=None,
        )
        return self._open.enter_context(opening)

    def refusal(self, client: str, headers: Mapping[str, str] | None = None, **query: object) -> Refused:
        """The answer to a handshake that has to be refused."""
        try:
            self.open(client, headers, **query).close()
        except InvalidStatus as refused:
            return Refused(refused.response.status_code, json.loads(refused.response.body or b"null"))
        raise AssertionError("The server agreed to the upgrade.")

    # ---- tidiness

    def tidy(self) -> None:
        """Close what was left open, settle what nobody settled, and purge the dead letters of this remote's names."""
        for one in self._sockets:
            self._owed += [(message_id, one.client, attempt) for message_id, attempt in one.taken]
        self._settle_owed()
        self._open.close()
        for queue in self._queues:
            self._empty(queue)
        if self.may_administer:
            for owner in [*self._names, *(f"queue:{queue}" for queue in self._queues)]:
                self.call("DELETE", "/api/dead-letters", owner=owner)
        self._names, self._queues, self._sockets = [], [], []

    def _settle_owed(self) -> None:
        owed, self._owed = self._owed, []
        for message_id, client, attempt in owed:
            self.post(f"/api/messages/{message_id}/ack", {"client": client, "attempt": attempt})

    def _empty(self, queue: str) -> None:
        """Take and ack what is left in a queue: what a closed connection held comes back in a moment."""
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline:
            found = self.get(f"/api/queues/{queue}").body
            if not found["depth"] + found["in_flight"]:
                return
            self.claim(queue, self._prefix, limit=100, wait=0.1)
            self._settle_owed()

    def _session(self) -> requests.Session:
        """One a thread: a session is not for several."""
        if not hasattr(self._local, "session"):
            self._local.session = requests.Session()
            self._local.session.trust_env = False
        session: requests.Session = self._local.session
        return session
