"""The crash test over three nodes: accidents of nodes, of Redis and of the lines between, and what became of what was acked.

    python -m tests.faults.crash_nodes --rounds 50 [--channel redis|notify] [--seed N]

The producers, consumers and the verdict are those of tests.faults.crash; whoever is cut off comes back to another node.
Each round has one accident, drawn by chance: a node is killed, or frozen, for longer than its leases last; Redis is killed,
frozen, paused, flushed, or out of memory; the line between a node and Redis, or PostgreSQL, carries nothing for a while;
PostgreSQL stops as in a crash of its machine.

A frozen node has sends in its sockets that it stores when it wakes, behind what their sender, which gave up, has sent to
another node since. So order is judged on what was acknowledged.
"""

from __future__ import annotations

import argparse
import random
import sys
from contextlib import ExitStack
from typing import Any

from bus.nodes.leases import LEASE_SECONDS
from bus.testing import eventually
from tests.databases import PostgresServer
from tests.faults.crash import Load, Verdict, judge, whole_log
from tests.nodes import Nodes
from tests.redis_servers import RedisServer, Wire

OF_ALL = ("kill a node", "freeze a node", "freeze a node shortly", "stop PostgreSQL", "cut a line to PostgreSQL")
OF_REDIS = ("kill Redis", "freeze Redis", "pause Redis", "flush Redis", "fill Redis", "cut a line")
LONG_SECONDS, SHORT_SECONDS = LEASE_SECONDS + 2, 2.0


class Stage:
    """What accidents happen to. `wires` lead to Redis, and are empty where there is none; `lines` lead to PostgreSQL."""

    def __init__(
        self, nodes: Nodes, postgres: PostgresServer, redis: RedisServer | None, wires: list[Wire], lines: list[Wire]
    ) -> None:
        self.nodes = nodes
        self.postgres = postgres
        self.redis = redis
        self.wires = wires
        self.lines = lines

    def happen(self, accident: str, number: int, load: Load) -> None:
        """Have an accident, wait a while, and mend it."""
        wait, nodes, redis = load.stop.wait, self.nodes, self.redis
        if accident == "kill a node":
            nodes.kill(number)
            nodes.revive(number)
        elif accident.startswith("freeze a node"):
            nodes.freeze(number)
            wait(SHORT_SECONDS if "shortly" in accident else LONG_SECONDS)
            nodes.thaw(number)
        elif accident == "stop PostgreSQL":
            self.postgres.stop("immediate")
            wait(SHORT_SECONDS)
            self.postgres.start()
        elif accident == "cut a line to PostgreSQL":
            self.lines[number].cut()
            wait(LONG_SECONDS)
            self.lines[number].mend()
        elif redis is None:
            raise ValueError(f"{accident}: there is no Redis")
        elif accident == "kill Redis":
            redis.kill()
            wait(2 * SHORT_SECONDS)
            redis.start()
        elif accident == "freeze Redis":
            redis.freeze()
            wait(4 * SHORT_SECONDS)
            redis.thaw()
        elif accident == "pause Redis":
            redis.say("CLIENT", "PAUSE", "3000")
            wait(3)
        elif accident == "flush Redis":
            redis.say("FLUSHALL")
        elif accident == "fill Redis":
            redis.say("CONFIG", "SET", "maxmemory", "1")
            wait(SHORT_SECONDS)
            redis.say("CONFIG", "SET", "maxmemory", "0")
        elif accident == "cut a line":
            self.wires[number].cut()
            wait(4 * SHORT_SECONDS)
            self.wires[number].mend()


def run(accidents: list[str], *, channel: str, seed: int | None = None, patience_seconds: float = 60.0) -> Verdict:
    """These accidents, one after the other, on one life of three nodes; then the verdict."""
    chance = random.Random(seed)
    verdict = Verdict(len(accidents))
    settings = {"INBOX_LIMIT": "100000000", "LOG_LEVEL": "WARNING", "DB_POOL_SIZE": "2"}
    with ExitStack() as stack:
        postgres = PostgresServer()
        stack.callback(postgres.close)
        postgres.start()
        redis = stack.enter_context(RedisServer()) if channel == "redis" else None
        wires = [stack.enter_context(Wire(redis.port)) for _ in range(3)] if redis is not None else []
        lines = [stack.enter_context(Wire(postgres.port)) for _ in range(3)]
        url = postgres.make()
        envs = [{"DATABASE_URL": postgres.over(line.port, url)} for line in lines]
        for env, wire in zip(envs, wires, strict=False):
            env["REDIS_URL"] = f"redis://127.0.0.1:{wire.port}"
        nodes = stack.enter_context(Nodes(url, envs, env=settings))
        load = Load(as_one(nodes))
        load.start()
        stage = Stage(nodes, postgres, redis, wires, lines)
        for accident in accidents:
            load.stop.wait(chance.uniform(0.5, 1.5))
            number = chance.randrange(3)
            print(f"    {accident} ({number})", flush=True)
            stage.happen(accident, number, load)
        load.stop.wait(1.0)
        load.finish(patience_seconds)
        eventually(lambda: nodes.call("GET", "/health").status == 200, within_seconds=30, what="a node that answers")
        verdict.faults = judge(load, acknowledged(load, whole_log(as_one(nodes))))
        verdict.acknowledged = sum(map(len, load.acknowledged.values()))
        verdict.delivered = sum(map(len, load.received.values()))
        verdict.repeated = load.repeated
    return verdict


def acknowledged(load: Load, log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out what nobody was told of, here and at the consumers, and return what is left of the log."""
    known = {pair: set(numbers) for pair, numbers in load.acknowledged.items()}

    def is_known(message: dict[str, Any]) -> bool:
        return message["payload"]["n"] in known.get((message["from"], message["to"]), ())

    for consumer, messages in load.received.items():
        load.received[consumer] = list(filter(is_known, messages))
    return list(filter(is_known, log))


def as_one(nodes: Nodes) -> Any:
    """What a load needs of a server, any node gives."""
    return nodes


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--channel", choices=["redis", "notify"], default="redis")
    parser.add_argument("--only", help="one accident, again and again")
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    possible = OF_ALL + (OF_REDIS if options.channel == "redis" else ())
    chance = random.Random(options.seed)
    accidents = [options.only or chance.choice(possible) for _ in range(options.rounds)]
    verdict = run(accidents, channel=options.channel, seed=options.seed)
    print(f"{options.channel}: {verdict}")
    for fault in verdict.faults:
        print(f"    {fault}")
    return 1 if verdict.faults else 0


if __name__ == "__main__":
    sys.exit(main())
