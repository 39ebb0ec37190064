"""JavaScript modules put together as one: a reader asks once, and never gets files of two versions.

The modules keep to a form that is read by the line: `import { … } from "./….js";`, `export { … } from "./….js";`, and
`export` in front of a declaration. They share one scope then, so no two of them may give the same name to different
things; who loads the module would be told at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

_FROM = re.compile(r'^(import|export) (\{[^}]*\}) from "(\.[^"]*)";\n', re.MULTILINE)
_TYPES = re.compile(r"^/\*\* @(?:import|typedef \{import\().*\*/\n", re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async function|function|class|const)\b)", re.MULTILINE)


def put_together(entry: Path) -> str:
    """The module of a file and all that it imports, each once, below what it needs. It exports what the file does.

    Raises FileNotFoundError for a module that is imported and not there.
    """
    entry = entry.resolve()
    seen: set[Path] = set()

    def parts(file: Path) -> Iterator[str]:
        seen.add(file)
        text = file.read_text(encoding="utf-8")
        for found in _FROM.finditer(text):
            target = (file.parent / found[3]).resolve()
            if target not in seen:
                yield from parts(target)
        text = _FROM.sub(lambda found: f"export {found[2]};\n" if found[1] == "export" else "", _TYPES.sub("", text))
        yield text if file == entry else _EXPORT.sub("", text)

    return "\n".join(parts(entry))
