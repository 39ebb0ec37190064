"""`python -m bus integrations`: real processes, a real server."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from bus.settings import ROOT
from bus.testing import BusServer
from tests.calls import inbox, payloads
from tests.ingress_calls import fresh_body, headers_for, logged, post
from tests.integration.test_cli import environment, run


def ok(server: BusServer, *arguments: str, given: str = "") -> str:
    done = run(server.url, "integrations", *arguments, given=given)
    assert (done.returncode, done.stderr) == (0, ""), done
    return str(done.stdout)


def signed(*arguments: str) -> str:
    """What `sign` prints; it asks no server."""
    command = [sys.executable, "-m", "bus", "integrations", "sign", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True).stdout


def test_an_integration_from_its_making_to_its_end(server: BusServer, tmp_path: Path) -> None:
    template = tmp_path / "template.json"
    template.write_text('{"n": {"$": "/n"}}')
    options = ["--to", "a", "--to", "b", "--type", "hook", "--allow", "127.0.0.1", "--rate", "100", "--from", "vendor"]
    options += ["--template", f"@{template}", "--description", "of the test", "--secret", "-"]
    made = json.loads(ok(server, "add", "stripe", *options, given="a secret of the vendor\n"))
    assert (made["to"], made["rate"], made["allowed_ips"]) == (["a", "b"], {"count": 100, "seconds": 60}, ["127.0.0.1"])
    assert post(server, made, b'{"n": 5, "type": "paid"}').status == 202
    assert payloads(inbox(server, "b")["messages"]) == [{"n": 5}]
    assert "of the test" in ok(server, "list")
    assert json.loads(ok(server, "show", made["id"]))["secrets"] == ["***"]
    assert ok(server, "rotate", made["id"], "--secret", "-", "--grace", "0", given="a new secret\n") == "a new secret\n"
    assert post(server, made).status == 401
    ok(server, "pause", made["id"])
    assert post(server, made, secret="a new secret").status == 503
    ok(server, "resume", made["id"])

    for outcome in ("accepted", "bad_signature", "paused"):
        logged(server, made, outcome)
    lines = ok(server, "events", made["id"], "--json").splitlines()
    assert sorted(json.loads(line)["outcome"] for line in lines) == ["accepted", "bad_signature", "paused"]
    table = ok(server, "events", "--outcome", "accepted")
    assert "paid" in table
    assert ok(server, "delete", made["id"], "--yes") == "Deleted.\n"
    assert made["id"] not in ok(server, "list")


def test_what_sign_prints_is_taken(server: BusServer) -> None:
    made = json.loads(ok(server, "add", "botlyne", "--to", "signed"))
    body = fresh_body().decode()
    vector = json.loads(signed("botlyne", "--secret", made["secret"], "--body", body))
    answer = server.call("POST", made["path"], raw=vector["body"].encode(), headers=vector["headers"])
    assert answer.status == 202
    fixed = ["stripe", "--secret", "a secret of the vendor", "--timestamp", "1800000000", "--body", body]
    shown = json.loads(signed(*fixed))["headers"]
    assert shown == headers_for({"scheme": "stripe", "path": ""}, body.encode(), stamp=1_800_000_000)
    quoted = signed(*fixed, "--curl", "--target", "http://127.0.0.1/it's")
    assert quoted.startswith("curl -X POST 'http://127.0.0.1/it'\"'\"'s' -H 'Content-Type: application/json'")


def test_what_can_not_be_is_said_in_one_line(server: BusServer) -> None:
    for arguments in (["add", "twilio", "--to", "x", "--secret", "12345678"], ["show", "in-none"]):
        done = run(server.url, "integrations", *arguments)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    bad = run(server.url, "integrations", "add", "github", "--to", "x", "--template", "{")
    assert (bad.returncode, "not JSON" in bad.stderr) == (2, True)
