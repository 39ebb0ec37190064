"""Running webhooks: secrets, pauses, tests, limits, receivers that are ill beside such that are well, chats, the CLI."""

from __future__ import annotations

import json
import stat
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from standardwebhooks import Webhook, WebhookVerificationError

from bus.cli import cli
from bus.client.webhooks import WebhookReceiver
from bus.guard import REASONS
from bus.testing import BusServer, eventually
from bus.webhooks.signing import new_secret
from tests import certificates
from tests.calls import call, send, send_all
from tests.scraped import scrape
from tests.sinks import Sink, answer, in_turn, silent
from tests.webhook_calls import ENV, data_of, drop, hook, settled, stats

SERVER_ENV = ENV


# ---- secrets


@pytest.mark.one_node("a key in a file")
def test_secrets_are_shown_once_and_stand_nowhere_in_the_files_and_without_the_key_an_endpoint_says_so(
    fresh_server: Callable[..., BusServer], sink: Sink
) -> None:
    server = fresh_server(env=ENV)
    token = "a-token-that-nobody-may-read"
    made = hook(server, sink, headers={"Authorization": token})
    slack = call(server, "POST", "/api/webhooks", {"url": sink.url + "/T0/B0/hidden", "kind": "slack", "events": ["x"]})
    send(server, "anybody")
    sink.wait_for(1)
    assert sink.hits[0].headers["authorization"] == token
    shown = json.dumps(call(server, "GET", "/api/webhooks")) + json.dumps(
        call(server, "GET", f"/api/webhooks/{made['id']}")
    )
    secret = made["secret"]
    assert slack["url"].endswith("/…")
    assert not [text for text in (secret, token, "hidden") if text in shown]
    server.terminate()
    for file in Path(server.data_dir).rglob("*"):
        if file.is_file() and file.name != "webhooks.key":
            found = file.read_bytes()
            assert not [text for text in (secret, secret[6:], token, "B0/hidden") if text.encode() in found], file
    assert not [text for text in (secret, token, "hidden") if text in server.log]
    key = Path(server.data_dir) / "webhooks.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    server.start()
    sink.hits.clear()
    send(server, "anybody")
    Webhook(secret).verify((hit := sink.wait_for(1)[0]).body, hit.headers)
    server.terminate()
    server.env["SECRET_KEY"] = "another key than that of the file"
    (server.data_dir / "webhooks.key").unlink()
    server.start()
    assert call(server, "GET", f"/api/webhooks/{made['id']}")["state"] == "unreadable"
    assert "sealed with another key" in server.log


def test_a_rotated_secret_is_valid_beside_the_old_one_until_its_grace_is_over(
    each_server: BusServer, sink: Sink
) -> None:
    made = hook(each_server, sink)
    rotate = f"/api/webhooks/{made['id']}/rotate"
    new = call(each_server, "POST", rotate, {"grace_seconds": 3600})["secret"]
    send(each_server, "anybody")
    (hit,) = sink.wait_for(1)
    for secret in (made["secret"], new):
        Webhook(secret).verify(hit.body, hit.headers)
    newest = call(each_server, "POST", rotate, {"grace_seconds": 0})["secret"]
    send(each_server, "anybody")
    hit = sink.wait_for(2)[1]
    Webhook(newest).verify(hit.body, hit.headers)
    for secret in (new,):
        with pytest.raises(WebhookVerificationError):
            Webhook(secret).verify(hit.body, hit.headers)
    drop(each_server, made)


@pytest.mark.slow
def test_a_rotation_and_a_deletion_under_load_harm_nobody(server4: BusServer, sink: Sink) -> None:
    made = hook(server4, sink, types=["load"])
    path = f"/api/webhooks/{made['id']}"
    sent: list[int] = []
    deleted = threading.Event()

    def produce() -> None:
        while not deleted.is_set():
            send(server4, "anybody", len(sent), type="load")
            sent.append(len(sent))

    producer = threading.Thread(target=produce)
    producer.start()
    try:
        sink.wait_for(50)
        before = len(sink.hits)
        new = call(server4, "POST", f"{path}/rotate", {"grace_seconds": 3600})["secret"]
        after, owed = len(sink.hits), len(sent)
        hits = sink.wait_for(owed + 100, seconds=30)
        call(server4, "DELETE", path)
        gone = len(sink.hits)
    finally:
        deleted.set()
        producer.join()
    old = Webhook(made["secret"])
    for hit in hits:
        old.verify(hit.body, hit.headers)  # who knows the old secret only has the time of its grace
    known = [number for number, hit in enumerate(hits) if len(hit.headers["webhook-signature"].split()) == 2]
    assert before <= known[0] <= after + 10
    for hit in hits[known[0] + 10 :]:
        Webhook(new).verify(hit.body, hit.headers)
    assert len(sink.hits) - gone <= 10


