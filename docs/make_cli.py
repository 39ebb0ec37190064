"""Writes docs/cli.md from the commands of bus/cli, the one place where a verb is described.

    python docs/make_cli.py

A test compares the page with what this would write.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bus.cli.examples import EXAMPLES  # noqa: E402  # found by the line above
from bus.cli.main import cli  # noqa: E402
from bus.cli.options import JSON_HELP  # noqa: E402
from bus.cli.sections import verbs  # noqa: E402

HEAD = """\
# The command line

<!-- Made from bus/cli by `make docs`; edit there. -->

`python -m bus` sends, follows, works, looks, mends and administers. `python -m bus --help` lists the verbs, and each has a
`--help` with examples: this page is the same.

<!-- snippets: held by tests/unit/cli/test_help.py -->

| | |
|---|---|
| where the bus is | `--url`, or `MESSAGE_BUS_URL`; `http://127.0.0.1:5001` if neither is given |
| who asks | `--api-key`, or `MESSAGE_BUS_API_KEY` or `API_KEY` (better: other users see command lines) |
| output | what a program reads goes to stdout; questions, progress and remarks go to stderr |
| `--json` | one JSON object a line, of every verb that reads. Messages come as JSON in a pipe, too |
| colours | on a terminal only; none with `NO_COLOR=1` |
| the Tab key | `python -m bus completion bash >> ~/.bashrc` makes a command `bus` that completes verbs and options |

| exit code | means |
|---|---|
| 0 | done |
| 1 | something was refused, or failed |
| 2 | the bus can't be reached, or the command is wrong |
| 3 | a request has no answer yet |
| 128 + n | ended by signal n: 130 is Ctrl-C |

`doctor` and `health` have codes of their own, said below.
"""

COMMON = frozenset({"url", "api_key", "help"})
"""Options that are told of once, above; and `--json`, where it means just that."""


def page() -> str:
    """The text of docs/cli.md."""
    parts = [HEAD]
    for heading, names in cli.sections.items():
        parts.append(f"\n## {heading}\n")
        for name in names:
            command = cli.commands[name]
            if isinstance(command, click.Group):
                parts.append(f"\n### {name}\n\n{_prose(command)}\n")
                parts += [_verb(f"{name} {path}", verb, "####") for path, verb in verbs(command)]
            else:
                parts.append(_verb(name, command, "###"))
    return "".join(parts)


def _verb(path: str, command: click.Command, level: str) -> str:
    with click.Context(command, info_name=path) as context:
        usage = " ".join(command.collect_usage_pieces(context))
        rows = [_option(option, context) for option in command.params if isinstance(option, click.Option)]
    told = "".join(row for row in rows if row)
    table = f"\n| option | |\n|---|---|\n{told}" if told else ""
    examples = "".join(f"python -m bus {line}\n" for line in EXAMPLES[path])
    return f"\n{level} {path}\n\n`python -m bus {path} {usage}`\n\n{_prose(command)}\n{table}\n```sh\n{examples}```\n"


def _prose(command: click.Command) -> str:
    """The help, but for blocks that are kept as they are: those are examples."""
    blocks = inspect.cleandoc(command.help or "").split("\n\n")
    return "\n\n".join(block for block in blocks if not block.startswith("\b"))


def _option(option: click.Option, context: click.Context) -> str:
    record = option.get_help_record(context)
    if record is None or option.name in COMMON or option.help == JSON_HELP:
        return ""
    spelled, about = (text.replace("|", "\\|") for text in record)
    return f"| `{spelled}` | {about} |\n"


if __name__ == "__main__":
    (ROOT / "docs" / "cli.md").write_text(page(), encoding="utf-8")
