"""A bus of three nodes where a test asks for a server: `pytest --nodes 3`, on a store that nodes can share."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from bus.testing import START_TIMEOUT_SECONDS, STOP_TIMEOUT_SECONDS, BusServer, ServerFailed, eventually, free_port

T = TypeVar("T")

SHARED = {"SECRET_KEY": secrets.token_urlsafe(32), "DB_POOL_SIZE": "2", "DB_MAX_OVERFLOW": "6"}
"""Settings that are the same on all nodes, unless a test has its own."""


class BusNodes(BusServer):
    """Nodes on one database, as one server: each use of `port`, `url`, `ws_url` and `call` is of the next node.

    `workers` are those of all nodes, at least one on each; with a `command`, which says its own number, those of each node.
    What is done to the server is done to every node at once; `log` is the nodes' logs one behind the other, `data_dir`
    the first node's. A page of any node may ask them all. There is no `pid`: tests about the master of one machine are
    marked `one_node`.
    """

    how_many: ClassVar[int] = 3

    def __new__(cls, **how: Any) -> Any:
        """A server that is told its database, or its port, stays alone: such a test is about these two."""
        if how.get("database_url") is None and how.get("port") is None:
            return super().__new__(cls)
        return BusServer(**how)

    def __init__(
        self,
        *,
        workers: int = 1,
        env: Mapping[str, str] | None = None,
        command: Sequence[str] | None = None,
        data_dir: Path | None = None,
    ) -> None:
        super().__init__(env=env, command=command, data_dir=data_dir)
        self.nodes = [
            BusServer(
                workers=workers if command else max(len(range(at, workers, self.how_many)), 1),
                command=command,
                data_dir=data_dir.with_name(f"{data_dir.name}-{at}") if data_dir is not None and at else data_dir,
            )
            for at in range(self.how_many)
        ]
        self.workers = sum(node.workers for node in self.nodes)
        self._turn = count()
        self._turned_to: BusServer | None = None

    # ---- what it is

    @property
    def port(self) -> int:
        """Of the node whose turn it is."""
        return (self._turned_to or self.nodes[next(self._turn) % len(self.nodes)]).port

    @property
    def data_dir(self) -> Path:
        """The first node's."""
        return self.nodes[0].data_dir

    @property
    def log(self) -> str:
        """Everything that the nodes printed."""
        return "".join(node.log for node in self.nodes)

    @property
    def pid(self) -> int:
        """Nothing: raises ServerFailed."""
        raise ServerFailed("Several nodes have no one master; mark the test `one_node`, with the reason.")

    @property
    def is_running(self) -> bool:
        """True while all masters live."""
        return all(node.is_running for node in self.nodes)

    # ---- life

    def start(self) -> Self:
        """Start all nodes at once, and wait until each knows of all workers."""
        for node in self.nodes:
            node._port = node._port or free_port()
        origins = ",".join([*filter(None, [self.env.get("ALLOWED_ORIGINS")]), *(node.url for node in self.nodes)])
        for node in self.nodes:
            node._store = self.store
            node.env = {**SHARED, **self.env, "ALLOWED_ORIGINS": origins}
        self._of_each(BusServer.start)
        eventually(self._have_met, within_seconds=START_TIMEOUT_SECONDS, what="nodes that know one another")
        return self

    def terminate(self, timeout_seconds: float = STOP_TIMEOUT_SECONDS) -> int:
        """Ask all masters to stop, wait, and return the worst exit code. Raises TimeoutError."""
        return max(self._of_each(lambda node: node.terminate(timeout_seconds)), key=abs)

    def wait(self, timeout_seconds: float = STOP_TIMEOUT_SECONDS) -> int:
        """Wait for all masters to end by themselves, and return the worst exit code. Raises TimeoutError."""
        return max(self._of_each(lambda node: node.wait(timeout_seconds)), key=abs)

    def kill(self) -> None:
        """Kill all nodes at once."""
        self._of_each(BusServer.kill)

    def close(self) -> None:
        """Kill what is left and remove the temporary folders. Safe to call twice."""
        self._of_each(BusServer.close)

    # ---- workers

    def worker_pids(self) -> list[int]:
        """The living workers of all nodes, node by node."""
        return [pid for node in self.nodes for pid in node.worker_pids()]

    def kill_worker(self, pid: int) -> None:
        """Kill one worker, and wait until it is gone. Raises ValueError."""
        self._node_of(pid).kill_worker(pid)

    @contextmanager
    def turned_to(self, pid: int) -> Iterator[BusServer]:
        """Have `port` and all that goes by it be the node's that has this worker."""
        before, self._turned_to = self._turned_to, self._node_of(pid)
        try:
            yield self._turned_to
        finally:
            self._turned_to = before

    # ---- inside

    def _node_of(self, pid: int) -> BusServer:
        for node in self.nodes:
            if pid in node.worker_pids():
                return node
        raise ValueError(f"{pid} is not a worker of these nodes; their workers are {self.worker_pids()}.")

    def _have_met(self) -> bool:
        headers = {"X-API-Key": self.env.get("API_KEY", "")}
        answers: list[Any] = [node.call("GET", "/api/status", headers=headers) for node in self.nodes]
        return all(answer.status != 200 or answer.body["workers"] >= self.workers for answer in answers)

    def _of_each(self, what: Callable[[BusServer], T]) -> list[T]:
        with ThreadPoolExecutor(len(self.nodes)) as pool:
            return list(pool.map(what, self.nodes))
