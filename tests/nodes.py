"""Several nodes as a test runs them: servers with folders of their own, on one database, behind a balancer of a kind."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from types import TracebackType
from typing import Any, Self

import psycopg

from bus.testing import Answer, BusServer, ServerFailed, eventually, living


class Nodes:
    """Nodes by their number. `port`, `ws_url` and `call` lead to one after the other of those that are `up`."""

    def __init__(
        self,
        database_url: str,
        envs: Sequence[Mapping[str, str]],
        *,
        workers: int = 1,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """One node for each of `envs`, which are its settings beside `env`."""
        self.database_url = database_url
        self.all = [BusServer(database_url=database_url, workers=workers, env={**(env or {}), **own}) for own in envs]
        self.up = set(range(len(self.all)))
        self._turn = count()

    def __getitem__(self, number: int) -> BusServer:
        return self.all[number]

    def __enter__(self) -> Self:
        with ThreadPoolExecutor() as pool:
            for started in [pool.submit(node.start) for node in self.all]:
                started.result()
        self.wait_until_joined()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in range(len(self.all)):
            self.thaw(number)
        for node in self.all:
            node.close()

    # ---- talking

    @property
    def port(self) -> int:
        """Of the node whose turn it is."""
        up = sorted(self.up)
        if not up:
            raise ConnectionRefusedError("no node is up")
        return self.all[up[next(self._turn) % len(up)]].port

    @property
    def ws_url(self) -> str:
        """Of the node whose turn it is."""
        return f"ws://127.0.0.1:{self.port}"

    def call(self, method: str, path: str, json: object = None, **how: Any) -> Answer:
        """As `BusServer.call`, of any node."""
        return self.all[min(self.up)].call(method, path, json, **how)

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """Ask the database."""
        with psycopg.connect(self.database_url) as connection:
            return connection.execute(statement).fetchall()  # type: ignore[call-overload,no-any-return]

    def holders(self) -> dict[str, str]:
        """Who has which lease now."""
        now = "extract(epoch FROM clock_timestamp()) * 1000000"
        found: list[Any] = self.query(f"SELECT name, holder FROM leases WHERE until > {now}")
        return dict(found)

    def number_of(self, number: int) -> int:
        """The number that the log gave to a node."""
        drawn = (self.all[number].data_dir / "postgresql.workers" / "node-key").read_bytes()
        key = hashlib.blake2b(drawn + socket.gethostname().encode(), digest_size=8).hexdigest()
        ((found,),) = self.query(f"SELECT number FROM bus_nodes WHERE key = '{key}'")
        return int(found)

    def wait_until_joined(self, workers: int | None = None, within_seconds: float = 30.0) -> None:
        """Wait until every node that is up knows of all workers."""
        wanted = sum(self.all[number].workers for number in self.up) if workers is None else workers

        def seen() -> bool:
            headers = {"X-API-Key": self.all[0].env.get("API_KEY", "")}
            found = [self.all[number].call("GET", "/api/status", headers=headers) for number in sorted(self.up)]
            return all(answer.status == 200 and answer.body["workers"] == wanted for answer in found)

        eventually(seen, within_seconds=within_seconds, what=f"{wanted} workers on {len(self.up)} nodes")

    # ---- accidents

    def kill(self, number: int) -> None:
        """SIGKILL to all of a node's processes."""
        self.up.discard(number)
        self.all[number].kill()

    def revive(self, number: int) -> None:
        """Start it again, with its folder."""
        for _ in range(3):
            try:
                self.all[number].start()
            except ServerFailed:
                self.all[number].kill()
            else:
                self.up.add(number)
                return
        raise ServerFailed(f"Node {number} did not come back: {self.all[number].log[-2000:]}")

    def freeze(self, number: int) -> None:
        """SIGSTOP to all of a node's processes."""
        self.up.discard(number)
        self._signal(number, signal.SIGSTOP)

    def thaw(self, number: int) -> None:
        """Let them go on."""
        self._signal(number, signal.SIGCONT)
        if self.all[number].is_running:
            self.up.add(number)

    def _signal(self, number: int, kind: signal.Signals) -> None:
        process = self.all[number]._process
        if process is not None:
            for pid in living(process.pid):
                os.kill(pid, kind)
