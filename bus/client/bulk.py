"""Many sends over REST: in order, each stored once, through restarts of the server.

REST opens no inbox, so sending in the name of a client takes nothing of what waits for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from bus.client.errors import passes
from bus.client.received import Receipt
from bus.client.reconnection import Backoff, Ending
from bus.client.rest import Rest
from bus.errors import BusError, TooLarge

MAX_BATCH = 500


class BulkSender:
    """Sends batch after batch. Not thread-safe: the order is that of the calls."""

    def __init__(
        self,
        rest: Rest,
        *,
        patience_seconds: float = 60.0,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`patience_seconds`: how long to go on trying while not one message gets through."""
        self._rest = rest
        self._patience_seconds = patience_seconds
        self._sleep = sleep
        self._clock = clock

    def send(self, bodies: Sequence[Mapping[str, object]]) -> list[Receipt | BusError]:
        """Send bodies as of `POST /api/send`; returns a receipt or a final refusal for each, in order.

        What passes (no connection, a full inbox, a server that stops) is tried again with full jitter, so every body
        needs an `idempotency_key`. Raises `GivenUp` when patience is at its end.
        """
        outcomes: list[Receipt | BusError] = []
        backoff, since = Backoff(), self._clock()
        while len(outcomes) < len(bodies):
            before = len(outcomes)
            problem = self._attempt(bodies[before : before + MAX_BATCH], outcomes)
            if len(outcomes) > before:
                backoff, since = Backoff(), self._clock()
            elif problem is not None and self._clock() - since >= self._patience_seconds:
                raise GivenUp(problem, outcomes)
            if problem is not None:
                pause = backoff.pause(Ending(reason=problem.sentence, after_seconds=problem.retry_after_seconds))
                self._sleep(pause)
        return outcomes

    def _attempt(self, bodies: Sequence[Mapping[str, object]], outcomes: list[Receipt | BusError]) -> BusError | None:
        """Send a batch, note the outcomes up to the first that may pass, and return that one."""
        try:
            results = self._rest.send_batch(bodies)
        except TooLarge as error:
            # Of the body as a whole: only one by one tells which message it is.
            if len(bodies) > 1:
                return self._attempt(bodies[:1], outcomes)
            outcomes.append(error)
            return None
        except BusError as error:
            if not passes(error):
                raise
            return error
        for result in results:
            if isinstance(result, BusError) and passes(result):
                return result
            outcomes.append(result)
        return None


class GivenUp(BusError):
    """Nothing got through for too long. `outcomes` are those of the bodies before; the rest was not sent."""

    def __init__(self, problem: BusError, outcomes: list[Receipt | BusError]) -> None:
        super().__init__(problem.sentence, code=problem.code)
        self.outcomes = outcomes
