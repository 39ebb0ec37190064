"""The promises of the extension contract, held on every extension there is and on a third-party one."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from websockets.sync.client import connect

from bus.settings import ROOT
from bus.testing import BusServer, eventually

THIRD_PARTY = "tests.contract.third_party"
EXTENSIONS = (
    "bus.transports.edge",
    "bus.transports.rest",
    "bus.transports.delivery",
    "bus.transports.keys",
    "bus.transports.sessions",
    "bus.transports.ws",
    "bus.transports.log_streams",
    "bus.transports.in_force",
    "bus.transports.openapi",
    "bus.transports.llms",
    "bus.transports.site",
    "bus.transports.lane",
    "bus.transports.profile",
    "streaming",
    "webhooks",
    "health_checks",
    "enhanced_metrics",
    "message_ttl",
    "extensions.log_cap",
    "extensions.tracing",
    "extensions.inbound_webhooks",
    "extensions.audit",
    "extensions.search",
    "bus.console",
)
ALL = (*EXTENSIONS, THIRD_PARTY)

PROBE = """
import json, os, sys, threading, signal
before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
import server_ws
app = server_ws.app
one, two = server_ws.create_app(), server_ws.create_app()
print(json.dumps({
    "extensions": sorted(app.extensions),
    "shared": [name for name in one.extensions if one.extensions[name] is two.extensions[name]],
    "threads": threading.active_count(),
    "files": sorted(os.listdir(os.environ["DATA_DIR"])),
    "signals_kept": before == {number: signal.getsignal(number) for number in before},
    "listed": list(server_ws.EXTENSIONS),
}))
"""


def probe(tmp_path, **env: str) -> dict:
    environment = {"PATH": "", "DATA_DIR": str(tmp_path), **env}
    done = subprocess.run(
        [sys.executable, "-c", PROBE], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=30, check=True
    )
    return json.loads(done.stdout)


def test_this_suite_knows_every_shipped_extension(tmp_path) -> None:
    assert tuple(probe(tmp_path)["listed"]) == EXTENSIONS


def test_importing_and_registering_open_nothing_and_start_nothing(tmp_path) -> None:
    seen = probe(tmp_path, BUS_EXTENSIONS=THIRD_PARTY)
    assert seen["threads"] == 1
    assert seen["files"] == []
    assert seen["signals_kept"]


def test_two_apps_get_two_of_everything(tmp_path) -> None:
    assert probe(tmp_path, BUS_EXTENSIONS=THIRD_PARTY)["shared"] == []


@pytest.mark.parametrize("name", ALL)
def test_the_manager_stands_in_app_extensions_under_the_modules_name(tmp_path, name: str) -> None:
    assert name.rpartition(".")[2] in probe(tmp_path, BUS_EXTENSIONS=THIRD_PARTY)["extensions"]


@pytest.mark.parametrize("name", ALL)
def test_register_is_the_last_function_and_a_table_of_contents(name: str) -> None:
    module = import_module(name)
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    last = [node for node in tree.body if isinstance(node, ast.FunctionDef)][-1]
    assert last.name == "register"
    assert last.end_lineno - last.lineno <= 25
    assert [argument.arg for argument in last.args.args] == ["app", "bus"]


@pytest.mark.parametrize(
    "name",
    [
        "rest",
        "delivery",
        "ws",
        "openapi",
        "streaming",
        "webhooks",
        "health_checks",
        "enhanced_metrics",
        "log_cap",
        "audit",
    ],
)
def test_any_extension_can_be_left_out(tmp_path, name: str) -> None:
    assert name not in probe(tmp_path, DISABLED_EXTENSIONS=name)["extensions"]


def test_the_server_runs_without_pushing_or_describing(fresh_server) -> None:
    server = fresh_server(env={"DISABLED_EXTENSIONS": "ws,openapi,streaming,enhanced_metrics,log_cap"})
    assert server.call("POST", "/api/send", {"from": "a", "to": "b"}).status == 200
    assert server.call("GET", "/openapi.json").status == 404
    assert server.call("GET", "/stream/stats").status == 404


@pytest.mark.parametrize("env", [{"DISABLED_EXTENSIONS": "nonsense"}, {"DISABLED_EXTENSIONS": "edge"}])
def test_a_wrong_name_stops_the_start_with_a_sentence(env: dict[str, str], tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import server_ws"],
        cwd=ROOT,
        env={"PATH": "", "DATA_DIR": str(tmp_path), **env},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode != 0
    assert "DISABLED_EXTENSIONS" in done.stderr


@pytest.fixture(scope="module")
def extended():
    with BusServer(env={"BUS_EXTENSIONS": THIRD_PARTY}) as server:
        yield server


def shown(server: BusServer) -> dict:
    return server.call("GET", "/third-party").body


def test_before_publish_stamps_and_vetoes(extended: BusServer) -> None:
    assert extended.call("POST", "/api/send", {"from": "a", "to": "stamp", "type": "stamped"}).status == 200
    (message,) = extended.call("GET", "/api/messages?to=stamp").body["messages"]
    assert message["headers"] == {"stamped": "yes"}
    refused = extended.call("POST", "/api/send", {"from": "a", "to": "stamp", "type": "forbidden"})
    assert (refused.status, refused.body["code"], refused.body["field"]) == (400, "not_wanted", "type")
    assert len(extended.call("GET", "/api/messages?to=stamp").body["messages"]) == 1


def test_what_before_publish_raises_reaches_nobody_and_stores_nothing(extended: BusServer) -> None:
    refused = extended.call("POST", "/api/send", {"from": "a", "to": "crashed", "type": "crash"})
    assert refused.status == 503
    assert "secret" not in json.dumps(refused.body)
    assert extended.call("GET", "/api/messages?to=crashed").body["count"] == 0
    assert extended.call("POST", "/api/send", {"from": "a", "to": "b"}).status == 200


def send(server: BusServer, to: str, **more: object) -> dict:
    answer = server.call("POST", "/api/send", {"from": "a", "to": to, **more})
    assert answer.status == 200, answer.body
    return answer.body


def rows_of(server: BusServer, type_: str) -> list[tuple[int, dict]]:
    return [(seq, json.loads(text)) for seq, kept, text in shown(server)["rows"] if kept == type_]


def test_rows_of_with_commit_stand_with_their_message(extended: BusServer) -> None:
    sent = send(extended, "rows", type="kept", payload={"a": [1, "é"]})
    ((seq, text),) = rows_of(extended, "kept")
    assert seq == text["seq"] == sent["seq"]
    assert text == extended.call("GET", f"/api/messages/{sent['message_id']}").body["message"]
    assert shown(extended)["asked_in_vain"] == 0


def test_delayed_and_replayed_messages_have_their_rows_and_redriven_ones_had_them(extended: BusServer) -> None:
    send(extended, "later", type="delayed", delay=0.05)
    assert rows_of(extended, "delayed") == []
    eventually(lambda: rows_of(extended, "delayed"), what="the delayed message")
    send(extended, "copied", type="copied")
    replay = {"to": "copied", "since": "earliest"}
    assert extended.call("POST", "/api/replay", replay).status in (200, 202)
    eventually(lambda: len(rows_of(extended, "copied")) == 2, what="the replay")
    tracked = send(extended, "redriver", type="again", require_ack=True)["message_id"]
    path = f"/api/messages/{tracked}/reject"
    assert extended.call("POST", path, {"client": "redriver", "reason": "no"}).body["status"] == "rejected"
    heard = shown(extended)["heard"]["MessageSent"]
    assert extended.call("POST", f"/api/dead-letters/{tracked}/redrive", {}).body["redriven"] == 1
    assert len(rows_of(extended, "again")) == 1
    assert shown(extended)["heard"]["MessageSent"] == heard


def test_what_was_received_or_failed_has_its_rows_too(extended: BusServer) -> None:
    acked = send(extended, "receiver", require_ack=True)
    assert extended.call("POST", f"/api/messages/{acked['message_id']}/ack", {"client": "receiver"}).status == 200
    rejected = send(extended, "receiver", require_ack=True)
    body = {"client": "receiver", "reason": "no"}
    assert extended.call("POST", f"/api/messages/{rejected['message_id']}/reject", body).status == 200
    happened = shown(extended)["happened"]
    assert ["received", acked["seq"], "receiver"] in happened
    assert ["rejected", rejected["seq"], "receiver"] in happened
    with connect(f"{extended.ws_url}/ws/reader"):
        plain = [send(extended, to)["seq"] for to in ("reader", "all", "reader")]
        plain.append(send(extended, ["reader", "nobody"])["seq"])  # type: ignore[arg-type]

        def received() -> list[int]:
            return [seq for what, seq, party in shown(extended)["happened"] if (what, party) == ("received", "reader")]

        eventually(lambda: received() == [plain[0], plain[2], plain[3]], what="the kept cursor to pass them")


def test_a_failing_companion_stops_nothing(extended: BusServer) -> None:
    assert send(extended, "anybody", type="crash_later")["seq"]
    send(extended, "anybody", type="crash_later", delay=0.01)
    eventually(
        lambda: len(extended.call("GET", "/api/log?type=crash_later").body["messages"]) == 2, what="the delayed one"
    )
    assert rows_of(extended, "crash_later") == []
    assert "a companion's own trouble" in extended.log


def test_handlers_hear_events_and_a_failing_one_disturbs_nobody(extended: BusServer) -> None:
    before = shown(extended)["heard"].get("MessageSent", 0)
    assert extended.call("POST", "/api/send", {"from": "a", "to": "b"}).status == 200
    assert shown(extended)["heard"]["MessageSent"] == before + 1
    with connect(f"{extended.ws_url}/ws/listener") as socket:
        socket.recv(timeout=5)
        eventually(lambda: shown(extended)["waited"] >= 1, what="the waiting handler")
        assert shown(extended)["heard"]["ClientConnected"] >= 1
    eventually(lambda: shown(extended)["heard"].get("ClientDisconnected"), what="the end of the connection")


def test_a_worker_survives_failing_ticks(extended: BusServer) -> None:
    first = eventually(lambda: shown(extended)["ticks"], what="a first tick")
    eventually(lambda: shown(extended)["ticks"] > first + 2, what="later ticks")


def test_a_worker_and_the_server_stop_in_time(fresh_server) -> None:
    server = fresh_server(env={"BUS_EXTENSIONS": THIRD_PARTY})
    assert server.terminate(timeout_seconds=15) == 0


def test_handlers_may_not_switch_greenlets() -> None:
    """Gevent itself refuses: a handler runs in a callback of the loop, where switching raises."""
    code = (
        "from gevent import monkey; monkey.patch_all()\n"
        "import gevent, gevent.hub\n"
        "from bus.dispatch import Dispatcher; from bus.events import BusStarted\n"
        "d = Dispatcher(); d.on(BusStarted, lambda event: gevent.sleep(0.01), wait=False); seen = []\n"
        "d._handlers[BusStarted][0].call, call = (lambda e: seen.append(try_(call, e)) ), d._handlers[BusStarted][0].call\n"
        "def try_(call, e):\n"
        "    try: call(e)\n"
        "    except BaseException as error: return type(error).__name__\n"
        "gevent.get_hub().loop.run_callback(d.emit, BusStarted()); gevent.sleep(0.05); print(seen)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert "BlockingSwitchOutError" in done.stdout, done.stderr
