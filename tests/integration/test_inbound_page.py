"""What docs/inbound_webhooks.md shows runs as it stands: in a shell, in Python, in JavaScript."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from bus.ingress import journal, schemes, signatures, template
from bus.settings import ROOT
from bus.testing import BusServer
from tests.calls import inbox, payloads
from tests.conftest import require
from tests.ingress_calls import SECRET, integrate

PAGE = (ROOT / "docs" / "inbound_webhooks.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def run(command: list[str], server: BusServer, **more: str) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "MESSAGE_BUS_URL": server.url, **more}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_shells_snippets_run(server: BusServer) -> None:
    for program in ("bash", "curl", "openssl"):
        require(program)
    first, sign = blocks("sh")
    answer = json.loads(run(["bash", "-euo", "pipefail", "-c", first], server))
    assert answer["status"] == "accepted"
    (message,) = inbox(server, "desk")["messages"]
    assert (message["id"], message["type"], message["payload"]) == (answer["message_id"], "order", {"order": 17})
    shown = json.loads(run(["bash", "-c", sign], server))
    expected = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"  # of GitHub's documentation
    assert shown["headers"]["X-Hub-Signature-256"] == expected


def test_the_functions_post(server: BusServer) -> None:
    made = integrate(server, to="functions")
    url = server.url + made["path"]
    (python,), (script,) = blocks("python"), blocks("js")
    names: dict[str, object] = {}
    exec(python, names)
    assert names["post"](url, SECRET, {"from": "שלום"})["status"] == "accepted"  # type: ignore[operator]
    calling = f'{script}\nconsole.log(JSON.stringify(await post("{url}", "{SECRET}", {{ from: "javascript" }})));'
    told = run([require("node"), "--input-type=module", "-e", calling], server)
    assert json.loads(told)["status"] == "accepted"
    assert payloads(inbox(server, "functions")["messages"]) == [{"from": "שלום"}, {"from": "javascript"}]


def test_its_template_and_its_numbers_are_those_of_the_code() -> None:
    for made in blocks("json"):
        template.check(made.strip().encode())
    assert (journal.KEPT_US, journal.MAX_TAKEN, journal.MAX_REFUSED) == (90 * 86400 * 10**6, 1_000_000, 100_000)
    assert (signatures.TOLERANCE_US, schemes.MILLISECONDS_FROM) == (300 * 10**6, 10**11)
    assert (template.MAX_TEMPLATE_BYTES, template.MAX_REFERENCES) == (16 * 1024, 100)
    table = PAGE.partition("| scheme | headers")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `([a-z-]+)` \|", table, re.MULTILINE) == list(schemes.SCHEMES)