def test_the_default_secret_stays_valid_beside_the_first_of_its_own(
    fresh_server: Callable[..., BusServer], sink: Sink
) -> None:
    default = new_secret()
    server = fresh_server(env={**ENV, "WEBHOOK_SECRET": default})
    made = hook(server, sink)
    assert "secret" not in made
    send(server, "anybody")
    Webhook(default).verify((hit := sink.wait_for(1)[0]).body, hit.headers)
    own = call(server, "POST", f"/api/webhooks/{made['id']}/rotate", {"grace_seconds": 60})["secret"]
    send(server, "anybody")
    hit = sink.wait_for(2)[1]
    for secret in (default, own):
        Webhook(secret).verify(hit.body, hit.headers)


def test_a_key_pair_signs_beside_the_secret_and_both_are_rotated(each_server: BusServer, sink: Sink) -> None:
    made = hook(each_server, sink, ed25519=True)
    (public,) = made["public_keys"]
    send(each_server, "anybody")
    (hit,) = sink.wait_for(1)
    for secret in (made["secret"], public):
        assert WebhookReceiver(secret).check(hit.headers, hit.body).ok
    new, old = call(each_server, "POST", f"/api/webhooks/{made['id']}/rotate", {})["public_keys"]
    assert old.startswith(f"{public} until ")
    send(each_server, "anybody")
    hit = sink.wait_for(2)[1]
    assert len(hit.headers["webhook-signature"].split()) == 4
    for secret in (made["secret"], public, new):
        assert WebhookReceiver(secret).check(hit.headers, hit.body).ok
    drop(each_server, made)


# ---- running them


def test_what_is_due_while_an_endpoint_is_paused_comes_when_it_is_resumed(each_server: BusServer, sink: Sink) -> None:
    made = hook(each_server, sink)
    path = f"/api/webhooks/{made['id']}"
    assert call(each_server, "POST", f"{path}/pause")["state"] == "paused"
    for number in range(3):
        send(each_server, "anybody", number)
    assert call(each_server, "POST", f"{path}/resume", {"dry_run": True}) == {"status": "counted", "held": 3}
    assert not sink.hits
    call(each_server, "POST", f"{path}/resume", {})
    assert sorted(data_of(hit)["payload"] for hit in sink.wait_for(3)) == [0, 1, 2]
    drop(each_server, made)


def test_what_is_held_can_be_set_aside_and_replayed_by_choice(server: BusServer, sink: Sink) -> None:
    made = hook(server, sink)
    path = f"/api/webhooks/{made['id']}"
    call(server, "POST", f"{path}/pause")
    send(server, "anybody", 1)
    call(server, "POST", f"{path}/resume", {"held": "set_aside"})
    send(server, "anybody", 2)
    sink.wait_for(1)
    (dead,) = call(server, "GET", "/api/webhooks/deliveries", webhook=made["id"], state="dead")["deliveries"]
    assert call(server, "POST", f"/api/webhooks/deliveries/{dead['id']}/replay")["replayed"] == 1
    assert call(server, "POST", f"/api/webhooks/deliveries/{dead['id']}/replay")["replayed"] == 0
    assert [data_of(hit)["payload"] for hit in sink.wait_for(2)] == [2, 1]
    drop(server, made)


def test_a_change_holds_for_the_next_message_whichever_worker_takes_it(server4: BusServer, sink: Sink) -> None:
    made = hook(server4, sink, types=["before"])
    for round_ in range(5):
        call(server4, "PATCH", f"/api/webhooks/{made['id']}", {"types": [f"round-{round_}"]})
        for _ in range(8):
            send(server4, "anybody", type=f"round-{round_}")
        sink.wait_for(8 * (round_ + 1))
    drop(server4, made)
    for _ in range(8):
        send(server4, "anybody", type="round-4")
    assert len(sink.hits) == 40


