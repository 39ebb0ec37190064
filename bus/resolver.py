"""Asks the system for the addresses of a name, with a deadline that holds although `getaddrinfo` has none.

Each question has a native thread of its own, so neither the event loop nor anybody else's question waits for a name
server that is silent. Who asks waits on a socket pair: a greenlet where gevent has patched sockets, a thread elsewhere.
"""

from __future__ import annotations

import _socket
import os
import socket
from collections.abc import Callable

from gevent.monkey import get_original

from bus.threads import start_native

MOST_QUESTIONS = 128
"""Names that are asked about at a time; a question to a silent name server ends when the system gives up (30 s)."""

LookUp = Callable[[str], list[str]]


class Unresolved(Exception):
    """The name has no addresses for now. The text is a sentence."""


def look_up(name: str) -> list[str]:
    """All addresses of a name, in the order of the system's choice. Blocks. Raises OSError."""
    found = _socket.getaddrinfo(name.encode(), None, 0, socket.SOCK_STREAM)
    return [str(sockaddr[0]) for _, _, _, _, sockaddr in found]


class Resolver:
    """Thread-safe, and one is enough for a process.

    `_questions` are those under way, by name: whoever asks for the same name meanwhile shares the answer. At most
    `MOST_QUESTIONS`. `_lock` guards it and each question's `waiting`; it is a native lock, never held while waiting.
    """

    def __init__(self, look_up: LookUp = look_up) -> None:
        self._look_up = look_up
        self._questions: dict[str, Question] = {}
        self._lock = get_original("_thread", "allocate_lock")()

    def addresses(self, name: str, seconds: float) -> list[str]:
        """The name's addresses, at least one. Raises Unresolved, after `seconds` at the latest."""
        mine, its = socket.socketpair()
        try:
            question = self._join(name, its.fileno())
            try:
                mine.settimeout(seconds)
                mine.recv(1)
            except TimeoutError:
                raise Unresolved(f"No name server answered within {seconds:.1f} s.") from None
            finally:
                with self._lock:
                    question.waiting.discard(its.fileno())
        finally:
            mine.close()
            its.close()
        return question.answer()

    def _join(self, name: str, waiting: int) -> Question:
        """The question under way, or a new one; `waiting` is the descriptor that is written to when it has an answer."""
        with self._lock:
            question = self._questions.get(name)
            if question is not None:
                question.waiting.add(waiting)
                return question
            if len(self._questions) >= MOST_QUESTIONS:
                raise Unresolved(f"{MOST_QUESTIONS} other names wait for an answer of the name server.")
            question = self._questions[name] = Question(waiting)
        try:
            start_native(lambda: self._ask(name, question))
        except RuntimeError:
            with self._lock:
                del self._questions[name]
            raise Unresolved("The system has no thread left to ask for the name.") from None
        return question

    def _ask(self, name: str, question: Question) -> None:
        """On a native thread: it may neither log nor touch a socket object, which gevent may have patched."""
        try:
            question.found = self._look_up(name)
        except BaseException as raised:  # noqa: BLE001  # crosses to who asked, and is handled there
            question.error = raised
        with self._lock:
            del self._questions[name]
            for descriptor in question.waiting:
                os.write(descriptor, b"!")


class Question:
    """A name that is being asked about. `waiting` are descriptors of those who wait, open as long as they stand here."""

    def __init__(self, waiting: int) -> None:
        self.waiting = {waiting}
        self.found: list[str] = []
        self.error: BaseException | None = None

    def answer(self) -> list[str]:
        """What was found. Raises Unresolved, or what the look-up should not have raised."""
        if isinstance(self.error, socket.gaierror) and self.error.errno == socket.EAI_AGAIN:
            raise Unresolved("The name server could not answer for now.")
        if isinstance(self.error, OSError) or (self.error is None and not self.found):
            raise Unresolved("The name has no address.")
        if self.error is not None:
            raise self.error
        return self.found
