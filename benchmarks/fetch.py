"""`python -m benchmarks peers`: fetch what npm and pip can bring, and say what else is missing and how to get it.

Everything goes into build/benchmark-peers, or where BENCHMARK_PEERS says; nothing else of the machine is touched.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks import peers
from benchmarks.systems import CACHE

HERE = Path(__file__).resolve().parent / "peers"


def fetch() -> None:
    """Install into the cache; a tool that is missing or fails ends the program with its own words."""
    python, node = CACHE / "python", CACHE / "node"
    node.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "venv", str(python)], check=True)
    quietly = ["--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [str(python / "bin" / "python"), "-m", "pip", "install", *quietly, "-r", str(HERE / "requirements.txt")],
        check=True,
    )
    if shutil.which("npm"):
        shutil.copy(HERE / "package.json", node)
        subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--no-package-lock"], cwd=node, check=True)
    for system in peers.all_peers():
        print(f"{system.name:20} {system.missing or system.version}")
