"""Holds the floors of ARCHITECTURE.md: a module imports only what lies below it.

On a floor the order of `FLOORS` is the order of reading: a module may import those listed before it. What is imported
for types only (`if TYPE_CHECKING`) may be any module of the same floor, and never one of a higher floor.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from fnmatch import fnmatchcase
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAX_LINES = 500

FLOORS: dict[int, list[str]] = {
    0: ["bus", "bus.errors", "bus.message", "bus.trace_context", "bus.protocol", "bus.frames", "bus.events",
        "bus.webhooks", "bus.webhooks.body", "bus.webhooks.signing", "bus.contradictions", "bus.settings", "bus.families"],
    1: [
        "bus.metrics", "bus.metric_files", "bus.exposition", "bus.window", "bus.masking",
        "bus.logs", "bus.launch", "bus.clock", "bus.threads", "bus.counters", "bus.series", "bus.topics",
        "bus.nodes", "bus.nodes.leases", "bus.redis_client", "bus.backplane*", "bus.worker",
        "bus.dispatch", "bus.companions", "bus.key_file", "bus.addresses", "bus.guard", "bus.resolver",
        "bus.wire", "bus.outbound", "bus.storage*", "bus.nodes*", "bus.identity*", "bus.limits*", "bus.auth", "bus.cursors",
        "bus.resume", "bus.tail", "bus.waiters", "bus.event_stream", "bus.local_streams", "bus.connection", "bus.room",
        "bus.admission", "bus.audience", "bus.recent", "bus.chunks", "bus.pace", "bus.written",
        "bus.listener", "bus.hub", "bus.presence", "bus.process", "bus.own_ids", "bus.known",
        "bus.receipts", "bus.delivery*", "bus.retention*", "bus.audit*", "bus.heartbeat", "bus.drain", "bus.health*",
        "bus.sending",
        "bus.tracing", "bus.profile", "bus.spans", "bus.webhooks*", "bus.ingress*", "bus.search*", "bus.extensions",
    ],
    2: ["bus.bus"],
    3: ["bus.transports*", "bus.console*"],
    4: ["webhooks", "health_checks", "message_ttl", "enhanced_metrics", "streaming", "extensions*"],
    5: ["server_ws", "gunicorn.conf"],
}  # fmt: skip

ASIDE: dict[str, list[str]] = {
    "bus.client*": ["bus.client*"],
    "bus.cli*": ["bus.client*", "bus.cli*", *FLOORS[1]],
    "bus.__main__": ["bus.client*", "bus.cli*", *FLOORS[1]],
    "bus.testing": [],
}
"""Beside the floors: each sees floor 0 and what is listed, and nothing sees it."""


def name_of(file: Path) -> str:
    """The dotted name of a source file."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


SOURCES = {
    name_of(file): file
    for pattern in ("*.py", "bus/**/*.py", "extensions/**/*.py")
    for file in sorted(ROOT.glob(pattern))
}
OTHERS = [
    file for folder in ("docs", "deploy", "examples", "benchmarks") for file in sorted((ROOT / folder).rglob("*.py"))
]


def listed(name: str, patterns: list[str]) -> str | None:
    """The first of the patterns that names this module: `bus.storage*` is the package and all in it."""
    fits = (p for p in patterns if name == p.rstrip("*") or (p[-1] == "*" and fnmatchcase(name, p[:-1] + ".*")))
    return next(fits, None)


def place(name: str) -> tuple[int, int]:
    """(floor, position on it)."""
    for floor, patterns in FLOORS.items():
        if pattern := listed(name, patterns):
            return floor, patterns.index(pattern)
    raise KeyError(name)


def imports(name: str) -> Iterator[tuple[str, int, bool]]:
    """What a module imports: (dotted name, line, whether for types only)."""
    tree = ast.parse(SOURCES[name].read_text())
    guards = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    for_types = {id(node) for guard in guards for statement in guard.body for node in ast.walk(statement)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}:{node.lineno} imports relatively; write the whole name."
            within = [f"{node.module}.{alias.name}" for alias in node.names]
            targets = [target if target in SOURCES else str(node.module) for target in within]
        else:
            continue
        yield from ((target, node.lineno, id(node) in for_types) for target in dict.fromkeys(targets))


def may_import(name: str, target: str, *, for_types: bool) -> bool:
    """Whether the floors let `name` know `target`."""
    if listed(target, FLOORS[0]) and not listed(name, FLOORS[0]):
        return True
    if aside := listed(name, list(ASIDE)):
        return listed(target, ASIDE[aside]) is not None
    if listed(target, list(ASIDE)):
        return False
    (floor, position), (its_floor, its_position) = place(name), place(target)
    if floor != its_floor or floor >= 4:
        return floor > its_floor
    return for_types or its_position <= position


@pytest.mark.parametrize("name", SOURCES)
def test_every_module_has_a_floor(name: str) -> None:
    known = [pattern for patterns in FLOORS.values() for pattern in patterns]
    assert listed(name, [*known, *ASIDE]), f"{name} is new: give it a floor, in ARCHITECTURE.md and in FLOORS here."


@pytest.mark.parametrize("name", SOURCES)
def test_a_module_imports_only_from_below(name: str) -> None:
    for target, line, for_types in imports(name):
        if target in SOURCES:
            assert may_import(name, target, for_types=for_types), f"{name}:{line} may not import {target}; see FLOORS."


@pytest.mark.parametrize("name", [name for name in SOURCES if name.startswith("bus")])
def test_only_transports_and_above_know_flask(name: str) -> None:
    if listed(name, FLOORS[3]) is None:
        roots = {target.partition(".")[0]: line for target, line, _ in imports(name)}
        for root in ("flask", "flask_sock", "werkzeug"):
            assert root not in roots, f"{name}:{roots[root]} imports {root}: only floors 3 to 5 know Flask."


def test_no_module_imports_itself_by_a_detour() -> None:
    def needed(name: str) -> list[str]:
        return [target for target, _, for_types in imports(name) if target in SOURCES and not for_types]

    TopologicalSorter({name: needed(name) for name in SOURCES}).prepare()  # names the modules of a cycle


@pytest.mark.parametrize("file", [*SOURCES.values(), *OTHERS], ids=lambda file: str(file.relative_to(ROOT)))
def test_a_file_says_what_it_is_and_answers_one_question(file: Path) -> None:
    source = file.read_text()
    assert ast.get_docstring(ast.parse(source)), "The first line of a module says what it is."
    assert len(source.splitlines()) <= MAX_LINES, f"More than {MAX_LINES} lines: part it, or let mechanism sink."


STRANGERS = {"requests", "urllib3", "http", "httpx", "aiohttp", "httplib2", "pycurl"}
CALLS_TO_THEM = {"urlopen", "urlretrieve", "build_opener", "create_connection"}


@pytest.mark.parametrize("name", [name for name in SOURCES if listed(name, list(ASIDE)) is None])
def test_only_the_guarded_client_calls_strangers(name: str) -> None:
    """The client and the command line call the bus itself, and so does a module's own example."""
    for target, line, _ in imports(name):
        if target != "http.server":
            assert target.partition(".")[0] not in STRANGERS, f"{name}:{line}: call through bus/outbound.py."
    tree = ast.parse(SOURCES[name].read_text())
    examples = {id(node) for part in tree.body if getattr(part, "name", "") == "example" for node in ast.walk(part)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and id(node) not in examples:
            called = ast.unparse(node.func).rpartition(".")[2]
            assert called not in CALLS_TO_THEM, f"{name}:{node.lineno}: call through bus/outbound.py."
