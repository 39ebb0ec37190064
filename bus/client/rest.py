"""The bus over REST, with the standard library: addresses, one request, errors as the bus's own.

The command line reads and sends with it; the client settles sends with it while its socket waits for the application.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from bus import __version__
from bus.client.errors import Offline, refusal
from bus.client.received import Fate, Receipt
from bus.errors import BusError, Malformed

USER_AGENT = f"multi-agent-bridge/{__version__} (python)"
T = TypeVar("T")

ANSWER_SECONDS = 10.0
"""How long an answer may take beyond the time for which the bus was asked to wait."""


class Address(msgspec.Struct, frozen=True):
    """Where a bus is. Build it with `address_of`."""

    base: str
    """`http://host:port/prefix`, without a slash at the end."""

    @property
    def is_loopback(self) -> bool:
        """True for this machine, which is never reached through a proxy; `127.example.com` is another one."""
        host = urllib.parse.urlsplit(self.base).hostname or ""
        if host == "localhost":
            return True
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False

    def websocket(self, client_id: str, since: str | None, topics: Sequence[str] = ()) -> str:
        """The URL of the client's WebSocket."""
        given = {name: value for name, value in (("since", since), ("topics", ",".join(topics))) if value}
        query = f"?{urllib.parse.urlencode(given, safe='*,')}" if given else ""
        return f"ws{self.base[4:]}/ws/{urllib.parse.quote(client_id, safe='@:')}{query}"

    def http(self, path: str, query: Mapping[str, object]) -> str:
        """The URL of a REST call; parameters that are None are left out."""
        given = {name: value for name, value in query.items() if value is not None}
        return f"{self.base}{path}{'?' + urllib.parse.urlencode(given) if given else ''}"


def address_of(url: str) -> Address:
    """Read `http://`, `https://`, `ws://` or `wss://` plus host, port and an optional prefix. Raises Malformed."""
    try:
        parts = urllib.parse.urlsplit(url)
        sane = bool(parts.hostname) and (parts.port is None or parts.port > 0) and not (parts.query or parts.fragment)
    except ValueError:
        sane = False
    if not sane or parts.scheme not in ("http", "https", "ws", "wss"):
        raise Malformed(f"{url!r} is not the URL of a bus; give one like http://127.0.0.1:5001.", field="url")
    scheme = {"ws": "http", "wss": "https"}.get(parts.scheme, parts.scheme)
    return Address(f"{scheme}://{parts.netloc}{parts.path.rstrip('/')}")


