"""The parts of delivery in one process: built with the bus, started with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from bus.backplane import Backplane
from bus.clock import Clock
from bus.delivery import housekeeper, reaper, replays
from bus.delivery.courier import Courier
from bus.delivery.housekeeper import Housekeeper
from bus.delivery.reaper import Reaper
from bus.delivery.replays import Replays
from bus.delivery.requests import Asker, Requests
from bus.events import Event
from bus.message import Epochs
from bus.storage.log_writer import LogWriter
from bus.threads import WorkerPool
from bus.worker import Worker

if TYPE_CHECKING:
    from bus.health.vitals import Vitals


class Host(Asker, Protocol):
    """The process that delivers: what of the bus is needed here."""

    writer: LogWriter
    readers: WorkerPool
    backplane: Backplane
    vitals: Vitals

    def emit(self, event: Event) -> None: ...


class Delivery:
    """`courier` and `requests` are there after `start`. Event loop only."""

    courier: Courier
    requests: Requests

    def __init__(
        self,
        read: Callable[[Any], Any],
        write: Callable[[Any], Any],
        clock: Clock,
        epochs: Callable[[], Epochs],
        online: Callable[[], Any],
    ) -> None:
        """All are the bus's: `read` and `write` wait for a job, `online()` names who is connected anywhere."""
        self._read = read
        self._write = write
        self._clock = clock
        self.replays = Replays(read, write, epochs, lambda: self.courier)
        self._reaper = Reaper(read, write, clock, lambda: self.courier)
        self._housekeeper = Housekeeper(write, clock, online)

    def workers(self) -> list[Worker]:
        """What has to run beside: all but the last once in the cluster."""
        return [
            Worker("reaper", self._reaper.tick, interval_seconds=reaper.INTERVAL_SECONDS, exclusive=True),
            Worker(
                "housekeeper", self._housekeeper.tick, interval_seconds=housekeeper.INTERVAL_SECONDS, exclusive=True
            ),
            Worker("replays", self._carry_replays, interval_seconds=replays.INTERVAL_SECONDS, exclusive=True),
            Worker("queues", self._look_after_queues, interval_seconds=1.0),
        ]

    def start(self, host: Host) -> None:
        """Begin to carry."""
        clock, self._vitals = self._clock.now_us, host.vitals
        self.courier = Courier(host.hub, host.writer, host.readers, host.backplane, clock, host.emit)
        self.requests = Requests(host, self._read, clock)

    def recover(self) -> None:
        """Mend what a clock that was set back has left behind. Once, by the first process of a server."""
        self._write(lambda transaction: transaction.ledger.recover())

    def _carry_replays(self) -> None:
        if not self._vitals.disk.is_on:  # copies take room
            self.replays.tick()

    def _look_after_queues(self) -> None:
        self.courier.queues.look_after()
