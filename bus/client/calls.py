"""What an agent does in its own name over REST, without a connection: claim jobs, work on them, ask and wait.

REST opens no inbox, so nothing of what waits for the name is taken.
"""

from __future__ import annotations

import secrets
import time
from typing import Any, Unpack

from bus.client.errors import Offline
from bus.client.handlers import Handler
from bus.client.operations import Operations
from bus.client.outbox import SendOptions, fields_of
from bus.client.received import Message, Verb, message_of
from bus.client.reconnection import Backoff, Ending
from bus.client.reports import Claimed, Reply, ReplyBody, Settled
from bus.client.rest import Rest, segment
from bus.client.worker import Worker
from bus.errors import BusError, Unavailable
from bus.message import Names


class Calls(Operations):
    """The bus over REST, in the name of a client. Thread-safe; it holds nothing open."""

    def __init__(self, client_id: str, url: str = "http://127.0.0.1:5001", *, api_key: str | None = None) -> None:
        """Raises Malformed for a name or URL that can't be one."""
        super().__init__(Rest(url, api_key=api_key))
        self.client_id = Names().check_client(client_id, "client_id")

    # ---- jobs

    def claim(self, queue: str, *, limit: int = 1, wait: float = 0.0, ack_wait: float | None = None) -> list[Message]:
        """Take up to `limit` (100) jobs of a queue, and wait up to `wait` seconds (50) for the first.

        Each has a lease of `ack_wait` seconds (None: what its sender chose, 30 by default): until it is acked, nacked,
        released or rejected, or the lease has run out, nobody else gets it.
        """
        body: dict[str, object] = {"client": self.client_id, "limit": limit, "wait": wait}
        if ack_wait is not None:
            body["ack_wait"] = ack_wait
        answer = self._rest.post(f"/api/queues/{segment(queue)}/claim", body, Claimed, wait=wait)
        messages = [message_of(bytes(raw)) for raw in answer.messages]
        for message in messages:
            message.bind(_OverRest(self._rest, self.client_id))
        return messages

    def worker(
        self, queue: str, handler: Handler, *, max_in_flight: int = 1, ack_wait: float = 30.0, count: int | None = None
    ) -> Worker:
        """A `Worker` for a queue, to be `run`, and stopped from another thread; arguments as for `work`."""

        def claim(limit: int, wait: float) -> list[Message]:
            return self.claim(queue, limit=limit, wait=wait, ack_wait=ack_wait)

        return Worker(claim, handler, max_in_flight=max_in_flight, ack_wait=ack_wait, count=count)

    def work(
        self, queue: str, handler: Handler, *, max_in_flight: int = 1, ack_wait: float = 30.0, count: int | None = None
    ) -> int:
        """Take jobs of a queue and call `handler(message)` for each, until `count` were taken (None: for ever).

        When the handler returns the job is acked, when it raises it is nacked; what it settled itself stays so. Up to
        `max_in_flight` run at once, each on a thread of its own. A job whose handler runs longer than half of
        `ack_wait` seconds has its lease extended, as often as that takes; a worker that dies gives its jobs back when
        their leases have run out. Goes on through restarts of the bus. Returns how many handlers have ended.
        """
        return self.worker(queue, handler, max_in_flight=max_in_flight, ack_wait=ack_wait, count=count).run()

    # ---- requests

    def request(
        self,
        to: str | list[str],
        payload: Any,
        *,
        wait: float = 25.0,
        require_online: bool = False,
        **options: Unpack[SendOptions],
    ) -> Reply:
        """Send a request, and wait up to `wait` seconds (50) for who was asked to reply.

        It is stored like any send, and so are its replies: when the time is over, `Reply.status` is `pending` (or
        `partial`), and `fetch_reply` may have the rest later. With `require_online`, nothing is stored when nobody
        who was asked is connected; that raises the code `recipient_offline`.

        A bus that goes away is asked again, with the same idempotency key, until the time is over. Raises Offline,
        and what the bus refused.
        """
        fields = fields_of(options)
        fields.setdefault("idempotency_key", secrets.token_hex(12))
        fields.setdefault("correlation_id", secrets.token_hex(12))
        body = {"from": self.client_id, "to": to, "payload": payload, **fields, "require_online": require_online}
        deadline, backoff = time.monotonic() + wait, Backoff()
        while True:
            remaining = max(0.0, deadline - time.monotonic())
            try:
                return self._rest.post("/api/request", {**body, "wait": remaining}, ReplyBody, wait=remaining).read()
            except BusError as error:
                if not _may_pass(error) or time.monotonic() >= deadline:
                    raise
                pause = backoff.pause(Ending(reason=error.sentence, after_seconds=error.retry_after_seconds))
            time.sleep(min(pause, max(0.0, deadline - time.monotonic())))

    def fetch_reply(self, request_id: str, *, wait: float = 0.0) -> Reply:
        """What came of a request so far; waits up to `wait` seconds (50) for what is missing. Raises NotFound."""
        return self._rest.get(f"/api/requests/{segment(request_id)}", {"wait": wait}, ReplyBody, wait=wait).read()

    # ---- sends

    def cancel(self, message_id: str) -> None:
        """Take back a delayed message. Raises BusError with the code `already_sent` when it was due."""
        self._rest.delete(f"/api/messages/{segment(message_id)}", {}, object)


class _OverRest:
    """Settles what was claimed, and brings the bus's word. Thread-safe."""

    def __init__(self, rest: Rest, client_id: str) -> None:
        self._rest = rest
        self._client_id = client_id

    def settle(self, message: Message, verb: Verb, fields: dict[str, object]) -> str:
        body = {"client": self._client_id, "attempt": message.attempt, **fields}
        return self._rest.post(f"/api/messages/{segment(message.id)}/{verb}", body, Settled).status


def _may_pass(error: BusError) -> bool:
    """True when asking again with the same key may help: no way to the bus, or the first is being dealt with still."""
    return isinstance(error, Offline | Unavailable) or (error.status == 409 and error.retry_after_seconds is not None)
