"""The documented WebhookManager on a bus: an `Outlet` whose endpoints, events and failures are rows."""

from __future__ import annotations

from typing import Any

from bus.errors import Unavailable
from bus.storage import Reader, Transaction
from bus.webhooks import body, deliveries, replays
from bus.webhooks.deliveries import Choice
from bus.webhooks.endpoints import Config, Endpoint, Sealed, Secret, check_sealed
from bus.webhooks.engine import Webhooks
from bus.webhooks.matching import Subject
from bus.webhooks.outlet import Failure, Receiver

MAX_RETRIED = 10_000


class Registered:
    """See `bus.webhooks.outlet.Outlet`. To be called in greenlets, once the bus runs; `start` and `stop` are the bus's."""

    durable = True

    def __init__(self, webhooks: Webhooks) -> None:
        self._webhooks = webhooks

    def add(self, receiver: Receiver) -> str:
        receiver.check()
        webhooks = self._running()
        webhooks.check(receiver.url)
        config = Config(
            events=receiver.events,
            kind=receiver.kind,
            max_retries=receiver.max_retries,
            timeout_seconds=receiver.timeout_seconds,
        )
        kept = () if receiver.secret is None else (Secret(receiver.secret),)
        sealed = check_sealed(Sealed(receiver.url, kept, receiver.headers))

        def job(transaction: Transaction) -> Endpoint:
            now_us = webhooks.host.clock.now_us()
            known = self._known(transaction, receiver.url)
            if not known:
                state = "enabled" if receiver.enabled else "paused"
                return webhooks.rows.insert(transaction, config.check(), sealed, state, now_us)  # type: ignore[arg-type]
            webhooks.rows.set_state(
                transaction, known[0].number, "enabled" if receiver.enabled else "paused", None, now_us
            )
            return webhooks.rows.update(transaction, known[0], config.check(), sealed)

        return webhooks.change(job).id

    def remove(self, url: str) -> bool:
        webhooks = self._running()

        def job(transaction: Transaction) -> bool:
            known = self._known(transaction, url)
            for endpoint in known:
                webhooks.rows.delete(transaction, endpoint)
            return bool(known)

        return webhooks.change(job)

    def trigger(self, name: str, data: Any) -> None:
        webhooks = self._running()
        text = body.encode(data)
        body.make(body.check_name(name), "evt", webhooks.host.clock.now_us(), text)  # refused now, if it is too large
        webhooks.occurrences.put(name, Subject(), text)

    def stats(self) -> dict[str, Any]:
        webhooks = self._running()

        def job(reader: Reader) -> dict[str, Any]:
            _, endpoints = webhooks.rows.all(reader)
            delivered, failed, pending = reader.execute(_TOTALS)[0]
            (attempts,) = reader.execute("SELECT count(*) FROM webhook_attempts")[0]
            return {
                "total_sent": delivered + failed + pending,
                "total_delivered": delivered,
                "total_failed": failed,
                "total_attempts": attempts,
                "total_dropped": webhooks.occurrences.dropped,
                "by_event": dict(reader.execute(_BY_EVENT)),
                "success_rate": delivered / (delivered + failed) if delivered + failed else 0.0,
                "queue_size": pending,
                "failed_recent": failed,
                "failed_evicted": 0,
                "endpoints_registered": len(endpoints),
                "endpoints": [{"id": e.id, "url": e.shown_url, "enabled": e.awake} for e in endpoints],
                "durable": True,
            }

        found: dict[str, Any] = webhooks.host.read(job)
        return found

    def failures(self, limit: int) -> list[Failure]:
        webhooks = self._running()

        def job(reader: Reader) -> list[Failure]:
            urls = {e.number: "" if e.sealed is None else e.sealed.url for e in webhooks.rows.all(reader)[1]}
            rows = reader.execute(_FAILURES, (max(limit, 0),))
            return [
                Failure(
                    id=f"dlv-{number}",
                    event_id=event_id,
                    url=urls.get(endpoint, ""),
                    event=name,
                    data=data,
                    occurred_us=occurred,
                    error=cause or "",
                    status=status,
                    attempts=attempts,
                    excerpt=excerpt or b"",
                    failed_us=ended,
                )
                for number, endpoint, event_id, name, data, occurred, cause, attempts, ended, status, excerpt in rows
            ][::-1]

        found: list[Failure] = webhooks.host.read(job)
        return found

    def retry(self, url: str, delivery_id: str | None) -> int:
        webhooks = self._running()
        number = None if delivery_id is None else deliveries.parse_id(delivery_id)

        now_us = webhooks.host.clock.now_us()
        if number is not None:
            count: int = webhooks.host.write(lambda transaction: replays.replay_one(transaction, number, now_us))
            webhooks.dispatcher.wake()
            return count

        def look(reader: Reader) -> tuple[Choice, int] | None:
            known = self._known(reader, url)
            choice = Choice(known[0].number, "dead") if known else None
            return None if choice is None else (choice, replays.matching(reader, choice, now_us))

        found = webhooks.host.read(look)
        if found is None:
            return 0
        choice, matched = found
        webhooks.host.write(lambda transaction: replays.begin(transaction, choice, matched, now_us))
        return int(matched)

    def start(self) -> None:
        """Nothing: the bus sends for as long as it runs."""

    def stop(self, timeout_seconds: float) -> None:
        """Nothing: the bus goes on for whoever else has registered."""

    def _running(self) -> Webhooks:
        if not self._webhooks.running:
            raise Unavailable("The bus is not running yet; register endpoints once it has started.", code="not_running")
        return self._webhooks

    def _known(self, reader: Reader | Transaction, url: str) -> list[Endpoint]:
        _, endpoints = self._webhooks.rows.all(reader)
        return [endpoint for endpoint in endpoints if endpoint.sealed is not None and endpoint.sealed.url == url]


_TOTALS = """
SELECT count(*) FILTER (WHERE state = 3), count(*) FILTER (WHERE state = 4), count(*) FILTER (WHERE state < 3)
  FROM webhook_deliveries"""
_BY_EVENT = """
SELECT e.name, count(*) FROM webhook_deliveries d JOIN webhook_events e ON e.number = d.event GROUP BY e.name"""
_FAILURES = """
SELECT d.number, d.endpoint, e.id, e.name, e.data, e.occurred_at, d.cause, d.attempts, d.ended_at, a.status, a.excerpt
  FROM webhook_deliveries d JOIN webhook_events e ON e.number = d.event
  LEFT JOIN webhook_attempts a ON a.number = (SELECT max(number) FROM webhook_attempts WHERE delivery = d.number)
 WHERE d.state = 4 ORDER BY d.number DESC LIMIT ?"""