def test_a_test_event_says_what_came_of_it_and_counts_nowhere(server: BusServer, sink: Sink) -> None:
    made = hook(server, sink)
    path = f"/api/webhooks/{made['id']}"
    came = call(server, "POST", f"{path}/test")
    assert (came["ok"], came["outcome"], came["status"]) == (True, "ok", 200)
    Webhook(made["secret"]).verify((hit := sink.wait_for(1)[0]).body, hit.headers)
    sink.mode = answer(418, body=b"short and stout")
    came = call(server, "POST", f"{path}/test")
    assert (came["ok"], came["outcome"], came["status"], came["response"]) == (
        False,
        "http_4xx",
        418,
        "short and stout",
    )
    assert stats(server, made)["attempts"] == 0
    drop(server, made)


@pytest.mark.parametrize(
    "url",
    ["http://169.254.169.254/latest", "http://2130706433/", "http://[::ffff:10.0.0.1]/", "http://user@example.com/", "ftp://a/",
     "http://10.1.2.3/", "https://[64:ff9b::a00:1]/"],
)  # fmt: skip
def test_a_target_that_may_not_be_called_is_refused_when_it_is_named(server: BusServer, url: str) -> None:
    refused = server.call("POST", "/api/webhooks", {"url": url, "events": ["*"]})
    assert (refused.status, refused.body["code"]) == (400, "forbidden_target")


@pytest.mark.slow
@pytest.mark.one_node("each counts for itself")
def test_a_target_that_has_become_forbidden_is_not_called_and_counted_by_its_reason(
    fresh_server: Callable[..., BusServer], sink: Sink
) -> None:
    server = fresh_server(env=ENV)
    made = hook(server, sink)
    server.terminate()
    del server.env["WEBHOOK_ALLOWED_TARGETS"]
    server.start()
    send(server, "anybody")
    settled(server, made)
    (dead,) = call(server, "GET", "/api/webhooks/deliveries", webhook=made["id"])["deliveries"]
    assert (dead["state"], dead["cause"], dead["attempts"]) == ("dead", "config_error", 3)
    server.call("POST", "/api/webhooks", {"url": "http://10.1.2.3/", "events": ["*"]})
    counted = scrape(server)
    blocked = {reason: counted.value("bus_webhook_blocked_targets_total", reason=reason) for reason in REASONS}
    assert blocked == {**dict.fromkeys(REASONS, 0), "loopback": 3, "private": 1}
    assert sink.connections == 0


@pytest.mark.one_node("each counts for itself")
def test_what_is_sent_and_what_waits_is_measured(fresh_server: Callable[..., BusServer], sink: Sink) -> None:
    server = fresh_server(env=ENV)
    sink.mode = in_turn(answer(200), answer(500))
    made = hook(server, sink, schedule_seconds=[0, 300])
    for count in (1, 2):
        send(server, "anybody")
        sink.wait_for(count)
    eventually(lambda: stats(server, made)["attempts"] == 2, what="the log of both")
    own = stats(server, made)
    assert (own["pending"], own["dead"], own["success_rate"]) == (1, 0, 0.5)
    assert own["oldest_pending_seconds"] > 0
    found = scrape(server)
    for class_ in ("2xx", "5xx"):
        assert found.value("bus_webhook_attempts_total", kind="standard", class_=class_) == 1
    assert found.value("bus_webhook_pending") == 1
    assert found.value("bus_webhook_oldest_pending_seconds") == 0, "It rests until its next attempt."
    assert found.value("bus_webhook_endpoints", state="enabled") == 1
    assert found.value("bus_webhook_breaker_open") == 0
    assert found.value("bus_webhook_delivery_lag_seconds_count", kind="standard") == 1


