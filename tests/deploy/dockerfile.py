"""Reads the Dockerfile and .dockerignore: the stages with their instructions, and the files that the builder is given."""

from __future__ import annotations

import json
import re
import shlex
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from bus.settings import ROOT


class Instruction(NamedTuple):
    """One step: the word in capitals, what follows it, and its options (`--from=build`)."""

    word: str
    text: str
    options: dict[str, str]

    @property
    def words(self) -> list[str]:
        """The arguments: of the JSON form, or as a shell would split them."""
        return list(json.loads(self.text)) if self.text.startswith("[") else shlex.split(self.text)

    @property
    def command(self) -> list[str]:
        """What is executed: the JSON form as it is, anything else by a shell."""
        return self.words if self.text.startswith("[") else ["/bin/sh", "-c", self.text]


class Stage(NamedTuple):
    """What stands between two FROMs."""

    base: str
    name: str
    steps: list[Instruction]

    def last(self, word: str) -> Instruction:
        """The last instruction of this kind, which is the one that counts. Raises IndexError."""
        return [step for step in self.steps if step.word == word][-1]

    def settings(self) -> dict[str, str]:
        """What ENV sets, all of them together."""
        pairs = [word.partition("=") for step in self.steps if step.word == "ENV" for word in step.words]
        return {name: value for name, _, value in pairs}


def stages(path: Path = ROOT / "Dockerfile") -> list[Stage]:
    """The stages, in order."""
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    steps = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
    found: list[Stage] = []
    for step in steps:
        word, _, rest = step.partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            found.append(Stage(base, name, []))
        else:
            found[-1].steps.append(_instruction(word, rest))
    return found


def _instruction(word: str, rest: str) -> Instruction:
    options: dict[str, str] = {}
    while word in ("COPY", "HEALTHCHECK") and (option := re.match(r"--([a-z-]+)=(\S+)\s+", rest)):
        options[option[1]] = option[2]
        rest = rest[option.end() :]
    if word == "HEALTHCHECK":
        rest = rest.removeprefix("CMD ")
    return Instruction(word, rest, options)


def context(names: list[str], ignore: Path = ROOT / ".dockerignore") -> list[str]:
    """Those of the files that reach the builder: the last line of .dockerignore that fits a name or its folder decides."""
    lines = [line.strip() for line in ignore.read_text().splitlines()]
    rules = [(line.removeprefix("!"), line[0] == "!") for line in lines if line and line[0] != "#"]
    return [name for name in names if _is_kept(name, rules)]


def _is_kept(name: str, rules: list[tuple[str, bool]]) -> bool:
    parts = name.split("/")
    above = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
    fits = [keeps for pattern, keeps in rules if any(_fits(place, pattern) for place in above)]
    return fits[-1] if fits else True


def _fits(place: str, pattern: str) -> bool:
    if pattern.startswith("**/"):
        return fnmatchcase(place.rpartition("/")[2], pattern[3:])
    return place.count("/") == pattern.count("/") and fnmatchcase(place, pattern)
