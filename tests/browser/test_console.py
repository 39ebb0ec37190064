"""The console in a real browser: what operators do, with hostile messages, over restarts, by keyboard, in both themes."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bus.testing import BusServer, eventually
from tests.calls import call, send, settle
from tests.conftest import can_not_run
from tests.refusals import KEY
from tests.sinks import Sink, answer
from tests.webhook_calls import ENV, hook

pytestmark = pytest.mark.full

SERVER_ENV = ENV
ADMIN = {"X-API-Key": KEY}
WIDTHS = [390, 1280, 1920]

WATCH = """
window.executed = [];
window.violations = [];
window.alert = (what) => window.executed.push(what);
document.addEventListener("securitypolicyviolation", (e) => {
    window.violations.push(`${e.violatedDirective} ${e.blockedURI}`);
});
"""

HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(2)</script>",
    "javascript:alert(3)",
    '"><svg onload=alert(4)>',
    "{{7*7}}${alert(5)}",
    "&lt;b&gt;&#x6A;",
    "\u202egnp.exe\u0000\u2028",
]


MADE_OF_TEXT = "main img, main script, main svg[onload], main iframe"


class Console:
    """A tab on the console. `close` fails when a script of a stranger ran, the policy was hurt, or a module threw."""

    def __init__(self, page: Any, server: BusServer) -> None:
        self.page = page
        self.server = server
        self.thrown: list[str] = []
        page.on("pageerror", lambda error: self.thrown.append(str(error)))
        page.add_init_script(WATCH)

    def go(self, path: str) -> None:
        """Look at a view, and wait until it has its heading."""
        self.page.goto(f"{self.server.url}/console#/{path}")
        self.page.locator("main h1").wait_for()

    def shows(self, text: str, within_seconds: float = 15) -> None:
        self.page.locator("body", has_text=text).wait_for(timeout=within_seconds * 1000)

    def press(self, name: str, **how: Any) -> None:
        self.page.get_by_role("button", name=name, **how).first.click()

    def clean(self) -> None:
        assert self.page.evaluate("window.executed") == []
        assert self.page.evaluate("window.violations") == []
        assert self.thrown == []


Open = Callable[[BusServer], Console]


@pytest.fixture
def console(context: Any) -> Iterator[Open]:
    """A function that opens the console of a server; all tabs have to be clean in the end."""
    tabs: list[Console] = []

    def open_tab(server: BusServer) -> Console:
        tabs.append(Console(context.new_page(), server))
        return tabs[-1]

    yield open_tab
    for tab in tabs:
        try:
            tab.clean()
        finally:
            tab.page.context.clear_cookies()
            tab.page.close()


@pytest.mark.parametrize("workers", [1, 4])
def test_a_message_is_sent_and_seen_to_arrive(
    server: BusServer, server4: BusServer, console: Open, workers: int
) -> None:
    tab = console(server if workers == 1 else server4)
    tab.go("feed")
    tab.shows("live")
    tab.press("Send")
    tab.page.get_by_label("To", exact=True).fill("desk")
    tab.page.get_by_label("Payload").fill('{"text": "is anybody there", "big": 12345678901234567890}')
    tab.page.locator("dialog").get_by_role("button", name="Send").click()
    row = tab.page.locator("table tbody tr", has_text="is anybody there")
    row.wait_for()
    row.locator("a").click()
    tab.shows("Committed")
    tab.shows("12345678901234567890")
    tab.shows("desk waits")
    call(tab.server, "GET", "/api/messages", to="desk")
    tab.shows("desk was handed over")


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_the_feed_goes_on_over_a_restart(fresh_server: Any, console: Open, how: str) -> None:
    server = fresh_server(workers=2)
    tab = console(server)
    tab.go("feed")
    send(server, "a", "the first")
    tab.shows("the first")
    server.terminate() if how == "stop" else server.kill()
    server.kill()
    tab.shows("reconnecting")
    server.start()
    send(server, "a", "the second")
    tab.shows("the second", within_seconds=30)
    assert tab.page.locator("table tbody tr").count() == 2  # nothing twice


def test_a_feed_is_narrowed_paused_and_resumed(server: BusServer, console: Open) -> None:
    tab = console(server)
    tab.go("feed?type=special")
    tab.shows("live")
    send(server, "a", "not this", type="usual")
    send(server, "a", "but this", type="special")
    tab.shows("but this")
    assert tab.page.get_by_text("not this").count() == 0
    tab.page.keyboard.press("p")
    tab.shows("paused")
    send(server, "a", "held back", type="special")
    tab.shows("1 held")
    assert tab.page.locator("table").get_by_text("held back").count() == 0
    tab.page.keyboard.press("p")
    tab.shows("held back")
    tab.page.get_by_label("Client", exact=True).fill("somebody-else")
    eventually(lambda: "client=somebody-else" in tab.page.evaluate("location.hash"), what="the filter in the address")
    eventually(lambda: tab.page.locator("table tbody tr").count() == 0, what="an empty feed")


def test_a_dead_letter_is_looked_at_and_redriven_many_are_counted_first(server: BusServer, console: Open) -> None:
    ids = [send(server, "deaf", f"letter {n}", require_ack=True)["message_id"] for n in range(3)]
    for message_id in ids:
        settle(server, "reject", message_id, "deaf", reason="no ears")
    tab = console(server)
    tab.go("dead-letters?owner=deaf")
    tab.page.get_by_role("link", name=ids[0]).click()
    tab.shows("Attempt 1 rejected")
    tab.shows("letter 0")
    tab.press("Redrive")
    tab.page.locator("dialog").get_by_role("button", name="Redrive").click()
    eventually(
        lambda: call(server, "GET", f"/api/messages/{ids[0]}")["recipients"][0]["state"] == "waiting",
        what="the redrive",
    )
    tab.go("dead-letters?owner=deaf")
    tab.press("Redrive all that match …")
    tab.shows("Redrive 2 dead letters?")
    tab.page.locator("dialog").get_by_role("button", name="Redrive").click()
    tab.shows("2 of 2 were sent again.")
    settle(server, "reject", ids[1], "deaf")
    tab.press("Purge all that match …")
    tab.shows("Purge 1 dead letter?")
    tab.page.locator("dialog").get_by_role("button", name="Purge").click()
    tab.shows("Type 1, the number")
    tab.page.locator("dialog input").fill("1")
    tab.page.locator("dialog").get_by_role("button", name="Purge").click()
    eventually(lambda: call(server, "GET", "/api/dead-letters", owner="deaf")["dead_letters"] == [], what="the purge")


def test_a_webhook_is_tested_paused_and_replayed(server: BusServer, console: Open) -> None:
    with Sink(answer(500)) as sink:
        made = hook(server, sink, types=["hooked"], description="Board", max_retries=0)
        send(server, "a", "x", type="hooked")
        tab = console(server)
        tab.go(f"webhooks/{made['id']}")
        tab.shows("Board")
        tab.page.locator("td", has_text="dead").first.wait_for()
        tab.press("Test", exact=True)
        tab.page.locator("dialog", has_text="http_5xx").wait_for()
        tab.press("Close")
        sink.mode = answer(200)
        tab.press("Pause", exact=True)
        tab.shows("It is paused; what is due is kept.")
        tab.press("Resume …")
        tab.page.locator("dialog").get_by_role("button", name="Resume").click()
        eventually(
            lambda: call(server, "GET", f"/api/webhooks/{made['id']}")["state"] == "enabled", what="its resumption"
        )
        tab.press("Replay …")
        tab.page.locator("dialog").get_by_role("button", name="Count").click()
        tab.shows("Send 1 delivery again?")
        tab.page.locator("dialog").get_by_role("button", name="Replay").click()
        eventually(lambda: call(server, "GET", "/api/webhooks/deliveries", webhook=made["id"], state="done")["deliveries"],
                   what="the delivery")  # fmt: skip
        tab.page.locator("td", has_text="done").first.wait_for()


def test_an_inbox_is_opened_and_nothing_is_taken(server: BusServer, console: Open) -> None:
    send(server, "else", sender="boxed")
    message_id = send(server, "boxed", "look at me")["message_id"]
    tab = console(server)
    tab.go("clients?name=boxe")
    tab.page.get_by_role("link", name="boxed").click()
    tab.shows("look at me")
    assert call(server, "GET", f"/api/messages/{message_id}")["recipients"][0]["state"] == "waiting"
    names = {one["client"] for one in call(server, "GET", "/api/clients", limit=1000)["clients"]}
    assert not {name for name in names if name.startswith(("anon-", "console"))}


def test_one_signs_in_sees_what_one_may_and_signs_out(fresh_server: Any, console: Open) -> None:
    server = fresh_server(workers=2, env={"API_KEY": KEY})
    small = server.call("POST", "/api/keys", {"clients": ["alice"], "label": "small"}, ADMIN).body
    tab = console(server)
    tab.page.goto(f"{server.url}/console#/keys")
    tab.page.get_by_label("API key", exact=True).fill("bus_wrong")
    tab.press("Sign in")
    tab.page.get_by_role("alert").wait_for()
    tab.page.get_by_label("API key", exact=True).fill(KEY)
    tab.press("Sign in")
    tab.shows("small")  # it goes on to where one wanted
    assert KEY not in tab.page.content()
    assert (
        tab.page.evaluate("document.cookie + JSON.stringify(localStorage) + JSON.stringify(sessionStorage)") == "{}{}"
    )
    tab.press("Sign out")
    tab.page.get_by_label("API key", exact=True).fill(small["key"])
    tab.press("Sign in")
    tab.shows(f"key:{small['id']}")
    tab.go("keys")
    tab.shows("This needs the right to administer.")
    tab.shows("and may: send, read, presence.")
    tab.go("feed")
    tab.shows("This needs the scope read-all.")
    server.call("POST", f"/api/keys/{small['id']}/revoke", headers=ADMIN)
    tab.go("clients")
    tab.shows("Sign in", within_seconds=20)


def test_a_key_is_made_shown_once_rotated_and_revoked(server: BusServer, console: Open) -> None:
    tab = console(server)
    tab.go("keys")
    tab.press("New key")
    tab.page.get_by_label("What it is for").fill("for the test")
    tab.page.get_by_label("Clients that it may act as").fill("tester")
    tab.press("Make it")
    text = tab.page.locator("dialog pre").inner_text()
    assert text.startswith("bus_")
    tab.press("Done")
    tab.shows("for the test")
    assert text not in tab.page.content()
    tab.press("Rotate")
    tab.page.locator("dialog").get_by_role("button", name="Rotate").click()
    tab.page.locator("dialog pre").wait_for()
    tab.press("Done")
    tab.press("Revoke")
    tab.page.locator("dialog").get_by_role("button", name="Revoke").click()
    tab.shows("revoked")


def test_a_policy_is_made_and_dropped(server: BusServer, console: Open) -> None:
    tab = console(server)
    tab.go("retention")
    tab.press("New policy")
    tab.page.get_by_label("Type", exact=True).fill("draft")
    tab.page.get_by_label("Seconds", exact=True).fill("7200")
    tab.press("Set it")
    tab.page.locator("tr", has_text="draft").get_by_role("button", name="Drop").click()
    tab.press("Drop it")
    eventually(lambda: tab.page.locator("tr", has_text="draft").count() == 0, what="the end of the policy")


VIEWS = [
    "overview", "feed", "clients", "clients/shown", "queues", "dead-letters", "dead-letters/{dead}", "messages/{message}",
    "webhooks", "webhooks/{hook}", "deliveries/{delivery}", "search", "retention", "keys", "audit", "settings", "nowhere",
]  # fmt: skip


@pytest.fixture(scope="module")
def furnished(server: BusServer) -> Iterator[Callable[[str], str]]:
    """A server with something hostile in every view; a function that fills in the paths of views."""
    for text in HOSTILE:
        send(
            server,
            ["shown", "hidden"],
            {text: [text, {"deep": text}]},
            headers={"x": text},
            thread_id=text,
            correlation_id=text,
        )
        send(server, "shown", text, require_ack=True)
    message = send(server, "shown", HOSTILE[0], type="told", headers={"h": HOSTILE[1]}, require_ack=True)["message_id"]
    settle(server, "reject", message, "shown", reason=HOSTILE[0])
    send(server, "queue:jobs", HOSTILE[1])
    call(server, "POST", "/api/keys", {"label": HOSTILE[0], "clients": ["shown"]})
    with Sink(answer(500, body=HOSTILE[0].encode())) as sink:
        made = hook(server, sink, types=["told"], description=HOSTILE[0], headers={"x-h": "v"})
        send(server, "shown", HOSTILE[0], type="told")
        eventually(lambda: sink.hits, what="a delivery")
        eventually(lambda: found(server), what="an attempt")
        paths = {"dead": message, "message": message, "hook": made["id"], "delivery": found(server)}
        call(server, "POST", f"/api/webhooks/{made['id']}/pause")
        yield lambda view: view.format(**paths)


def found(server: BusServer) -> str:
    """A delivery that was tried."""
    listed = call(server, "GET", "/api/webhooks/deliveries")["deliveries"]
    return next((one["id"] for one in listed if one["attempts"] and one["state"] != "leased"), "")


@pytest.mark.parametrize("width", WIDTHS)
def test_what_is_hostile_stays_text_and_nothing_sticks_out(
    server: BusServer, console: Open, furnished: Callable[[str], str], width: int
) -> None:
    tab = console(server)
    tab.page.set_viewport_size({"width": width, "height": 900})
    for view in VIEWS:
        tab.go(furnished(view))
        tab.page.wait_for_load_state("networkidle") if view not in (
            "feed",
            "clients/shown",
        ) else tab.page.wait_for_timeout(600)
        tab.clean()
        assert (
            tab.page.evaluate(
                "document.querySelectorAll('main img, main script, main svg[onload], main iframe').length"
            )
            == 0
        )
        assert tab.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, (
            f"{view} is wider than {width}"
        )
    tab.go(furnished("messages/{message}"))
    tab.shows(HOSTILE[0])
    tab.shows(HOSTILE[1])


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_view_can_be_read_by_all(
    server: BusServer, console: Open, furnished: Callable[[str], str], theme: str
) -> None:
    axe = axe_script()
    tab = console(server)
    tab.page.emulate_media(color_scheme=theme)
    problems = []
    for view in VIEWS:
        tab.go(furnished(view))
        tab.page.wait_for_timeout(500)
        problems += serious(tab.page, axe, view)
    tab.go("keys")
    tab.press("New key")
    problems += serious(tab.page, axe, "the dialog of a new key")
    tab.page.keyboard.press("Escape")
    tab.page.keyboard.press("?")
    tab.shows("Keyboard shortcuts")
    problems += serious(tab.page, axe, "the shortcuts")
    assert tab.page.evaluate("document.documentElement.dataset.theme") == theme
    assert problems == []


def test_signing_in_can_be_read_by_all(fresh_server: Any, console: Open) -> None:
    server = fresh_server(env={"API_KEY": KEY})
    tab = console(server)
    tab.go("overview")
    assert serious(tab.page, axe_script(), "signing in") == []


def axe_script() -> str:
    """The text of axe-core."""
    spec = importlib.util.find_spec("axe_playwright_python")
    if spec is None or spec.origin is None:
        can_not_run("axe-playwright-python is not installed; requirements-dev.txt has it.")
    return (Path(spec.origin).parent / "axe.min.js").read_text()


def serious(page: Any, axe: str, view: str) -> list[str]:
    """What axe-core finds serious or critical. It is put in by the browser's own tools, which no policy stops."""
    if page.evaluate("window.axe === undefined"):
        page.evaluate(axe)
    results = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{view}: {problem['id']} at {[node['target'] for node in problem['nodes']][:3]}"
        for problem in results["violations"]
        if problem["impact"] in ("serious", "critical")
    ]