def test_an_error_of_the_server_is_told_and_a_failing_receiver_is_none(
    fresh_server: Callable[..., BusServer], sink: Sink
) -> None:
    server = fresh_server(env={**ENV, "BUS_EXTENSIONS": "tests.contract.third_party"})
    with Sink(answer(500)) as ill:
        made = hook(server, sink, "error.occurred"), hook(server, ill, max_retries=0)
        server.call("POST", "/api/send", {"from": "a", "to": "crashed", "type": "crash"})
        send(server, "anybody")
        settled(server, made[1])
        errors = [data_of(hit) for hit in sink.wait_for(1)]
        assert {"before_publish", "tick", "extension_failed"} >= {error["action"] for error in errors}
        assert "secret" not in json.dumps(errors)


def test_beyond_the_cap_what_webhooks_want_is_refused_and_all_else_goes_on(
    fresh_server: Callable[..., BusServer], sink: Sink
) -> None:
    server = fresh_server(env={**ENV, "BUS_EXTENSIONS": "tests.faults.small_outbox"})
    made = hook(server, sink, types=["wanted"])
    call(server, "POST", f"/api/webhooks/{made['id']}/pause")

    def refused() -> bool:
        answered = server.call("POST", "/api/send", {"from": "a", "to": "b", "type": "wanted"})
        return answered.status == 503 and answered.body["code"] == "outbox_full" and "retry-after" in answered.headers

    eventually(refused, what="a full outbox")
    send(server, "b", type="unwanted")
    call(server, "POST", f"/api/webhooks/{made['id']}/resume", {})
    eventually(lambda: not refused(), what="room in the outbox")


@pytest.mark.slow
def test_a_request_that_a_stop_cuts_off_is_logged_and_made_again(
    fresh_server: Callable[..., BusServer], sink: Sink
) -> None:
    server = fresh_server(env=ENV)
    sink.mode = in_turn(silent, answer(200))
    made = hook(server, sink, timeout_seconds=30.0)
    send(server, "anybody")
    sink.wait_for(1)
    server.restart()
    first, second = sink.wait_for(2)
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    settled(server, made)
    (delivery,) = call(server, "GET", "/api/webhooks/deliveries", webhook=made["id"])["deliveries"]
    log = call(server, "GET", f"/api/webhooks/deliveries/{delivery['id']}")["attempts"]
    assert [(each["attempt"], each["outcome"]) for each in log] == [(1, "stopped"), (2, "ok")]


# ---- limits and isolation


def test_no_second_brings_more_than_the_rate(server: BusServer, sink: Sink) -> None:
    made = hook(server, sink, rate={"count": 20})
    send_all(server, [{"to": "anybody"}] * 40)
    times = [hit.at for hit in sink.wait_for(40, seconds=20)]
    for start, after in zip(times, times[20:], strict=False):
        assert after - start > 0.9
    drop(server, made)


@pytest.mark.slow
def test_a_black_hole_with_ten_thousand_pending_delays_nobody(fresh_server: Callable[..., BusServer]) -> None:
    server = fresh_server(env=ENV)
    sinks = [Sink() for _ in range(20)]
    try:
        healthy = [hook(server, sink, types=["probe"], clients=[f"well-{n}"]) for n, sink in enumerate(sinks)]

        def p99() -> float:
            """Of 200 probes: seconds from the send to the receiver."""
            took = []
            for n in range(200):
                sink = sinks[n % 20]
                count, start = len(sink.hits), time.monotonic()
                send(server, f"well-{n % 20}", type="probe")
                took.append(sink.wait_for(count + 1)[count].at - start)
            return sorted(took)[197]

        before = p99()
        with Sink(silent) as hole:
            ill = hook(server, hole, types=["lost"], timeout_seconds=2.0)
            send_all(server, [{"to": "nobody", "type": "lost"}] * 10_000)
            eventually(lambda: hole.hits, what="the first to be lost")
            beside = p99()
            assert beside <= max(2 * before, 0.1)
            assert stats(server, ill)["pending"] == 10_000
            eventually(lambda: stats(server, ill)["lane"]["state"] == "open", what="an open breaker")
            assert len(hole.hits) <= 40
        assert all(stats(server, each)["dead"] == 0 for each in healthy)
    finally:
        for sink in sinks:
            sink.close()


# ---- chats


