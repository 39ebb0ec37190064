"""What an examination finds: a name, how it is, a sentence, and the cure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import click
import msgspec

from bus.cli.listing import coloured
from bus.cli.show import printable

Level = Literal["ok", "warning", "wrong"]
_RANKS: dict[str, int] = {"ok": 0, "warning": 1, "wrong": 2}


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at. `cure` is empty where there is nothing to do."""

    check: str
    level: Level
    message: str
    cure: str = ""


def ok(check: str, message: str) -> Finding:
    """All is well."""
    return Finding(check, "ok", message)


def warning(check: str, message: str, cure: str) -> Finding:
    """It works, and should be looked at."""
    return Finding(check, "warning", message, cure)


def wrong(check: str, message: str, cure: str) -> Finding:
    """It does not work, or messages are at stake."""
    return Finding(check, "wrong", message, cure)


def worst(findings: Iterable[Finding]) -> int:
    """0: all is well, 1: something should be looked at, 2: something is wrong."""
    return max((_RANKS[finding.level] for finding in findings), default=0)


def show(findings: Iterable[Finding]) -> None:
    """Print them for a person: a line each, and the cure below."""
    for finding in findings:
        mark = coloured(finding.level, f"{finding.level:8}")
        click.echo(f"{mark} {finding.check:12} {printable(finding.message)}")
        if finding.cure:
            click.echo(f"{'':21} → {printable(finding.cure)}")
