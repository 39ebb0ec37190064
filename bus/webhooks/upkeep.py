"""What runs beside the deliveries, once in the cluster: replays go on, and what is old goes."""

from __future__ import annotations

from bus.webhooks import deliveries, replays
from bus.webhooks.engine import Webhooks
from bus.worker import Worker

REPLAY_SECONDS = 0.5
FORGET_SECONDS = 5.0


def workers(webhooks: Webhooks) -> list[Worker]:
    """To be added to the bus."""
    host = webhooks.host
    running = "SELECT 1 FROM webhook_replays WHERE status = 'running' LIMIT 1"

    def replay() -> None:
        while host.read(lambda reader: reader.execute(running)):
            if host.write(lambda transaction: replays.carry_on(transaction, host.clock.now_us())):
                webhooks.dispatcher.wake()

    def forget() -> None:
        while host.write(lambda transaction: deliveries.forget(transaction, host.clock.now_us())):
            continue

    return [
        Worker("webhook_replays", replay, interval_seconds=REPLAY_SECONDS, exclusive=True),
        Worker("webhook_forget", forget, interval_seconds=FORGET_SECONDS, exclusive=True),
    ]
