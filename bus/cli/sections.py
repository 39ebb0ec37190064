"""The help that teaches: verbs under headings, examples below each, and what exit codes mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import click

EXIT_CODES = """\
Exit codes: 0 done; 1 something was refused, or failed; 2 the bus can't be reached, or the command is wrong;
3 a request has no answer yet; 128 + n ended by signal n."""


class Sections(click.Group):
    """A group that lists its verbs under headings, in the order in which they were added."""

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)  # type: ignore[arg-type]  # as click's own
        self.sections: dict[str, list[str]] = {}

    def add_section(self, heading: str, commands: Sequence[click.Command]) -> None:
        """Add verbs under a heading."""
        for command in commands:
            self.add_command(command)
        self.sections[heading] = [command.name or "" for command in commands]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's
        """Write the verbs under their headings."""
        for heading, names in self.sections.items():
            with formatter.section(heading):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(limit=130)) for name in names])


def verbs(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """Each verb below a group, by its path: `keys create`."""
    for name, command in group.commands.items():
        here = (*path, name)
        if isinstance(command, click.Group):
            yield from verbs(command, here)
        else:
            yield " ".join(here), command


def teach(group: click.Group, examples: Mapping[str, Sequence[str]]) -> None:
    """Put its examples below the help of each verb."""
    for path, command in verbs(group):
        if lines := examples.get(path):
            command.epilog = "\b\nExamples:\n" + "\n".join(f"  python -m bus {line}" for line in lines)