class Rest:
    """Calls of one bus with one credential. Thread-safe: it holds nothing that changes."""

    def __init__(self, url: str, *, api_key: str | None = None, timeout_seconds: float = 30.0) -> None:
        """`timeout_seconds` bounds each wait for the network. Raises Malformed for a bad URL, or what can be no key."""
        self.address = address_of(url)
        self._timeout_seconds = timeout_seconds
        self._headers = {"User-Agent": USER_AGENT, "Accept": "application/json"}
        if api_key:
            if not (api_key.isascii() and api_key.isprintable()):
                raise Malformed(
                    "The API key holds a character that no key has, such as `…` or a line break; copy it anew.",
                    field="api_key",
                )
            self._headers["X-API-Key"] = api_key
        proxies = urllib.request.ProxyHandler({} if self.address.is_loopback else None)
        self._open = urllib.request.build_opener(proxies, _NoRedirect).open

    def get(self, path: str, query: Mapping[str, object], into: type[T], *, wait: float = 0.0) -> T:
        """GET `path`; returns the answer as an `into`. Raises Offline, or the BusError that the server answered with.

        `wait`: for how many seconds the bus was asked to wait before it answers.
        """
        return self._call("GET", path, query, None, into, wait)

    def post(self, path: str, body: object, into: type[T], *, wait: float = 0.0) -> T:
        """POST `body` as JSON; returns the answer as an `into`. `wait` and what it raises are as of `get`."""
        return self._call("POST", path, {}, body, into, wait)

    def delete(self, path: str, query: Mapping[str, object], into: type[T]) -> T:
        """DELETE `path`; returns the answer as an `into`. Raises as `get` does."""
        return self._call("DELETE", path, query, None, into, 0.0)

    def look(self, path: str) -> tuple[int, bytes]:
        """GET `path`; returns the status and the body, whatever the status is. Raises Offline."""
        request = urllib.request.Request(self.address.http(path, {}), headers=self._headers)
        try:
            with self._open(request, timeout=self._timeout_seconds) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()
        except (OSError, http.client.HTTPException) as error:
            raise Offline(f"The bus at {self.address.base} can't be reached: {reason_of(error)}.") from error

    def lines(self, path: str, query: Mapping[str, object]) -> Iterator[bytes]:
        """GET `path`, and take its answer line by line as it comes. Raises as `get` does, also half-way."""
        request = urllib.request.Request(self.address.http(path, query), headers=self._headers)
        try:
            with self._open(request, timeout=self._timeout_seconds) as answer:
                yield from answer
        except urllib.error.HTTPError as error:
            with error:
                raise _refusal_in(error) from None
        except (OSError, http.client.HTTPException) as error:
            raise Offline(f"The bus at {self.address.base} can't be reached: {reason_of(error)}.") from error

    def send_batch(self, bodies: Sequence[Mapping[str, object]]) -> list[Receipt | BusError]:
        """Send up to 1,000 messages in one commit; returns a receipt or a refusal for each. Raises as `get` does."""
        answer = self.post("/api/send/batch", {"messages": bodies}, _BatchAnswer)
        if len(answer.results) != len(bodies):
            raise Offline(f"The bus answered {len(answer.results)} of {len(bodies)} messages of a batch.")
        return [result.outcome() for result in answer.results]

    def _call(self, method: str, path: str, query: Mapping[str, object], body: object, into: type[T], wait: float) -> T:
        url, headers, data = self.address.http(path, query), self._headers, None
        if body is not None:
            headers, data = {**headers, "Content-Type": "application/json"}, msgspec.json.encode(body)
        request = urllib.request.Request(url, data=data, headers=headers, method=method)
        timeout = max(self._timeout_seconds, wait + ANSWER_SECONDS)
        try:
            with self._open(request, timeout=timeout) as answer:
                return msgspec.json.decode(answer.read(), type=into)
        except urllib.error.HTTPError as error:
            with error:
                raise _refusal_in(error) from None
        except (OSError, http.client.HTTPException) as error:
            raise Offline(f"The bus at {self.address.base} can't be reached: {reason_of(error)}.") from error
        except msgspec.DecodeError as error:
            raise Offline(f"What answers at {self.address.base} is not a bus: {error}.") from error


def segment(name: str) -> str:
    """A name or an id as one segment of a path."""
    return urllib.parse.quote(name, safe="@:")


class _Result(msgspec.Struct):
    """An item of a batch's answer: a receipt, or an error."""

    message_id: str | None = None
    seq: int | None = None
    recipients: tuple[Fate, ...] = ()
    duplicate: bool = False
    deliver_at: str | None = None
    error: str | None = None
    code: str = "internal"
    field: str | None = None

    def outcome(self) -> Receipt | BusError:
        if self.error is not None:
            return refusal(self.code, self.error, field=self.field)
        return Receipt(self.message_id, self.seq, self.recipients, self.duplicate, self.deliver_at)


class _BatchAnswer(msgspec.Struct):
    results: list[_Result]


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A bus does not redirect; following would carry the key to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


class _Refused(msgspec.Struct):
    error: str
    code: str = "internal"
    field: str | None = None


def _refusal_in(error: urllib.error.HTTPError) -> BusError:
    try:
        body = msgspec.json.decode(error.read(), type=_Refused)
    except (msgspec.DecodeError, OSError, http.client.HTTPException):
        body = _Refused(f"The server answered {error.code} {error.reason}.", code=f"http_{error.code}")
    wait = seconds_of(error.headers.get("Retry-After"))
    return refusal(body.code, body.error, status=error.code, field=body.field, retry_after_seconds=wait)


def seconds_of(retry_after: str | None) -> float | None:
    """A `Retry-After` header in seconds; None when there is none (the bus does not use the form with a date)."""
    return float(retry_after) if retry_after and retry_after.isascii() and retry_after.isdigit() else None


def reason_of(error: BaseException) -> str:
    """A failure of the network in a few words, without a full stop."""
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, OSError):
        return reason_of(error.reason)
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there (connection refused)"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, socket.gaierror):
        return "its host name is not known"
    return (str(error) or type(error).__name__).rstrip(".")
