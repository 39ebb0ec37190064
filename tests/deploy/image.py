"""The Dockerfile carried out by hand, and the result run as an engine would: no engine is needed, but root on Linux.

The base image is this machine's root file system, with `python` being Debian's; what a step writes goes to an overlay in
memory, which ends with the namespace that it is mounted in. A container gets namespaces of its own for mounts, network and
processes, a root file system that is read-only, and the image's user without any capability.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

from bus.settings import ROOT
from bus.testing import eventually
from tests.closing import Closing
from tests.conftest import can_not_run, require
from tests.deploy.dockerfile import Instruction, Stage, context, stages

PROGRAMS = ("chroot", "ip", "mount", "nsenter", "setpriv", "tar", "unshare")
BASE_PATH = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
SECONDS_A_STEP = 300

HOLD = 'mount -t tmpfs -o mode=755 tmpfs "$1" && echo ready && read _'
BEGIN = """
set -e
mkdir -p "$1/upper" "$1/work" "$1/root"
mount -t overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" overlay "$1/root"
mount --rbind /dev "$1/root/dev"
mount -t proc proc "$1/root/proc"
mount -t tmpfs -o mode=1777 tmpfs "$1/root/tmp"
ln -sf /usr/bin/python3 "$1/root/usr/local/bin/python"
"""
RUN = """
set -e
root=$1 data=$2 volume=$3; shift 3
ip link set lo up
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=1777,size=64m tmpfs "$root/tmp"
mount --bind "$data" "$root$volume"
exec chroot "$root" "$@"
"""


class Builder(Closing):
    """A mount namespace in which stages are built. Nothing of it is left when it is closed."""

    def __init__(self, folder: Path) -> None:
        for program in PROGRAMS:
            require(program)
        if os.geteuid() != 0:
            can_not_run("Carrying out the Dockerfile takes root, for mounts and a user of another number.")
        asked = ["/usr/bin/python3", "-c", "import pip, venv, ensurepip, sys; sys.exit(sys.version_info < (3, 11))"]
        if subprocess.run(asked, capture_output=True, check=False).returncode:
            can_not_run("Debian's python3 (3.11 or newer), python3-venv and python3-pip stand in for the base image.")
        self.folder = folder
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", HOLD, "sh", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != "ready\n":
            self.close()
            can_not_run("Nothing can be mounted here.")

    def inside(self, *command: str) -> list[str]:
        """The command as it is called in the namespace."""
        return ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", *command]

    def do(self, *command: str, data: bytes = b"") -> bytes:
        """Call a command in the namespace. Raises AssertionError with what it said when it fails."""
        done = subprocess.run(self.inside(*command), input=data, capture_output=True, timeout=SECONDS_A_STEP)
        assert done.returncode == 0, (
            f"{command} failed:\n{(done.stdout + done.stderr).decode(errors='replace')[-3000:]}"
        )
        return done.stdout

    def build(self, **arguments: str) -> Image:
        """Carry out every step of every stage; `arguments` are ARGs. Raises AssertionError at the first that fails."""
        roots: dict[str, str] = {}
        for number, stage in enumerate(stages()):
            place = f"{self.folder}/{number}"
            self.do("sh", "-c", BEGIN, "sh", place)
            Building(self, stage, f"{place}/root", roots, arguments).carry_out()
            roots[stage.name] = f"{place}/root"
        return Image(self, stage, place)

    def close(self) -> None:
        """End the namespace, and with it everything that was mounted in it."""
        self._holder.communicate("\n")


class Building:
    """One stage on its way."""

    def __init__(
        self, builder: Builder, stage: Stage, root: str, roots: dict[str, str], arguments: dict[str, str]
    ) -> None:
        self._builder, self._stage, self._root, self._roots = builder, stage, root, roots
        self._folder = "/"
        self._arguments = arguments
        self._environment = {"PATH": BASE_PATH, "HOME": "/root"} | {
            name: value
            for name, value in os.environ.items()
            if name.upper().startswith(("PIP_", "SSL_", "HTTPS_", "HTTP_"))
        }

    def carry_out(self) -> None:
        """Every step, in order; those that only describe are left to `Image`."""
        for step in self._stage.steps:
            if step.word == "RUN":
                variables = [f"{name}={value}" for name, value in self._environment.items()]
                self._builder.do(
                    "chroot", self._root, "env", "-i", "-C", self._folder, *variables, "/bin/sh", "-c", step.text
                )
            elif step.word == "COPY":
                self._copy(step)
            elif step.word == "WORKDIR":
                self._folder = step.text
                self._builder.do("mkdir", "-p", self._root + step.text)
            elif step.word == "ARG":
                name, _, default = step.words[0].partition("=")
                self._environment[name] = self._arguments.get(name, default)
            elif step.word == "ENV":
                self._environment |= dict(word.split("=", 1) for word in step.words)
            else:
                assert step.word in ("USER", "VOLUME", "EXPOSE", "HEALTHCHECK", "CMD"), (
                    f"{step.word} is not known here."
                )

    def _copy(self, step: Instruction) -> None:
        *sources, target = step.words
        if "from" in step.options:
            (source,) = sources
            self._builder.do("cp", "--archive", self._roots[step.options["from"]] + source, self._root + target)
            return
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for name, place in copied(sources, target.removeprefix("./")):
                archive.add(ROOT / name, os.path.join(self._folder, place).lstrip("/"))
        self._builder.do("tar", "-x", "--no-same-owner", "-C", self._root, data=packed.getvalue())


def copied(sources: Sequence[str], target: str) -> list[tuple[str, str]]:
    """What COPY takes from the context, and where it puts it: (file, place)."""
    files = [
        str(path.relative_to(ROOT))
        for pattern in ("*", "bus/**/*", "extensions/**/*", "clients/**/*")
        for path in ROOT.glob(pattern)
    ]
    given = context([name for name in files if (ROOT / name).is_file()])
    pairs = []
    for source in sources:
        for name in given:
            if source.endswith("/") and name.startswith(source):
                pairs.append((name, target + name.removeprefix(source)))
            elif "/" not in name and Path(name).match(source):
                pairs.append((name, target + name))
    assert pairs, f"COPY {sources} finds nothing in the context."
    return pairs


class Image:
    """What was built: a root file system, and how it is to be run."""

    def __init__(self, builder: Builder, stage: Stage, place: str) -> None:
        self.builder, self.stage = builder, stage
        self.root, self.written = f"{place}/root", f"{place}/upper"

    def command(self, *command: str, env: dict[str, str] | None = None) -> list[str]:
        """A command as the image's user calls it, from within the root file system."""
        user, group = self.stage.last("USER").text.split(":")
        without = ["--clear-groups", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
        variables = [f"{name}={value}" for name, value in (self.stage.settings() | (env or {})).items()]
        folder = self.stage.last("WORKDIR").text
        return [
            "/usr/bin/setpriv", f"--reuid={user}", f"--regid={group}", *without,
            "/usr/bin/env", "-i", "-C", folder, *variables, *command,
        ]  # fmt: skip

    def volume(self, folder: Path) -> Path:
        """A new volume, which an engine makes as the image's folder of that name is: its owner and its mode."""
        (place,) = self.stage.last("VOLUME").words
        user, group, mode = self.builder.do("stat", "--format=%u %g %a", self.root + place).split()
        folder.mkdir()
        os.chown(folder, int(user), int(group))
        folder.chmod(int(mode, 8))
        return folder


class Container:
    """A running image: process 1 of its own world, with a volume. Its network holds its own loopback only."""

    def __init__(self, image: Image, volume: Path, log: Path, env: dict[str, str] | None = None) -> None:
        self.image = image
        self._env = env or {}
        (place,) = image.stage.last("VOLUME").words
        apart = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child"]
        command = image.command(*image.stage.last("CMD").command, env=env)
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                image.builder.inside(*apart, "sh", "-c", RUN, "sh", image.root, str(volume), place, *command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        self.pid = int(eventually(children.read_text, what="the container's first process"))

    def call(self, *command: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Call a command in it, as `docker exec` does."""
        within = ["nsenter", f"--target={self.pid}", "--mount", "--net", "--pid", "--root", "--wd=/"]
        called = [*within, *self.image.command(*command, env=self._env | (env or {}))]
        return subprocess.run(called, capture_output=True, text=True, timeout=60)

    def is_healthy(self) -> bool:
        """What the image's health check says."""
        return self.call(*self.image.stage.last("HEALTHCHECK").command).returncode == 0

    def stop(self, number: int) -> int:
        """Send its first process a signal, and wait for its exit code."""
        os.kill(self.pid, number)
        return self._process.wait(60)

    def close(self) -> None:
        """Kill what is left."""
        if self._process.poll() is None:
            os.kill(self.pid, signal.SIGKILL)  # its world ends with it; who dropped rights outlives a parent's death
            self._process.wait(10)
