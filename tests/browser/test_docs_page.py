"""`/docs` and `/` in a real browser: operations are found, tried and linked to; answers are text; everybody can read it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from bus.testing import BusServer
from tests.browser.test_console import axe_script, serious
from tests.calls import inbox
from tests.refusals import KEY

pytestmark = pytest.mark.full

HOSTILE = '<img src=x onerror=\\"window.ran=1\\"></pre><script>window.ran=1</script>'


@pytest.fixture
def page(context: Any) -> Iterator[Any]:
    """A tab that fails the test when a script failed, or a policy was broken."""
    context.clear_cookies()
    opened, problems = context.new_page(), []
    opened.set_default_timeout(60_000)
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
    opened.add_init_script(
        "addEventListener('securitypolicyviolation', (e) => console.error('policy: ' + e.blockedURI))"
    )
    yield opened
    opened.close()
    assert problems == []


def opened(page: Any, operation: str) -> Any:
    """An operation, opened by its summary."""
    found = page.locator(f"details#{operation}")
    found.locator("summary").click()
    return found


def test_an_operation_is_found_and_tried_and_what_comes_is_text(server: BusServer, page: Any) -> None:
    page.goto(f"{server.url}/docs")
    page.fill("#filter", "send batch")
    shown = page.locator("details.operation:visible summary code").all_text_contents()
    assert "/api/send/batch" in shown
    assert "/api/queues" not in shown
    page.fill("#filter", "")
    send = opened(page, "post_api_send")
    assert '"from": "code"' in send.locator("textarea").input_value()
    send.locator("textarea").fill(f'{{"from": "code", "to": "tried", "payload": "{HOSTILE}"}}')
    send.locator(".try button").click()
    send.locator(".try pre", has_text="200 OK").wait_for()
    (message,) = inbox(server, "tried", since="earliest")["messages"]
    assert message["payload"] == HOSTILE.replace("\\", "")
    read = opened(page, "get_api_messages_message_id_")
    read.locator(".try input").first.fill(message["id"])
    read.locator(".try button").click()
    read.locator(".try pre", has_text="window.ran").wait_for()
    assert page.evaluate("window.ran") is None


def test_a_link_opens_what_it_names(server: BusServer, page: Any) -> None:
    page.goto(f"{server.url}/docs#post_api_request")
    assert page.locator("details#post_api_request").get_attribute("open") is not None
    page.locator("details#post_api_request a[href='#schema-ErrorBody']").first.click()
    assert page.locator("details#schema-ErrorBody").get_attribute("open") is not None


def test_with_auth_on_a_key_is_asked_for_and_kept_in_the_page(fresh_server: Any, page: Any) -> None:
    server = fresh_server(env={"API_KEY": KEY})
    page.goto(f"{server.url}/docs")
    status = opened(page, "get_api_status")
    page.fill("#key", KEY)
    status.locator(".try button").click()
    status.locator(".try pre", has_text="200 OK").wait_for()
    assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_everybody_can_read_it(server: BusServer, page: Any, theme: str) -> None:
    page.emulate_media(color_scheme=theme)
    problems = []
    for path, width in (("/", 1280), ("/docs", 1280), ("/docs", 390)):
        page.set_viewport_size({"width": width, "height": 900})
        page.goto(server.url + path)
        if path == "/docs":
            opened(page, "post_api_send")
            opened(page, "get_api_series")
        problems += serious(page, axe_script(), f"{path} at {width}")
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    assert problems == []
