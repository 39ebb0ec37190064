"""A connection to PostgreSQL that is made anew when it was lost, and what a caller hears while there is none."""

from __future__ import annotations

import random
import time
from _queue import Empty, SimpleQueue
from collections.abc import Callable, Sequence
from typing import Any

from bus.errors import BusError, DiskFull, Unavailable
from bus.storage.postgres_connection import Answer, ConnectionLost, PostgresConnection, PostgresError
from bus.threads import start_native

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 2.0
"""Between two attempts to connect, about: meanwhile callers are refused at once."""

MOMENT_SECONDS = 0.2
"""A caller waits for an attempt to connect that follows on a failure: longer than one takes when it succeeds."""

UNKNOWN = (
    "The database went away at the commit, so it is not known whether this was stored. Send it again, with an"
    " Idempotency-Key if it must not be stored twice."
)


class Link:
    """One thread's."""

    def __init__(self, connect: Callable[[], PostgresConnection]) -> None:
        self._connect = connect
        self._connection: PostgresConnection | None = None
        self._pause = 0.0
        self._not_before = 0.0
        self._why = ""
        self._attempt: Any = None

    def get(self) -> PostgresConnection:
        """An open connection. Raises ConnectionLost, at once when it is too early for another attempt."""
        connection = self._connection
        if connection is not None and connection.is_open:
            return connection
        if time.monotonic() < self._not_before:
            raise ConnectionLost(self._why)
        try:
            connection = self._connection = self._connect() if not self._pause else self._connected_aside()
        except PostgresError as error:
            self._pause = min(max(2 * self._pause, FIRST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS)
            self._not_before = time.monotonic() + self._pause * random.uniform(0.5, 1.0)
            self._why = str(error)
            raise ConnectionLost(str(error), error.state) from None
        if connection is None:
            raise ConnectionLost(self._why)
        self._pause = 0.0
        return connection

    def drop(self) -> None:
        """Give the connection up: the next is a new one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def close(self) -> None:
        """Close it, and what may still be made of an attempt."""
        self.drop()
        self._attempt, attempt = None, self._attempt
        if attempt is not None:
            start_native(lambda: _discard(attempt))

    def _connected_aside(self) -> PostgresConnection | None:
        """A connection from an attempt in a thread of its own: where no answer comes, it hangs, and no caller with it.

        None while it goes on; who began it waits for it a moment. Raises PostgresError when it failed.
        """
        outcome = self._outcome(0.0) if self._attempt is not None else None
        if self._attempt is None and (outcome is None or isinstance(outcome, BaseException)):
            attempt: Any = SimpleQueue()
            self._attempt = attempt
            start_native(lambda: attempt.put(_tried(self._connect)))
            outcome = self._outcome(MOMENT_SECONDS)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def _outcome(self, patience_seconds: float) -> PostgresConnection | BaseException | None:
        try:
            outcome: PostgresConnection | BaseException = self._attempt.get(timeout=patience_seconds)
        except Empty:
            return None
        self._attempt = None
        return outcome


class Reading:
    """What a reader asks through: outside a snapshot, a question whose connection was lost is asked once more."""

    def __init__(self, connect: Callable[[], PostgresConnection]) -> None:
        self.link = Link(connect)
        self.in_snapshot = False

    def execute(self, statement: str, bindings: Sequence[Any] = ()) -> Answer:
        """Ask, and have the answer. Raises Unavailable; in a snapshot, ConnectionLost."""
        try:
            return self._ask(statement, bindings)
        except ConnectionLost:
            if self.in_snapshot:
                raise
        try:
            return self._ask(statement, bindings)
        except ConnectionLost as error:
            raise out_of_reach() from error

    def _ask(self, statement: str, bindings: Sequence[Any]) -> Answer:
        answer = self.link.get().execute(statement, bindings)
        try:
            answer.load()
        except ConnectionLost:
            raise
        except PostgresError as error:
            if (refusal := refusal_of(error)) is not None:
                raise refusal from error
            raise
        return answer

    def close(self) -> None:
        """Close the connection."""
        self.link.close()


def _tried(connect: Callable[[], PostgresConnection]) -> PostgresConnection | BaseException:
    try:
        return connect()
    except BaseException as error:  # noqa: BLE001  # raised where the attempt is asked for
        return error


def _discard(attempt: Any) -> None:
    outcome = attempt.get()
    if not isinstance(outcome, BaseException):
        outcome.close()


def away() -> Unavailable:
    """What callers hear while the database can't be reached. Nothing of theirs was stored."""
    return Unavailable(
        "The database can't be reached for now; nothing was stored. Try again: the bus goes on by itself.",
        retry_after_seconds=2,
    )


def out_of_reach() -> Unavailable:
    """The same for who only wants to read."""
    return Unavailable(
        "The database can't be reached for now; try again: the bus goes on by itself.", retry_after_seconds=2
    )


def refusal_of(error: PostgresError) -> BusError | None:
    """What callers hear of a statement that failed for no fault of its own; None: it is a fault of ours."""
    if error.state == "53100":
        return DiskFull("The database's disk is full; nothing was stored. Make room: the bus goes on by itself.")
    if error.state[:2] in ("53", "57", "58", "40") or error.state in ("55P03", "25006", "25P03"):
        return Unavailable("The database can't do this for now; nothing was stored. Try again.", retry_after_seconds=2)
    return None
