"""`Closing`: what has a `close` is closed at the end of its `with` block."""

from __future__ import annotations

from typing import Self


class Closing:
    """`with` hands out the object itself, and closes it."""

    def close(self) -> None:
        """End, and give back what it holds."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
