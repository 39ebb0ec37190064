"""The documented snippets of webhooks run as they are printed; only the hosts are local ones."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from datetime import datetime, timezone
from ipaddress import ip_network
from typing import Any

import pytest
from flask import Flask, request

from bus.client.webhooks import WebhookReceiver
from bus.outbound import Guard, Outbound
from bus.settings import ROOT
from bus.testing import eventually
from bus.webhooks import signing
from tests.conftest import require
from tests.sinks import Sink
from tests.unit.webhooks.test_chats import check_slack

MANAGER = """
from webhooks import WebhookManager, WebhookEndpoint, WebhookEvent

# Create manager
webhook_mgr = WebhookManager()
webhook_mgr.start_worker()

# Register Slack webhook
slack_endpoint = WebhookEndpoint(
    url="https://hooks.slack.com/services/YOUR/WEBHOOK/URL",
    events={WebhookEvent.ERROR_OCCURRED, WebhookEvent.MESSAGE_FAILED},
    secret="webhook_secret_123"
)
webhook_mgr.register(slack_endpoint)

# Trigger webhook when error occurs
webhook_mgr.trigger(WebhookEvent.ERROR_OCCURRED, {
    'error': 'Database connection failed',
    'timestamp': datetime.now(timezone.utc).isoformat()
})
"""

SLACK = """
from webhooks import SlackWebhook, WebhookEvent

SlackWebhook.send(
    webhook_url="https://hooks.slack.com/services/...",
    event=WebhookEvent.MESSAGE_SENT,
    data={'from': 'code', 'to': 'browser', 'text': 'Hello'}
)
"""

ALERT = """
from webhooks import WebhookManager, WebhookEvent, SlackWebhook

webhook_mgr = WebhookManager()
webhook_mgr.start_worker()

# Get Slack notification when errors occur
SlackWebhook.send(
    webhook_url="https://hooks.slack.com/services/...",
    event=WebhookEvent.ERROR_OCCURRED,
    data={'error': 'Database connection failed'}
)
"""

SHORT = "SlackWebhook.send(webhook_url, WebhookEvent.ERROR_OCCURRED, error_data)"

VERIFY = """
payload = request.json
signature = request.headers.get('X-Webhook-Signature')

valid = webhook_mgr.verify_signature(payload, signature, 'secret123')
if not valid:
    return 'Invalid signature', 403
