"""The snippets of the documents: which there are, what holds each, and how one is run.

A snippet is a fenced block. What is data is checked as it stands: `json` is JSON, `yaml` YAML, `env` settings that load.
What is code (`sh`, `bash`, `console`, `python`, `js`, `javascript`) needs an HTML comment, on a line of its own above it:

    <!-- snippet: run -->            it is run, in the page's folder, against the page's server
    <!-- snippet: run after -->      python: with all blocks that the page has run before in front of it
    <!-- snippet: run until done --> as `run`, but the block goes on in the background, and is ended with the page
    <!-- snippet: browser -->        it runs in a page of the bus, in Chromium
    <!-- snippet: held by tests/… --> another test reads this page and runs it
    <!-- snippet: not run: … -->     why nobody can run it here

`<!-- snippets: … -->` says the same of all blocks that follow. `<!-- server: A=b C=d -->` gives the page a server of its
own, with these settings. A `console` block shows commands, behind `$ `, and what they print; `…` stands for any
text, and how many spaces there are does not count.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bus.settings import ROOT, Settings
from bus.testing import BusServer, eventually

CODE = ("sh", "bash", "console", "python", "js", "javascript")
DATA = ("json", "yaml", "env")
SHOWN = ("text", "http", "mermaid")
"""What a block may be: to be run, to be read by a parser, or to be looked at."""

PATIENCE_SECONDS = 60.0
_FOLDERS = ("*.md", "llms.txt", "docs/**/*.md", "examples/*.md", "clients/**/*.md")
DOCUMENTS = [path for glob in _FOLDERS for path in sorted(ROOT.glob(glob)) if "node_modules" not in path.parts]
"""The pages for users. Those of benchmarks describe machines and commands that take an hour."""

_FENCE = re.compile(r"^(?P<indent> *)```(?P<label>[^\n`]*)\n(?P<text>.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE)
_MARKER = re.compile(r"^ *<!-- (?P<many>snippets?): (?P<what>.*?) -->$", re.MULTILINE | re.DOTALL)
_SERVER = re.compile(r"^<!-- server:?(?P<settings>.*?)-->$", re.MULTILINE)
_SEPARATOR = "\x1e"
_SAME = (
    (re.compile(r"msg-[0-9a-f]{12}-[0-9a-z]+"), "msg-…"),
    (re.compile(r"\b[0-9a-f]{12}:(?=[\d…])"), "<epoch>:"),
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?(?:\+00:00|Z)?"), "<time>"),
)
"""What differs from run to run, and what stands for it in what is compared."""


class Snippet(NamedTuple):
    """One fenced block: the page, its line, the fence's words, what the marker says, and the text."""

    page: Path
    line: int
    language: str
    how: str
    text: str

    @property
    def name(self) -> str:
        """Where it stands, for people."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def snippets(page: Path) -> list[Snippet]:
    """The fenced blocks of a page, in order."""
    text = page.read_text()
    markers = list(_MARKER.finditer(text))
    found, default, used = [], "", 0
    for fence in _FENCE.finditer(text):
        how = default
        while used < len(markers) and markers[used].start() < fence.start():
            marker = markers[used]
            used += 1
            what = " ".join(marker["what"].split())
            if marker["many"] == "snippets":
                how = default = what
            elif text[marker.end() : fence.start()].strip() == "":
                how = what
        line = text.count("\n", 0, fence.start()) + 1
        language = fence["label"].split()[0] if fence["label"].strip() else ""
        found.append(Snippet(page, line, language, how, textwrap.dedent(fence["text"])))
    return found


def idle_markers(page: Path) -> list[str]:
    """Markers of one block that stand above none."""
    text = page.read_text()
    alone = [marker for marker in _MARKER.finditer(text) if marker["many"] == "snippet"]
    return [m["what"] for m in alone if not re.match(r"\s*```", text[m.end() :])]


def server_settings(page: Path) -> dict[str, str] | None:
    """The settings of the server that a page wants for itself; None if any server does."""
    found = _SERVER.search(page.read_text())
    return None if found is None else dict(pair.split("=", 1) for pair in shlex.split(found["settings"]))


def is_run(snippet: Snippet) -> bool:
    """True for what `Session` runs."""
    return snippet.how.startswith("run")


class Session:
    """A reader of one page: a folder that looks like a clone, a server, and what was started in the background.

    Not thread-safe. `close` ends what goes on.
    """

    def __init__(self, server: BusServer, folder: Path) -> None:
        self._server = server
        self._folder = folder
        self._ran: dict[str, list[str]] = {}
        self._going: list[subprocess.Popen[bytes]] = []
        for entry in ROOT.iterdir():
            if entry.name not in (".git", ".venv", ".env", "data"):
                (folder / entry.name).symlink_to(entry)
        (folder / ".venv").symlink_to(Path(sys.executable).parent.parent)
        self._env = {name: value for name, value in os.environ.items() if not name.startswith("COV_")}
        self._env.update({name.upper(): "" for name in Settings.__struct_fields__})
        self._env.update(
            PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            PYTHONPATH=str(folder),
            PYTHONUNBUFFERED="1",
            PYTHONWARNINGS="error::ResourceWarning",
            DATA_DIR=str(server.data_dir),
            MESSAGE_BUS_URL=server.url,
            MESSAGE_BUS_API_KEY=server.env.get("API_KEY", ""),
        )

    def run(self, snippet: Snippet) -> None:
        """Run a block. Raises AssertionError with what it printed, when it fails or a console shows something else."""
        text = self._here(snippet.text)
        if snippet.language == "console":
            self._console(snippet, text)
        elif snippet.how == "run until done":
            self._going.append(self._start(snippet, self._command(snippet.language, text)))
        else:
            before = self._ran.setdefault(snippet.language, [])
            whole = "\n".join([*before, text]) if snippet.how == "run after" else text
            self._finish(snippet, self._command(snippet.language, whole))
            before.append(text)

    def close(self) -> None:
        """End what goes on in the background; what has ended by itself must have succeeded."""
        ended = [process for process in self._going if process.poll() is not None]
        for process in self._going:
            if process not in ended:
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(PATIENCE_SECONDS)
        failed = [process for process in ended if process.returncode != 0]
        assert not failed, f"{failed[0].args!r} ended with {failed[0].returncode} in the background."

    def _here(self, text: str) -> str:
        """The text with the place of this server instead of the documented one."""
        return re.sub(r"(?:localhost|127\.0\.0\.1):5001", f"127.0.0.1:{self._server.port}", text)

    def _command(self, language: str, text: str) -> list[str]:
        if language == "python":
            return [sys.executable, "-c", text]
        if language in ("js", "javascript"):
            return ["node", "--input-type=module", "-e", text]
        return ["bash", "-eo", "pipefail", "-c", text]

    def _start(self, snippet: Snippet, command: list[str]) -> subprocess.Popen[bytes]:
        """Start what goes on, and wait for its first word, or its connection: it is at work then."""
        before = self._connections()
        path = self._folder / f"background-{snippet.line}.log"
        with path.open("wb") as log:
            process = subprocess.Popen(
                command,
                cwd=self._folder,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        eventually(
            lambda: path.stat().st_size or process.poll() is not None or self._connections() > before,
            within_seconds=PATIENCE_SECONDS,
            what=f"a word of {snippet.name}",
        )
        return process

    def _connections(self) -> int:
        headers = {"X-API-Key": self._server.env.get("API_KEY", "")}
        return int(self._server.call("GET", "/api/status", headers=headers).body["connections"]["active"])

    def _finish(self, snippet: Snippet, command: list[str]) -> str:
        done = subprocess.run(
            command,
            cwd=self._folder,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{snippet.name} ends with {done.returncode} and says:\n{done.stdout}"
        return done.stdout

    def _console(self, snippet: Snippet, text: str) -> None:
        pairs = list(exchanges(text))
        assert pairs, f"{snippet.name} shows no command behind `$ `."
        script = "\n".join(f"{command}\nprintf '%b' '\\x1e'" for command, _ in pairs)
        printed = self._finish(snippet, ["bash", "-eo", "pipefail", "-c", script]).split(_SEPARATOR)
        for (command, shown), got in zip(pairs, printed, strict=False):
            assert matches(shown, got), f"{snippet.name}: `{command}` printed\n{got}\nbut the page shows\n{shown}"


def exchanges(text: str) -> Iterator[tuple[str, str]]:
    """The commands of a console block, with what is shown below each."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        lines = part.split("\n")
        length = 1
        while lines[length - 1].endswith("\\"):
            length += 1
        yield "\n".join(lines[:length]), "\n".join(lines[length:])


def matches(shown: str, got: str) -> bool:
    """True when a command printed what a page shows, but for ids, times and what `…` stands for."""
    pattern = re.escape(_plain(shown)).replace("…", ".*?")
    return re.fullmatch(pattern, _plain(got), re.DOTALL) is not None


def _plain(text: str) -> str:
    for what, stands in _SAME:
        text = what.sub(stands, text)
    return re.sub(r" +", " ", re.sub(r"127\.0\.0\.1:\d+", "<bus>", text)).strip()
