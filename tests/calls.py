"""REST calls as a test makes them: each must succeed, and its body is what comes back."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from bus.testing import BusServer


def call(server: BusServer, method: str, path: str, body: object = None, **query: object) -> Any:
    """One call, and the body of its answer; `query` is put behind the path."""
    answer = server.call(method, path + (f"?{urlencode(query)}" if query else ""), body, timeout_seconds=60)
    assert answer.status in (200, 202), answer
    return answer.body


def send(server: BusServer, to: object, payload: object = None, *, sender: str = "giver", **more: object) -> Any:
    """Send a message; the receipt."""
    return call(server, "POST", "/api/send", {"from": sender, "to": to, "payload": payload, **more})


def send_all(server: BusServer, messages: list[dict[str, Any]], *, sender: str = "giver") -> list[str]:
    """Send many messages in batches; their ids, in order."""
    ids = []
    for start in range(0, len(messages), 1000):
        batch = [{"from": sender, **message} for message in messages[start : start + 1000]]
        ids += [
            result["message_id"] for result in call(server, "POST", "/api/send/batch", {"messages": batch})["results"]
        ]
    return ids


def inbox(server: BusServer, name: str, **query: object) -> Any:
    """A page of somebody's inbox."""
    return call(server, "GET", "/api/messages", to=name, **query)


def settle(server: BusServer, verb: str, message: dict[str, Any] | str, client: str, **said: object) -> Any:
    """Say ack, nack, progress, release or reject of a message, given by itself or by its id."""
    message_id = message if isinstance(message, str) else message["id"]
    return call(server, "POST", f"/api/messages/{message_id}/{verb}", {"client": client, **said})


HISTORY = ("by", "since", "until", "settled_at", "attempts")
"""What `/api/messages/<id>` says of a recipient beside how the message stands with it."""


def claim(server: BusServer, queue: str, client: str, **how: object) -> list[dict[str, Any]]:
    """Take items of a queue."""
    return call(server, "POST", f"/api/queues/{queue}/claim", {"client": client, **how})["messages"]  # type: ignore[no-any-return]


def standing(server: BusServer, message_id: str, client: str | None = None) -> Any:
    """How a message stands with a recipient, or with its only one; not who had it, and when."""
    recipients = call(server, "GET", f"/api/messages/{message_id}")["recipients"]
    (found,) = [recipient for recipient in recipients if client in (None, recipient["client"])]
    return {name: value for name, value in found.items() if name not in HISTORY}


def state(server: BusServer, message_id: str, client: str | None = None) -> str:
    """The state of `standing`."""
    return str(standing(server, message_id, client)["state"])


def dead_letters(server: BusServer, **query: object) -> list[dict[str, Any]]:
    """Dead letters, those of one page."""
    return call(server, "GET", "/api/dead-letters", **query)["dead_letters"]  # type: ignore[no-any-return]


def pending_acks(server: BusServer) -> int:
    """How many deliveries the status says are not settled."""
    return int(call(server, "GET", "/api/status")["pending_acks"])


def payloads(messages: list[dict[str, Any]]) -> list[Any]:
    """The payloads of messages."""
    return [message["payload"] for message in messages]
