"""Questions that are asked before their answers are needed: from a store across a network, many answers come in one trip.

What a batch will ask is known when it begins: keys that may have been used, inboxes that may be full, deliveries that are
being settled. Each answer is given out once; whoever asks the same again asks the store. SQLite needs none of this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Bindings = tuple[Any, ...]


class Ahead:
    """One connection's. What was asked holds until somebody may have changed it: then `forget`."""

    def __init__(self, execute: Callable[..., Any]) -> None:
        """`execute(statement, bindings)` sends nothing before an answer is looked at."""
        self._execute = execute
        self._answers: dict[tuple[str, Bindings], Any] = {}

    def ask(self, statement: str, *bindings: Any) -> None:
        """Have a question asked with the next that is."""
        key = statement, bindings
        if key not in self._answers:
            self._answers[key] = self._execute(statement, bindings)

    def peek(self, statement: str, *bindings: Any) -> list[Bindings]:
        """The rows of what was asked; they can still be had."""
        return self._answers[statement, bindings].peek()  # type: ignore[no-any-return]

    def execute(self, statement: str, bindings: Sequence[Any] = ()) -> Any:
        """The answer to what was asked, or to a statement that is sent now."""
        if self._answers and (answer := self._answers.pop((statement, tuple(bindings)), None)) is not None:
            return answer
        return self._execute(statement, bindings)

    def forget(self) -> None:
        """What was asked holds no longer."""
        self._answers.clear()