def test_a_burst_of_events_comes_to_a_chat_as_few_messages_that_add_up(server: BusServer, sink: Sink) -> None:
    made = call(server, "POST", "/api/webhooks", {"url": sink.url, "kind": "slack", "events": ["message.sent"]})
    send_all(server, [{"to": "anybody", "payload": {"text": "<!channel> ```"}}] * 150)
    settled(server, made)
    posts = [json.loads(hit.body) for hit in sink.hits]
    assert len(posts) <= 3
    told = sum(int(post["text"].split()[0]) if post["text"].endswith(" events") else 1 for post in posts)
    assert told == 150
    assert all("webhook-signature" not in hit.headers for hit in sink.hits)
    assert all(after.at - before.at > 0.9 for before, after in pairwise(sink.hits))
    drop(server, made)


def test_discord_is_asked_to_wait_and_a_404_ends_it(server: BusServer, sink: Sink) -> None:
    sink.mode = answer(404, body=b'{"message": "Unknown Webhook", "code": 10015}')
    made = call(server, "POST", "/api/webhooks", {"url": sink.url, "kind": "discord", "events": ["message.sent"]})
    send(server, "anybody")
    shown = f"/api/webhooks/{made['id']}"
    eventually(lambda: call(server, "GET", shown)["state"] == "disabled", what="a disabled endpoint")
    assert call(server, "GET", shown)["reason"] == "discord_404"
    (hit,) = sink.hits
    assert hit.path == "/hook?wait=true"
    send(server, "anybody")
    assert len(sink.hits) == 1
    drop(server, made)


# ---- HTTPS


def test_a_receiver_of_https_is_judged_by_its_certificate(
    fresh_server: Callable[..., BusServer], tmp_path: Path
) -> None:
    trusted = tmp_path / "ca.pem"
    certificates.authority().cert_pem.write_to_path(str(trusted))
    server = fresh_server(env={**ENV, "SSL_CERT_FILE": str(trusted)})
    good = certificates.serving("127.0.0.1")
    bad = [certificates.serving("127.0.0.1", expired=True), certificates.serving("elsewhere.example")]
    with Sink(tls=good) as sink:
        made = hook(server, sink)
        send(server, "anybody")
        Webhook(made["secret"]).verify((hit := sink.wait_for(1)[0]).body, hit.headers)
        drop(server, made)
    for context in bad:
        with Sink(tls=context) as sink:
            made = hook(server, sink)
            came = call(server, "POST", f"/api/webhooks/{made['id']}/test")
            assert (came["ok"], came["outcome"]) == (False, "tls"), came
            assert "certificate" in came["detail"]
            assert not sink.hits
            drop(server, made)


# ---- the command line


def run(server: BusServer, *words: str) -> Result:
    return CliRunner().invoke(cli, ["webhooks", *words], env={"MESSAGE_BUS_URL": server.url})


def test_the_command_line_adds_shows_tests_pauses_rotates_replays_and_deletes(server: BusServer, sink: Sink) -> None:
    made = json.loads(run(server, "add", sink.url, "--event", "message.*", "--type", "cli").stdout)
    hook_id = made["id"]
    assert hook_id in run(server, "list").stdout
    assert run(server, "test", hook_id).stdout.startswith("ok  status 200")
    assert run(server, "pause", hook_id).stdout == "Paused.\n"
    send(server, "anybody", type="cli")
    assert run(server, "resume", hook_id, "--yes", "--set-aside").stdout == "Resumed.\n"
    listed = [
        json.loads(line) for line in run(server, "deliveries", "--webhook", hook_id, "--json").stdout.splitlines()
    ]
    assert [each["state"] for each in listed] == ["dead"]
    assert "1 delivery" in run(server, "replay", "--webhook", hook_id, "--yes").stdout
    sink.wait_for(2)
    assert json.loads(run(server, "show", hook_id).stdout)["stats"]["dead"] == 0
    secret = run(server, "rotate", hook_id).stdout.strip()
    assert secret.startswith("whsec_")
    assert secret != made["secret"]
    sink.mode = answer(500)
    assert run(server, "test", hook_id).exit_code == 1
    assert run(server, "delete", hook_id, "--yes").stdout == "Deleted.\n"
    assert hook_id not in run(server, "list").stdout