def test_all_can_be_done_with_the_keyboard(server: BusServer, console: Open) -> None:
    tab = console(server)
    tab.go("overview")
    tab.page.keyboard.press("g")
    tab.page.keyboard.press("c")
    tab.page.get_by_role("heading", name="Clients", level=1).wait_for()
    tab.page.keyboard.press("/")
    eventually(lambda: tab.page.evaluate("document.activeElement.tagName") == "INPUT", what="the filter")
    tab.page.keyboard.press("Escape")
    tab.page.evaluate("document.activeElement.blur()")
    tab.page.keyboard.press("t")
    assert tab.page.evaluate("[document.documentElement.dataset.theme, localStorage.theme]") == ["light", "light"]
    tab.page.keyboard.press("t")
    assert tab.page.evaluate("document.documentElement.dataset.theme") == "dark"
    tab.page.keyboard.press("t")
    tab.page.keyboard.press("n")
    tab.page.locator("dialog[open]").wait_for()
    tab.page.keyboard.press("Escape")
    eventually(lambda: tab.page.locator("dialog").count() == 0, what="the end of the dialog")
    tab.page.reload()
    tab.page.locator("main h1").wait_for()
    tab.page.evaluate("document.activeElement.blur()")
    tab.page.keyboard.press("Tab")
    assert tab.page.evaluate("document.activeElement.textContent") == "Skip to the content"
    tab.page.keyboard.press("Enter")
    assert tab.page.evaluate("document.activeElement.id") == "main"
    assert json.loads(tab.page.evaluate("JSON.stringify(location.hash)")) == "#/clients"
