"""Every SQL statement of the code base, as its source has it: for tests that look at all of them."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
_BEGINS = re.compile(r"\s*(SELECT|INSERT (INTO|OR)|UPDATE \w+ SET|DELETE FROM|WITH (RECURSIVE )?\w+ (\(|AS))")

_GAP = re.compile(r"\{\w*\}")
"""What `str.format` fills."""


class Statement(NamedTuple):
    """One of a module. `whole`: `text` is what runs; else `text` is a pattern that fits it, since a part of it is only
    known where it runs."""

    place: str
    text: str
    whole: bool

    def fits(self, text: str) -> bool:
        """True for what this may become."""
        return self.text == text if self.whole else re.fullmatch(self.text, text, re.DOTALL) is not None


def statements_of(file: Path) -> Iterator[Statement]:
    """What begins like a statement in one module: in its code, and in the texts that it makes when it is imported."""
    module = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    found = [node for node in _texts(ast.parse(file.read_text(encoding="utf-8"))) if _BEGINS.match(_beginning(node))]
    if not found:
        return
    names = vars(importlib.import_module(module))
    seen = set()
    for node in found:
        text, whole = _value(node, names)
        seen.add(text)
        yield Statement(f"{module}:{node.lineno}", text, whole)
    for name, value in list(names.items()):
        for text in _texts_in(value):
            if _BEGINS.match(text) and text not in seen and not _GAP.search(text):
                yield Statement(f"{module}:{name}", text, whole=True)


def _texts(tree: ast.AST) -> Iterator[ast.Constant | ast.JoinedStr]:
    """Texts in the order of the code; not what stands alone, as docstrings do, nor the parts of a text."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.JoinedStr) or (isinstance(child, ast.Constant) and isinstance(child.value, str)):
            yield child
        elif isinstance(child, ast.BinOp) and isinstance(child.op, ast.Add):
            yield ast.copy_location(ast.JoinedStr(_added(child)), child)
        elif not isinstance(child, ast.Expr) or not isinstance(child.value, ast.Constant):
            yield from _texts(child)


def _added(node: ast.expr) -> list[ast.expr]:
    """What is put together by `+`, as the parts of one text."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [*_added(node.left), *_added(node.right)]
    if isinstance(node, ast.JoinedStr):
        return node.values
    return [node if isinstance(node, ast.Constant) else ast.FormattedValue(node, -1)]


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, tuple | list):
        yield from (text for text in value if isinstance(text, str))
    elif isinstance(value, dict):
        yield from (text for text in value.values() if isinstance(text, str))


def _beginning(node: ast.Constant | ast.JoinedStr) -> str:
    first = node if isinstance(node, ast.Constant) else next(iter(node.values), None)
    return str(first.value) if isinstance(first, ast.Constant) else ""


def _value(node: ast.Constant | ast.JoinedStr, names: dict[str, Any]) -> tuple[str, bool]:
    """The text, and whether it is whole: with the values of the module's names, but not of local ones."""
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    texts = [_part(part, names) for part in parts]
    if all(whole for _, whole in texts):
        return "".join(text for text, _ in texts), True
    return "".join(re.escape(text) if whole else text for text, whole in texts), False


def _part(part: ast.expr, names: dict[str, Any]) -> tuple[str, bool]:
    if isinstance(part, ast.Constant):
        text = str(part.value)
        gaps = _GAP.split(text)
        return (text, True) if len(gaps) == 1 else (".*".join(map(re.escape, gaps)), False)
    assert isinstance(part, ast.FormattedValue)
    code = compile(ast.fix_missing_locations(ast.Expression(part.value)), "statement", "eval")
    try:
        return format(eval(code, dict(names)), ""), True
    except NameError:
        return ".*", False
