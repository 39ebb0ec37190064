"""Outgoing webhooks: what happens is told to receivers of HTTP, signed, in time, whatever the receiver does.

`WebhookManager` works alone, on threads: then what is owed waits in memory, and ends with the process. Registered on a
bus, it speaks through it: what is owed is committed with the message that it is about.

    manager = WebhookManager()
    manager.register(WebhookEndpoint("https://example.com/hook", {WebhookEvent.MESSAGE_FAILED}, secret="whsec_…"))
    manager.start_worker()
    manager.trigger(WebhookEvent.MESSAGE_FAILED, {"id": "msg-1"})

Receivers on loopback and in private networks are refused unless WEBHOOK_ALLOWED_TARGETS names them. The URLs of Slack and
Discord are recognised, and get messages for people. Run this file to see it work.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_network
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from flask import Flask, has_request_context, request

from bus.message import iso, now_us
from bus.outbound import Guard, Outbound
from bus.settings import Settings, load
from bus.transports.webhooks import serve_webhooks
from bus.webhooks import discord, signing, slack
from bus.webhooks.chat import Note
from bus.webhooks.engine import Webhooks
from bus.webhooks.local import Local
from bus.webhooks.outlet import Failure, Outlet, Receiver, compose, kind_of, request_headers
from bus.webhooks.policy import Kind, judge
from bus.webhooks.registered import Registered
from bus.webhooks.upkeep import workers

if TYPE_CHECKING:
    from bus.bus import Bus

log = logging.getLogger("webhooks")

STOP_SECONDS = 5.0
"""How long a stop waits for what is on its way."""

CHAT_TIMEOUT_SECONDS = 10.0


class WebhookEvent(StrEnum):
    """What the bus tells of. Everywhere a name may stand as text, too; other names are your own."""

    MESSAGE_SENT = "message.sent"
    MESSAGE_RECEIVED = "message.received"
    MESSAGE_FAILED = "message.failed"
    CLIENT_CONNECTED = "client.connected"
    CLIENT_DISCONNECTED = "client.disconnected"
    ERROR_OCCURRED = "error.occurred"
    RATE_LIMIT_HIT = "rate_limit.hit"
    SYSTEM_STARTED = "system.started"
    SYSTEM_STOPPED = "system.stopped"


@dataclass
class WebhookEndpoint:
    """Who is told of which events.

    `events`: names, `message.*`, or `*`. `secret` signs (bus.webhooks.signing says how); None: WEBHOOK_SECRET does, if it is
    set. `headers` are sent along. `enabled=False` gets nothing. `max_retries` counts the attempts behind the first, each
    later than the one before: 5 s, 5 min, 30 min, 2 h … `timeout`: seconds for one attempt, all in all, 1 to 30. `kind`:
    http, slack or discord; None goes by the URL.
    """

    url: str
    events: Collection[str]
    secret: str | None = field(default=None, repr=False)
    headers: Mapping[str, str] | None = field(default=None, repr=False)
    enabled: bool = True
    max_retries: int = 3
    timeout: float = 10
    kind: Kind | None = None


class WebhookManager:
    """Endpoints, and what is told to them.

    Thread-safe; `trigger` never waits for anybody. An event that finds `max_queue_size` deliveries waiting for an endpoint
    is a failure of that endpoint at once, and counted. Errors are those of bus.errors: Malformed for what can't be
    meant, ForbiddenTarget for a URL that may not be called, TooLarge for a body beyond 256 KB.
    """

    def __init__(self, max_queue_size: int = 1000, *, outbound: Outbound | None = None) -> None:
        """`outbound` calls the receivers; None: one that obeys the settings WEBHOOK_…. These are read at the first use."""
        if max_queue_size < 1:
            raise ValueError("max_queue_size must be at least 1")
        self._outlet: Outlet = Local(
            max_queue_size, default_outbound if outbound is None else lambda: outbound, default_secret
        )

    def deliver_through(self, outlet: Outlet) -> None:
        """Have another outlet deliver from now on."""
        self._outlet = outlet

    def register(self, endpoint: WebhookEndpoint) -> str:
        """Tell this endpoint of its events from now on; its id. One with the same URL is replaced, and keeps its id."""
        return self._outlet.add(_receiver(endpoint))

    def unregister(self, url: str) -> bool:
        """Tell it nothing more; what it was still owed is among the failed. False: there was none."""
        return self._outlet.remove(url)

    def trigger(self, event: str, payload: Any) -> None:
        """Tell an event to every endpoint that wants it. `payload` is what JSON can hold; it is written at once."""
        self._outlet.trigger(str(event), payload)

    def start_worker(self) -> None:
        """Begin to send; what was triggered before goes first. A second call does nothing."""
        self._outlet.start()

    def stop_worker(self) -> None:
        """Send no more, until `start_worker`. What is on its way is waited for, for some seconds."""
        self._outlet.stop(STOP_SECONDS)

    def verify_signature(self, payload: Any, signature: Any, secret: Any) -> bool:
        """Whether the `X-Webhook-Signature` of what came is right. In constant time; garbage is wrong, never an exception.

        `payload`: the raw body as bytes or text. Parsed, `request.json` of the Flask request at hand is as good as that;
        anything else parsed is checked by its text as this bus, or version 1.2, would write it.
        """
        if has_request_context() and payload is request.get_json(silent=True):
            payload = request.get_data()
        return signing.verify_signature(payload, signature, secret)

    def get_stats(self) -> dict[str, Any]:
        """Totals since the start, and what waits. `success_rate` is of the deliveries that came to an end."""
        return self._outlet.stats()

    def get_failed_webhooks(self, limit: int = 50) -> list[dict[str, Any]]:
        """The latest deliveries that were given up, the oldest first."""
        return [_shown(failure) for failure in self._outlet.failures(limit)]

    def retry_failed(self, url: str, delivery_id: str | None = None) -> int:
        """Try again what failed at an endpoint, or one of it; how many. Those of an endpoint that is gone stay listed."""
        return self._outlet.retry(url, delivery_id)


class SlackWebhook:
    """Messages to a channel of Slack."""

    @staticmethod
    def format_message(event: str, data: Any) -> dict[str, Any]:
        """The message as Slack takes it, within its limits whatever the data is. Raises Malformed for what has no form."""
        return slack.message(Note(str(event), data, now_us()))

    @staticmethod
    def send(webhook_url: str, event: str, data: Any) -> bool:
        """Send it now, once. False: Slack did not take it, and the log says why."""
        return _send("slack", webhook_url, event, data)


class DiscordWebhook:
    """Messages to a channel of Discord."""

    @staticmethod
    def format_message(event: str, data: Any) -> dict[str, Any]:
        """The message as Discord takes it, within its limits whatever the data is. Raises Malformed for what has no form."""
        return discord.message(Note(str(event), data, now_us()))

    @staticmethod
    def send(webhook_url: str, event: str, data: Any) -> bool:
        """Send it now, once. False: Discord did not take it, and the log says why."""
        return _send("discord", webhook_url, event, data)


def default_outbound() -> Outbound:
    """What calls receivers by the settings WEBHOOK_ALLOWED_TARGETS, WEBHOOK_ALLOWED_PORTS and WEBHOOK_HTTPS_ONLY."""
    return outbound_of(load(), now_us)


def default_secret() -> str | None:
    """What signs for endpoints without a secret of their own: the setting WEBHOOK_SECRET."""
    return load().webhook_secret


def outbound_of(settings: Settings, clock_us: Callable[[], int]) -> Outbound:
    """The one that these settings allow. `clock_us` tells when a call began."""
    guard = Guard(settings.targets(), https_only=settings.webhook_https_only, extra_ports=settings.target_ports())
    return Outbound(guard, now_us=clock_us)


# ---- below


def _receiver(endpoint: WebhookEndpoint) -> Receiver:
    events: Iterable[str] = [endpoint.events] if isinstance(endpoint.events, str) else endpoint.events
    return Receiver(
        url=endpoint.url,
        events=tuple(sorted({str(event) for event in events})),
        secret=endpoint.secret,
        headers=dict(endpoint.headers or {}),
        enabled=endpoint.enabled,
        max_retries=endpoint.max_retries,
        timeout_seconds=endpoint.timeout,
        kind=endpoint.kind or kind_of(endpoint.url),
    )


def _shown(failure: Failure) -> dict[str, Any]:
    return {
        "id": failure.id,
        "event_id": failure.event_id,
        "url": failure.url,
        "event": failure.event,
        "payload": json.loads(failure.data),
        "error": failure.error,
        "status": failure.status,
        "attempts": failure.attempts,
        "response": failure.excerpt.decode("utf-8", "replace"),
        "timestamp": iso(failure.failed_us).decode(),
    }


def _send(kind: Kind, url: str, event: str, data: Any) -> bool:
    target, text = compose(kind, url, [Note(str(event), data, now_us())])
    headers = request_headers({}, {})
    answer = default_outbound().request(
        "POST", target, headers=headers, body=text, timeout_seconds=CHAT_TIMEOUT_SECONDS
    )
    verdict = judge(answer, kind, time.time())
    if not verdict.ok:
        log.warning(
            "%s did not take a message: %s (status %s). %s",
            kind.capitalize(),
            verdict.name,
            answer.status,
            answer.detail,
            extra={"action": "chat_message"},
        )
    return verdict.ok


# ---- the example


class _Sink(BaseHTTPRequestHandler):
    """A receiver: checks the signature, and hands over what came."""

    came: SimpleQueue[tuple[str, str]]
    shared = "secret123"

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        good = signing.verify_signature(raw, self.headers["X-Webhook-Signature"], self.shared)
        self.came.put((raw.decode(), "right" if good else "none, or wrong"))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the example prints what matters."""