"""


@pytest.fixture(autouse=True)
def local_receivers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEBHOOK_ALLOWED_TARGETS", "127.0.0.0/8")


def run(snippet: str, sink: Sink, **names: Any) -> dict[str, Any]:
    """Run a snippet with its hosts replaced; what it has defined."""
    defined: dict[str, Any] = {"datetime": datetime, "timezone": timezone, **names}
    exec(re.sub(r'"https://hooks[^"]*"', repr(sink.url), snippet), defined)
    return defined


def test_a_manager_tells_its_endpoint() -> None:
    with Sink() as sink:
        manager = run(MANAGER, sink)["webhook_mgr"]
        (hit,) = sink.wait_for(1)
        eventually(lambda: manager.get_stats()["total_delivered"] == 1)
        manager.stop_worker()
    assert json.loads(hit.body)["data"]["error"] == "Database connection failed"
    assert signing.verify_signature(hit.body, hit.headers["x-webhook-signature"], "webhook_secret_123")


@pytest.mark.parametrize("snippet", [SLACK, ALERT, SHORT])
def test_slack_gets_a_message(snippet: str) -> None:
    with Sink() as sink:
        known: dict[str, Any] = {"webhook_url": sink.url, "error_data": {"error": "Database connection failed"}}
        run(f"from webhooks import SlackWebhook, WebhookEvent\n{snippet}", sink, **known)
        (hit,) = sink.wait_for(1)
    check_slack(json.loads(hit.body))


@pytest.mark.parametrize(("secret", "status"), [("secret123", 200), ("secret124", 403)])
def test_a_receiver_verifies_what_came(secret: str, status: int) -> None:
    indented = "".join(f"    {line}\n" for line in VERIFY.splitlines())
    defined: dict[str, Any] = {"request": request}
    exec(
        f"from webhooks import WebhookManager\nwebhook_mgr = WebhookManager()\ndef view():\n{indented}    return 'ok'",
        defined,
    )
    app = Flask("receiver")
    app.add_url_rule("/", view_func=defined["view"], methods=["POST"])
    raw = b'{"event": "message.sent",  "data": {"n": 1e3}}'
    headers = {"X-Webhook-Signature": signing.sign_body(secret, raw)}
    answer = app.test_client().post("/", data=raw, headers=headers, content_type="application/json")
    assert answer.status_code == status


def test_the_file_runs_its_example() -> None:
    done = subprocess.run(
        [sys.executable, "webhooks.py"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert '"type":"message.sent"' in done.stdout
    assert "signature: right" in done.stdout
    assert "total_delivered: 2" in done.stdout
    assert "Traceback" not in done.stderr


def test_the_snippets_of_the_page_for_receivers_run() -> None:
    page = (ROOT / "docs" / "receiving_webhooks.md").read_text()
    snippets = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(snippets) == 2
    app = Flask("receiver")
    handled: list[Any] = []
    secret = signing.new_secret()
    for snippet in snippets:
        defined: dict[str, Any] = {"app": app, "print": handled.append}
        exec(snippet.replace("whsec_…", secret), defined)
    raw = b'{"type":"order.paid","data":{}}'
    headers = signing.headers("evt-1", int(time.time()), raw, [secret])
    assert app.test_client().post("/hooks", data=raw, headers=headers).status_code == 204
    assert app.test_client().post("/hooks", data=raw, headers=headers).status_code == 200
    assert app.test_client().post("/hooks", data=raw + b" ", headers=headers).status_code == 401
    assert handled == [json.loads(raw)]
    assert isinstance(defined["receiver"], WebhookReceiver)


@pytest.mark.parametrize(("changed", "status"), [(b"", 204), (b" ", 401)])
def test_the_snippet_of_the_page_for_receivers_in_javascript_runs(changed: bytes, status: int) -> None:
    page = (ROOT / "docs" / "receiving_webhooks.md").read_text()
    (snippet,) = re.findall(r"```js\n(.*?)```", page, re.DOTALL)
    secret, raw = signing.new_secret(), b'{"type":"order.paid","data":{"n":1}}'
    headers = signing.headers("evt-1", int(time.time()), raw, [secret])
    script = snippet.replace("./webhook_receiver.mjs", (ROOT / "clients" / "webhook_receiver.mjs").as_uri())
    given = (
        f"const request = {{ headers: {json.dumps(headers)} }}, rawBody = Buffer.from({(raw + changed).decode()!r});"
    )
    command = [require("node"), "--input-type=module", "-e"]
    told = subprocess.run(
        [*command, f"{given}\n{script.replace('whsec_…', secret)}\nconsole.log(status);"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert told.stdout.splitlines()[-1:] == [str(status)], told.stderr
    assert ("order.paid" in told.stdout) == (status == 204)


def test_the_snippets_of_the_page_on_webhooks_alone_run() -> None:
    page = (ROOT / "docs" / "webhooks_alone.md").read_text()
    first, second = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    with Sink() as sink:
        defined: dict[str, Any] = {}
        exec(first.replace("https://example.com/hooks", sink.url).replace("whsec_…", signing.new_secret()), defined)
        (hit,) = sink.wait_for(1)
        defined["manager"].stop_worker()
        assert json.loads(hit.body)["type"] == "order.paid"
        exec(re.sub(r'"https://[^"]*"', repr(sink.url), second), {})
        assert ["blocks" in json.loads(hit.body) for hit in sink.wait_for(3)[1:]] == [True, False]


def test_the_example_of_a_receiver_shows_each_event_once() -> None:
    secret = signing.new_secret()
    command = [sys.executable, "-u", "-m", "examples.webhook_receiver", secret, "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        outbound = Outbound(Guard([ip_network("127.0.0.0/8")]))
        raw = b'{"type":"order.paid","data":{"n":1}}'
        headers = signing.headers("evt-1", int(time.time()), raw, [secret])
        for expected in (204, 200):
            assert outbound.request("POST", url, headers=headers, body=raw, timeout_seconds=10).status == expected
        assert outbound.request("POST", url, headers={}, body=raw, timeout_seconds=10).status == 401
        assert "evt-1" in process.stdout.readline()
        process.terminate()
        assert process.stdout.read() == ""
