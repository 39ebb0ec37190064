"""What docs/identity.md shows works as it is printed, but for where the bus is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any

import jwt

from bus.settings import ROOT
from bus.testing import BusServer
from tests.issuer import AUDIENCE, ISSUER, claims
from tests.rawws import RawWebSocket
from tests.refusals import KEY, check

PAGE = (ROOT / "docs" / "identity.md").read_text()
SECRET = "a secret of thirty-two bytes, or more"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def test_the_commands_and_the_snippets_work(fresh_server: Any) -> None:
    env = {
        "JWT_SECRET": SECRET,
        "JWT_ISSUER": ISSUER,
        "JWT_AUDIENCE": AUDIENCE,
        "ALLOWED_ORIGINS": "https://app.example",
    }
    server: BusServer = fresh_server(env={"API_KEY": KEY, **env})
    environ = {**os.environ, "MESSAGE_BUS_URL": server.url, "MESSAGE_BUS_API_KEY": KEY, "JWT_SECRET": SECRET}

    (shown,) = blocks("sh")
    commands = "\n".join(line for line in shown.splitlines() if not line.startswith("export"))
    path = f"{os.path.dirname(sys.executable)}:{environ['PATH']}"
    done = subprocess.run(
        ["sh", "-ec", commands], cwd=ROOT, env={**environ, "PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "bus_dev_" in done.stdout

    tokens, tickets = blocks("python")
    run(tokens, environ, "print(token)")
    bought = run(tickets, environ, "print(ticket)")
    origin = {"Origin": "https://app.example"}
    with RawWebSocket(server.port, f"/ws/alice?ticket={bought}", origin) as socket:
        assert socket.read_json()["type"] == "connection_confirmed"
    revoked = jwt.encode(claims("alice", jti="7c1f"), SECRET, "HS256")
    check(server.call("GET", "/api/auth/me", headers={"X-API-Key": revoked}), 401, "bad_credential")


def run(snippet: str, environ: dict[str, str], then: str) -> str:
    """What a snippet prints, with one more line at its end."""
    done = subprocess.run(
        [sys.executable, "-c", f"{snippet}\n{then}"], cwd=ROOT, env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
