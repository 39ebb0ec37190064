"""Signed ingress: what senders of webhooks post becomes a message, once, and only if it is signed."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bus.settings import ROOT
from bus.testing import HOST, Answer, BusServer
from tests.calls import call, inbox, payloads
from tests.ingress_calls import FORM, JSON, SCHEMES, SECRET, events, fresh_body, headers_for, integrate, logged, post
from tests.refusals import check

NOW = 1_800_000_000
SERVER_ENV = {"BUS_EXTENSIONS": "tests.ingress_seams"}
TIMED = ("botlyne", "standard-webhooks", "stripe", "slack")


def refused(answer: Answer) -> bool:
    """Whether this is how a bad signature is answered."""
    check(answer, 401, "bad_signature")
    return True


# ---- what is taken


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_signed_webhook_becomes_a_message(each_server: BusServer, scheme: str) -> None:
    made = integrate(each_server, scheme, f"of-{scheme}", type="hook")
    body = fresh_body(scheme)
    answer = post(each_server, made, body)
    assert (answer.status, answer.body["status"]) == (202, "accepted"), answer
    (message,) = inbox(each_server, f"of-{scheme}")["messages"]
    assert (message["id"], message["seq"]) == (answer.body["message_id"], answer.body["seq"])
    assert (message["from"], message["type"], message["verified"]) == (f"${made['id']}", "hook", True)
    assert message["headers"]["webhook-scheme"] == scheme
    if scheme == "twilio":
        assert message["payload"] == {"MessageSid": body[11:].partition(b"&")[0].decode(), "Body": "a & b"}
    else:
        assert message["payload"] == json.loads(body)
    assert all(client["client"] != message["from"] for client in call(each_server, "GET", "/api/clients")["clients"])
    (event,) = events(each_server, made)
    assert (event["outcome"], event["message_id"], event["address"]) == ("accepted", message["id"], "127.0.0.1")


def test_both_paths_and_any_host_lead_in(server: BusServer) -> None:
    made = integrate(server, "github")
    body = fresh_body()
    path = made["path"].replace("/api/v1/", "/api/")
    headers = {**headers_for(made, body), "Host": "a-tunnel.example.com", "Origin": "https://elsewhere.example"}
    assert server.call("POST", path, raw=body, headers=headers).status == 202


def test_a_body_is_passed_on_byte_for_byte(server: BusServer) -> None:
    made = integrate(server, to="bytes")
    body = b'{"n": 1.10, "big": 12345678901234567890123, "s": "\\u05e9"}'
    assert post(server, made, body).status == 202
    raw = http.client.HTTPConnection(HOST, server.port, timeout=10)
    raw.request("GET", "/api/messages?to=bytes")
    assert body in raw.getresponse().read()
    raw.close()


def test_messages_go_where_and_how_the_integration_says(server: BusServer) -> None:
    made = integrate(server, "botlyne", "queue:hooks", sender="vendor", priority="high", ttl=60)
    assert post(server, made).status == 202
    (item,) = call(server, "POST", "/api/queues/hooks/claim", {"client": "taker"})["messages"]
    assert (item["from"], item["priority"], item["requires_ack"]) == ("vendor", "high", True)
    assert item["expires_at"]
    several = integrate(server, to=["one", "two"], require_ack=True)
    assert post(server, several).status == 202
    assert inbox(server, "one")["messages"][0]["to"] == ["one", "two"]


def test_a_template_makes_the_payload(server: BusServer) -> None:
    template = {
        "what": {"$": "/issue/title"},
        "who": {"$": "/by", "default": "nobody"},
        "event": {"$header": "X-GitHub-Event"},
    }
    made = integrate(server, "github", "templated", template=template)
    assert made["template"] == template
    assert post(server, made, b'{"issue": {"title": "T"}}', event="issues").status == 202
    assert payloads(inbox(server, "templated")["messages"]) == [{"what": "T", "who": "nobody", "event": "issues"}]
    call(server, "PATCH", f"/api/integrations/{made['id']}", {"template": None, "type": "whole"})
    assert post(server, made, b'{"issue": 2}').status == 202
    assert payloads(inbox(server, "templated")["messages"])[1] == {"issue": 2}


# ---- what is refused


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_body_that_was_written_anew_or_another_secret_is_401(server: BusServer, scheme: str) -> None:
    made = integrate(server, scheme, f"wrong-{scheme}")
    body = fresh_body(scheme)
    headers = headers_for(made, body)
    changed = (
        body.replace(b"&Body", b"&body") if scheme == "twilio" else json.dumps(json.loads(body), indent=1).encode()
    )
    assert refused(server.call("POST", made["path"], raw=changed, headers=headers))
    assert refused(post(server, made, secret="another secret"))
    assert refused(server.call("POST", made["path"], raw=body))
    assert inbox(server, f"wrong-{scheme}")["count"] == 0
    assert logged(server, made, "bad_signature", 3)
    assert server.call("POST", made["path"], raw=body, headers=headers).status == 202


def test_an_unknown_integration_is_answered_as_a_bad_signature(server: BusServer) -> None:
    made = integrate(server)
    body = fresh_body()
    bad = server.call("POST", made["path"], raw=body + b" ", headers=headers_for(made, body))
    for path in ("in-0123456789abcdef", "x", "%00", "in-none", "..", "a" * 3000):
        unknown = server.call("POST", f"/api/v1/integrations/webhook/{path}", raw=body, headers=headers_for(made, body))
        assert refused(unknown)
        assert {**unknown.body, "request_id": ""} == {**bad.body, "request_id": ""}
        assert set(unknown.headers) == set(bad.headers)


@pytest.fixture(scope="module")
def stopped() -> Iterator[BusServer]:
    """A server at which it is always NOW."""
    with BusServer(env={**SERVER_ENV, "INGRESS_NOW": str(NOW)}) as running:
        yield running


@pytest.mark.parametrize("scheme", TIMED)
def test_299_seconds_are_taken_and_301_are_not(stopped: BusServer, scheme: str) -> None:
    made = integrate(stopped, scheme, f"timed-{scheme}")
    for off in (-299, 299, -300, 300):
        assert post(stopped, made, stamp=NOW + off).status == 202, off
    for off in (-301, 301, -(10**8)):
        check(post(stopped, made, stamp=NOW + off), 401, "stale_signature")
    assert inbox(stopped, f"timed-{scheme}")["count"] == 4
    assert logged(stopped, made, "stale", 3)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_replay_is_409_on_every_worker(server4: BusServer, scheme: str) -> None:
    made = integrate(server4, scheme, f"once-{scheme}")
    body = fresh_body(scheme)
    headers = headers_for(made, body)
    assert server4.call("POST", made["path"], raw=body, headers=headers).status == 202
    workers = set()
    while len(workers) < 4:
        again = server4.call("POST", made["path"], raw=body, headers=headers)
        check(again, 409, "replayed")
        workers.add(again.headers["x-worker"])
    assert inbox(server4, f"once-{scheme}")["count"] == 1


def test_of_many_at_once_one_is_taken(server4: BusServer) -> None:
    made = integrate(server4, to="race")
    body = fresh_body()
    headers = headers_for(made, body)
    with ThreadPoolExecutor(16) as pool:
        statuses = list(
            pool.map(lambda _: server4.call("POST", made["path"], raw=body, headers=headers).status, range(64))
        )
    assert (statuses.count(202), statuses.count(409)) == (1, 63)
    assert inbox(server4, "race")["count"] == 1
    assert logged(server4, made, "replayed", 63)


def test_without_a_secret_nothing_is_taken(server: BusServer) -> None:
    made = call(server, "POST", "/api/integrations", {"scheme": "stripe", "to": "desk"})
    assert (made["state"], made["secrets"], "secret" in made) == ("no_secret", [], False)
    for secret in ("no secret", "x" * 8):
        assert refused(post(server, made, secret=secret))
    assert logged(server, made, "no_secret", 2)
    call(server, "POST", f"/api/integrations/{made['id']}/rotate", {"secret": SECRET})
    assert post(server, made).status == 202


def test_the_body_is_bounded_and_comes_as_it_was_signed(server: BusServer) -> None:
    made = integrate(server)
    large = b'"' + b"x" * 1024 * 1024 + b'"'
    check(post(server, made, large), 413, "too_large")
    body = fresh_body()
    coded = {**headers_for(made, body), "Content-Encoding": "gzip"}
    check(server.call("POST", made["path"], raw=body, headers=coded), 415, "unsupported_media_type")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "bad_json"),
        (b"no json", "bad_json"),
        (b'{"a": NaN}', "bad_json"),
        (b'"\xff\xfe"', "bad_utf8"),
        (b"[" * 5000 + b"]" * 5000, "too_deep"),
        (b"[" * 100_000, "too_deep"),
        (b'{"a": "\\ud800"}', "bad_json"),
    ],
)
def test_garbage_that_is_signed_is_400(server: BusServer, body: bytes, code: str) -> None:
    for scheme in ("botlyne", "github", "slack", "stripe"):
        answer = post(server, integrate(server, scheme, "garbage"), body)
        assert (answer.status, answer.body["code"]) == (400, code)
    assert inbox(server, "garbage")["count"] == 0


def test_a_body_is_no_deeper_than_any_message_whatever_a_template_takes_of_it(server: BusServer) -> None:
    made = integrate(server, template={"$": "/x"})
    assert post(server, made, b'{"x": 1, "deep": %b%b}' % (b"[" * 31, b"]" * 31)).status == 202
    check(post(server, made, b'{"x": 1, "deep": %b%b}' % (b"[" * 32, b"]" * 32)), 400, "too_deep", "body")


def test_a_proxy_that_is_trusted_says_whose_address_it_is(fresh_server: Any) -> None:
    server = fresh_server(env={"TRUSTED_PROXIES": "127.0.0.1", "ALLOWED_WEBHOOK_IPS": "192.0.2.0/24"})
    made = integrate(server)
    for forwarded, status in (("192.0.2.7", 202), ("192.0.2.7, 198.51.100.1", 403), ("198.51.100.1, 192.0.2.7", 202)):
        body = fresh_body()
        headers = {**headers_for(made, body), "X-Forwarded-For": forwarded}
        assert server.call("POST", made["path"], raw=body, headers=headers).status == status
    assert events(server, made, outcome="accepted")[0]["address"] == "192.0.2.7"


def test_a_template_that_makes_too_much_is_413(server: BusServer) -> None:
    made = integrate(server, template=[{"$": "/x"}] * 100)
    check(post(server, made, b'{"x": "%b"}' % (b"x" * 20_000)), 413, "too_large")


# ---- what each vendor does beside


def test_githubs_ping_is_answered_and_is_no_message(server: BusServer) -> None:
    made = integrate(server, "github", "github")
    pong = post(server, made, b'{"zen": "Design for failure."}', event="ping")
    assert (pong.status, pong.body) == (200, {"status": "pong"})
    assert post(server, made, b'{"zen": "Design for failure."}', event="ping").status == 409
    assert inbox(server, "github")["count"] == 0
    assert events(server, made, outcome="ping")[0]["event"] == "ping"


def test_a_delivery_of_github_comes_once_and_its_body_too(server: BusServer) -> None:
    """Neither header is signed: so a known body under a new id is a replay, and so is a known id."""
    made = integrate(server, "github", "deliveries")
    assert post(server, made, b'{"a": 1}', delivery="guid-1", event="push").status == 202
    check(post(server, made, b'{"a": 1}', delivery="guid-2"), 409, "replayed")
    check(post(server, made, b'{"a": 2}', delivery="guid-1"), 409, "replayed")
    assert post(server, made, b'{"a": 2}', delivery="guid-2").status == 202
    first = inbox(server, "deliveries")["messages"][0]
    assert first["headers"] == {"webhook-scheme": "github", "webhook-event": "push", "webhook-delivery": "guid-1"}


def test_slack_hears_its_challenge(server: BusServer) -> None:
    made = integrate(server, "slack", "slack")
    body = json.dumps({"type": "url_verification", "token": "t", "challenge": "3eZbrw1aBm2rZgRNFdxV"}).encode()
    answer = post(server, made, body)
    assert (answer.status, answer.body) == (200, {"challenge": "3eZbrw1aBm2rZgRNFdxV"})
    assert refused(server.call("POST", made["path"], raw=body))
    assert inbox(server, "slack")["count"] == 0


def test_forms_of_slack_and_github_are_read(server: BusServer) -> None:
    made = integrate(server, "slack", "forms")
    for body in (b"command=%2Fweather&text=94070&text=2", b"payload=%7B%22type%22%3A%22block_actions%22%7D"):
        headers = {**headers_for(made, body), "Content-Type": FORM}
        assert server.call("POST", made["path"], raw=body, headers=headers).status == 202
    assert payloads(inbox(server, "forms")["messages"]) == [
        {"command": "/weather", "text": ["94070", "2"]},
        {"type": "block_actions"},
    ]


@pytest.mark.parametrize(
    ("scheme", "body"),
    [
        ("stripe", {"id": "evt_again", "type": "invoice.paid"}),
        ("slack", {"event_id": "Ev_again", "event": {"type": "message"}}),
        ("standard-webhooks", {"type": "user.created"}),
    ],
)
def test_what_is_sent_again_under_a_new_signature_is_the_message_of_then(
    server: BusServer, scheme: str, body: dict[str, Any]
) -> None:
    """Their senders try again until they hear 2xx: a 409 would have them do so for days."""
    made = integrate(server, scheme, f"again-{scheme}")
    text = json.dumps(body).encode()
    headers = headers_for(made, text, delivery="msg_again")
    first = server.call("POST", made["path"], raw=text, headers=headers)
    assert first.status == 202
    again = post(server, made, text + b" ", delivery="msg_again")
    assert (again.status, again.body) == (202, {**first.body, "duplicate": True})
    check(server.call("POST", made["path"], raw=text, headers=headers), 409, "replayed")
    assert inbox(server, f"again-{scheme}")["count"] == 1
    (duplicate,), (accepted,) = (events(server, made, outcome=outcome) for outcome in ("duplicate", "accepted"))
    assert duplicate["delivery"] == accepted["delivery"]
    assert accepted["event"] == body.get("type", "message")


def test_twilio_signs_the_url_with_its_query(server: BusServer) -> None:
    made = integrate(server, "twilio", "called")
    body = fresh_body("twilio")
    with_query = {**made, "path": f"{made['path']}?leg=%41&x=1"}
    headers = headers_for(with_query, body)
    assert refused(server.call("POST", made["path"], raw=body, headers=headers))
    assert refused(server.call("POST", f"{made['path']}?leg=A&x=1", raw=body, headers=headers))
    assert server.call("POST", with_query["path"], raw=body, headers=headers).status == 202
    unsigned = {**headers_for(made, b""), "Content-Type": JSON}
    assert refused(server.call("POST", made["path"], raw=b'{"not": "signed"}', headers=unsigned))


# ---- who may, and how often


def test_addresses_are_looked_at_once_the_signature_is_right(fresh_server: Any) -> None:
    server = fresh_server(env={"ALLOWED_WEBHOOK_IPS": "10.0.0.0/8,192.0.2.1"})
    default = integrate(server)
    check(post(server, default), 403, "address_not_allowed")
    assert refused(post(server, default, secret="another secret"))
    assert post(server, integrate(server, allowed_ips=["127.0.0.1"])).status == 202
    assert post(server, integrate(server, allowed_ips=["127.0.0.0/8", "::1"])).status == 202
    assert post(server, integrate(server, allowed_ips=[])).status == 202
    call(server, "PATCH", f"/api/integrations/{default['id']}", {"allowed_ips": []})
    assert post(server, default).status == 202
    assert logged(server, default, "address_not_allowed")


def test_a_rate_holds_over_all_workers(server4: BusServer) -> None:
    made = integrate(server4, to="rated", rate={"count": 5, "seconds": 3600})
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: post(server4, made), range(24)))
    assert sorted(answer.status for answer in answers) == [202] * 5 + [429] * 19
    limited = next(answer for answer in answers if answer.status == 429)
    assert limited.body["code"] == "rate_limited"
    assert 600 <= int(limited.headers["retry-after"]) <= 721
    assert refused(post(server4, made, secret="another secret"))
    assert inbox(server4, "rated")["count"] == 5


@pytest.mark.one_node("exact limits")
def test_with_auth_on_wrong_signatures_are_counted_and_good_ones_are_not(fresh_server: Any) -> None:
    key = {"X-API-Key": "a-key-for-the-tests"}
    server = fresh_server(env={"API_KEY": key["X-API-Key"], "RATE_LIMIT_UNAUTHENTICATED_PER_MINUTE": "10"})
    made = server.call("POST", "/api/integrations", {"scheme": "github", "to": "desk", "secret": SECRET}, key).body
    assert [post(server, made).status for _ in range(20)] == [202] * 20
    wrong = [post(server, made, secret="another secret").status for _ in range(12)]
    assert (set(wrong), wrong[:10]) == ({401, 429}, [401] * 10)


def test_a_paused_integration_asks_for_another_try_and_a_deleted_one_is_unknown(each_server: BusServer) -> None:
    made = integrate(each_server)
    path = f"/api/integrations/{made['id']}"
    assert call(each_server, "POST", f"{path}/pause")["state"] == "paused"
    body = fresh_body()
    headers = headers_for(made, body)
    answer = each_server.call("POST", made["path"], raw=body, headers=headers)
    check(answer, 503, "paused")
    assert answer.headers["retry-after"] == "60"
    assert refused(each_server.call("POST", made["path"], raw=body + b" ", headers=headers))
    assert call(each_server, "POST", f"{path}/resume")["state"] == "enabled"
    assert each_server.call("POST", made["path"], raw=body, headers=headers).status == 202
    assert call(each_server, "DELETE", path) == {"status": "deleted", "id": made["id"]}
    assert refused(post(each_server, made))
    assert each_server.call("GET", path).status == 404


def test_two_secrets_are_valid_while_one_is_changed(each_server: BusServer) -> None:
    made = integrate(each_server, "stripe")
    path = f"/api/integrations/{made['id']}/rotate"
    new = call(each_server, "POST", path, {"secret": "a new secret", "grace_seconds": 60})
    assert (new["secret"], len(new["secrets"])) == ("a new secret", 2)
    assert post(each_server, made).status == 202
    assert post(each_server, made, secret="a new secret").status == 202
    body = fresh_body()
    both = ",v1=".join(
        headers_for(made, body, secret=secret, stamp=2**31)["Stripe-Signature"].partition(",v1=")[2]
        for secret in (SECRET, "a new secret")
    )
    check(
        each_server.call("POST", made["path"], raw=body, headers={"Stripe-Signature": f"t={2**31},v1={both}"}),
        401,
        "stale_signature",
    )
    call(each_server, "POST", path, {"secret": "the third secret", "grace_seconds": 0})
    assert refused(post(each_server, made))
    assert refused(post(each_server, made, secret="a new secret"))
    assert post(each_server, made, secret="the third secret").status == 202


# ---- settings, secrets, and what lasts


def test_the_default_secret_holds_where_an_integration_has_none(fresh_server: Any) -> None:
    server = fresh_server(env={"WEBHOOK_SIGNATURE_SECRET": "the default secret", "API_KEY": "a-key-for-the-tests"})
    key = {"X-API-Key": "a-key-for-the-tests"}
    assert server.call("POST", "/api/integrations", {"scheme": "github", "to": "desk"}).status == 401
    made = server.call("POST", "/api/integrations", {"scheme": "github", "to": "desk"}, key).body
    assert (made["state"], "secret" in made) == ("enabled", False)
    assert post(server, made, secret="the default secret").status == 202
    assert refused(post(server, made))
    own = server.call("POST", "/api/integrations", {"scheme": "github", "to": "desk", "secret": SECRET}, key).body
    assert post(server, own).status == 202
    assert refused(post(server, own, secret="the default secret"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WEBHOOK_SIGNATURE_SECRET", "a-guess"),
        ("WEBHOOK_SIGNATURE_SECRET", "whsec_this is no base64"),
        ("ALLOWED_WEBHOOK_IPS", "10.0.0.1/8"),
        ("ALLOWED_WEBHOOK_IPS", "vendor.example.com"),
    ],
)
def test_a_setting_that_can_not_hold_stops_the_start(tmp_path: Path, name: str, value: str) -> None:
    environment = {"PATH": "", "DATA_DIR": str(tmp_path), name: value}
    command = [sys.executable, "-c", "import server_ws"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode != 0, f"StartRefused: {name}" in done.stderr) == (True, True)
    assert value not in done.stderr.partition("StartRefused")[2]


def test_secrets_are_in_no_file_and_no_log(fresh_server: Any) -> None:
    server = fresh_server(env={"SECRET_KEY": "canary-of-the-secret-key"})
    made = integrate(server, secret="canary-of-an-integration")
    assert post(server, made, secret="canary-of-an-integration").status == 202
    assert refused(post(server, made, secret="canary-of-a-stranger"))
    rotated = call(server, "POST", f"/api/integrations/{made['id']}/rotate", {})["secret"]
    listed = json.dumps(call(server, "GET", "/api/integrations")) + json.dumps(events(server, made))
    assert server.terminate() == 0
    files = b"".join(path.read_bytes() for path in server.data_dir.rglob("*") if path.is_file())
    for secret in ("canary-of-an-integration", "canary-of-a-stranger", "canary-of-the-secret-key", rotated):
        assert secret not in listed
        assert secret.encode() not in files
        assert secret not in server.log


def test_what_looks_at_messages_looks_at_these_too(fresh_server: Any) -> None:
    server = fresh_server(env={"BUS_EXTENSIONS": "tests.contract.third_party"})
    check(post(server, integrate(server, type="forbidden")), 400, "not_wanted", "type")
    assert post(server, integrate(server, to="stamped", type="stamped")).status == 202
    assert inbox(server, "stamped")["messages"][0]["headers"]["stamped"] == "yes"


def test_a_crash_loses_nothing_and_doubles_nothing(fresh_server: Any) -> None:
    """Requests that were answered stand in the log; all others can be sent again, and then each stands there once."""
    server: BusServer = fresh_server(workers=2)
    made = integrate(server, to="crashed")
    signed = [(body, headers_for(made, body)) for body in (fresh_body() for _ in range(400))]
    answered: list[bytes] = []
    enough = threading.Event()

    def send(pair: tuple[bytes, dict[str, str]]) -> None:
        try:
            if server.call("POST", made["path"], raw=pair[0], headers=pair[1], timeout_seconds=5).status == 202:
                answered.append(pair[0])
        except (OSError, http.client.HTTPException):
            pass
        if len(answered) >= 100:
            enough.set()

    with ThreadPoolExecutor(8) as pool:
        sending = [pool.submit(send, pair) for pair in signed]
        assert enough.wait(30)
        server.kill()
        for future in sending:
            future.result()
    server.start()
    before = payloads(inbox(server, "crashed", limit=1000, since="earliest")["messages"])
    assert {json.loads(body)["n"] for body in answered} <= {payload["n"] for payload in before}
    again = [server.call("POST", made["path"], raw=body, headers=headers).status for body, headers in signed]
    assert (again.count(409), again.count(202)) == (len(before), 400 - len(before))
    after = payloads(inbox(server, "crashed", limit=1000, since="earliest")["messages"])
    assert sorted(payload["n"] for payload in after) == sorted(json.loads(body)["n"] for body, _ in signed)


@pytest.mark.one_node("each counts for itself")
def test_what_comes_is_counted(server: BusServer) -> None:
    def counted(outcome: str) -> float:
        text = server.call("GET", "/metrics").body
        found = re.search(rf'^bus_ingress_webhooks_total{{outcome="{outcome}"}} (\S+)$', text, re.MULTILINE)
        assert found is not None
        return float(found[1])

    made = integrate(server)
    body = fresh_body()
    headers = headers_for(made, body)
    before = [counted("accepted"), counted("replayed"), counted("bad_signature"), counted("unknown")]
    for _ in range(3):
        server.call("POST", made["path"], raw=body, headers=headers)
    post(server, made, secret="another secret")
    post(server, {**made, "path": f"{made['path']}0"})
    names = ("accepted", "replayed", "bad_signature", "unknown")
    assert [counted(name) for name in names] == [before[0] + 1, before[1] + 2, before[2] + 1, before[3] + 1]


# ---- the surface


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("scheme", "md5"),
        ("to", "all of you"),
        ("to", []),
        ("type", "a b"),
        ("sender", "topic:x"),
        ("secret", "short"),
        ("priority", "urgent"),
        ("ttl", -1),
        ("allowed_ips", ["10.0.0.1/8"]),
        ("allowed_ips", ["localhost"]),
        ("rate", {"count": 0}),
        ("rate", {"count": 1, "seconds": 0}),
        ("template", {"$": "x"}),
        ("public_url", "ftp://x"),
        ("public_url", "https://me@example.com"),
        ("public_url", "https://example.com/?a=b"),
        ("public_url", "https://exa mple.com"),
        ("require_ack", "perhaps"),
        ("description", "x" * 501),
    ],
)
def test_what_can_not_work_is_refused_when_it_is_made(server: BusServer, field: str, value: object) -> None:
    before = call(server, "GET", "/api/integrations", limit=1000)["integrations"]
    body = {"scheme": "botlyne", "to": "desk", "secret": SECRET, field: value}
    answer = server.call("POST", "/api/integrations", body)
    assert (answer.status, answer.body.get("field")) == (400, field), answer
    if field not in ("scheme", "secret"):
        changed = server.call("PATCH", f"/api/integrations/{before[0]['id']}", {field: value})
        assert (changed.status, changed.body.get("field")) == (400, field), changed
    assert call(server, "GET", "/api/integrations", limit=1000)["integrations"] == before


def test_twilio_needs_its_url_and_broadcasts_need_no_ack(server: BusServer) -> None:
    body = {"scheme": "twilio", "to": "desk", "secret": SECRET}
    assert server.call("POST", "/api/integrations", body).body["field"] == "public_url"
    body = {"scheme": "botlyne", "to": "all", "require_ack": True}
    assert server.call("POST", "/api/integrations", body).body["code"] == "ack_needs_names"


def test_integrations_and_events_come_in_pages(server: BusServer) -> None:
    made = [integrate(server) for _ in range(3)]
    ids, cursor, more = [], "0", True
    while more:
        page = call(server, "GET", "/api/integrations", limit=2, cursor=cursor)
        ids += [each["id"] for each in page["integrations"]]
        cursor, more = page["cursor"], page["more"]
    assert ids[-3:] == [each["id"] for each in made]
    for _ in range(3):
        assert post(server, made[0]).status == 202
    path = f"/api/integrations/{made[0]['id']}/events"
    first = call(server, "GET", path, limit=2)
    rest = call(server, "GET", path, limit=2, cursor=first["cursor"])
    assert (len(first["events"]), first["more"], len(rest["events"]), rest["more"]) == (2, True, 1, False)
    assert server.call("GET", f"{path}?cursor=x").status == 400
