"""What runs beside the deliveries, once in the cluster: replays go on, and what is old goes."""

from __future__ import annotations

from functools import partial

from bus.webhooks import deliveries, replays
from bus.webhooks.engine import Webhooks
from bus.worker import Worker

REPLAY_SECONDS = 0.5
FORGET_SECONDS = 5.0


def workers(webhooks: Webhooks) -> list[Worker]:
    """To be added to the bus."""
    host = webhooks.host

    def replay() -> None:
        while batch := host.read(lambda reader: replays.next_batch(reader, host.clock.now_us())):
            host.write(partial(replays.put_back, batch=batch, now_us=host.clock.now_us()))
            webhooks.dispatcher.wake()

    def forget() -> None:
        while found := host.read(lambda reader: deliveries.forgettable(reader, host.clock.now_us())):
            host.write(partial(deliveries.forget, found=found))

    return [
        Worker("webhook_replays", replay, interval_seconds=REPLAY_SECONDS, exclusive=True),
        Worker("webhook_forget", forget, interval_seconds=FORGET_SECONDS, exclusive=True),
    ]