def example() -> None:
    """Two endpoints on a receiver of this machine, two events, a signature, a message for Slack."""
    _Sink.came = SimpleQueue()
    sink = ThreadingHTTPServer(("127.0.0.1", 0), _Sink)
    threading.Thread(target=sink.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{sink.server_port}"
    manager = WebhookManager(outbound=Outbound(Guard([ip_network("127.0.0.0/8")])))
    messages = {WebhookEvent.MESSAGE_SENT, WebhookEvent.MESSAGE_RECEIVED}
    manager.register(WebhookEndpoint(f"{url}/messages", messages, secret=_Sink.shared))
    manager.register(
        WebhookEndpoint(f"{url}/errors", {WebhookEvent.ERROR_OCCURRED}, headers={"Authorization": "token"})
    )
    manager.start_worker()
    manager.trigger(WebhookEvent.MESSAGE_SENT, {"from": "code", "to": "browser", "payload": {"text": "שלום"}})
    manager.trigger(WebhookEvent.ERROR_OCCURRED, {"error": "Connection timeout"})
    for _ in range(2):
        body, signature = _Sink.came.get(timeout=10)
        print(f"received {body}\n  signature: {signature}")
    manager.stop_worker()
    sink.shutdown()
    sink.server_close()
    for name, value in manager.get_stats().items():
        print(f"{name}: {value}")
    print(
        json.dumps(SlackWebhook.format_message(WebhookEvent.MESSAGE_SENT, {"from": "code", "to": "browser"}), indent=2)
    )


def register(app: Flask, bus: Bus) -> None:
    """Deliver through the bus, and serve the endpoints and their log over REST."""
    outbound = outbound_of(bus.settings, bus.clock.now_us)
    engine = Webhooks(bus, outbound)
    engine.attach()
    bus.add_worker(engine)
    for worker in workers(engine):
        bus.add_worker(worker)
    serve_webhooks(app, bus, engine)
    manager = WebhookManager(outbound=outbound)
    manager.deliver_through(Registered(engine))
    app.extensions["webhooks"] = manager


if __name__ == "__main__":
    example()
