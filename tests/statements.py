"""Every SQL statement of the code base, as its source has it: for tests that look at all of them."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
_BEGINS = re.compile(r"\s*(SELECT|INSERT INTO|INSERT OR|UPDATE \w+ SET|DELETE FROM|WITH \w+)\b")


class Statement(NamedTuple):
    """`text` is None where only the running program knows it: a part of it is a local name."""

    module: str
    line: int
    text: str | None


def statements_of(path: Path) -> Iterator[Statement]:
    """What begins like a statement in one module; values of module-level names are filled in."""
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    namespace: dict[str, Any] = {}
    for node in _texts(tree):
        if not _BEGINS.match(_beginning(node)):
            continue
        if not namespace:
            namespace = vars(importlib.import_module(module))
        yield Statement(module, node.lineno, _value(node, namespace))


def _texts(tree: ast.AST) -> Iterator[ast.Constant | ast.JoinedStr]:
    """Texts, outermost first; not docstrings, nor the parts of a text."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str)):
            yield node
            continue
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.Expr) or not isinstance(child.value, ast.Constant):
                waiting.append(child)


def _beginning(node: ast.Constant | ast.JoinedStr) -> str:
    first = node if isinstance(node, ast.Constant) else node.values[0]
    return str(first.value) if isinstance(first, ast.Constant) else ""


def _value(node: ast.Constant | ast.JoinedStr, namespace: dict[str, Any]) -> str | None:
    code = compile(ast.Expression(ast.copy_location(node, node)), "statement", "eval")
    try:
        return str(eval(code, dict(namespace)))  # noqa: S307
    except NameError:
        return None
