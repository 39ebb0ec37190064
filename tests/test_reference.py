"""Nothing is left out of the docs: every route, setting, event, metric, error and command stands on its page."""

from __future__ import annotations

import re
import runpy
from collections.abc import Callable, Iterator

import click
import pytest

from bus import connection, events, message, protocol
from bus.cli.main import cli
from bus.client import Client, Message
from bus.families import ALIASES, BUILD_INFO, FAMILIES, HTTP_REQUESTS
from bus.settings import ROOT, Settings
from bus.storage import deliveries
from server_ws import EXTENSIONS, create_app
from webhooks import WebhookEvent

DOCS = ROOT / "docs"
MADE: dict[str, Callable[[], str]] = runpy.run_path(str(DOCS / "make_reference.py"))["PAGES"]
PAGES = {str(path.relative_to(ROOT)): path.read_text() for path in sorted(DOCS.rglob("*.md"))}
APP = create_app(Settings())


def verb_of(kind: type, name: str) -> bool:
    """True for what a caller may use of a class, but for the fields of a message and what the library itself calls."""
    fields = (*getattr(kind, "__struct_fields__", ()), "__struct_config__")
    return not name.startswith("_") and name not in (
        *fields,
        "bind",
        "raw",
        "json_line",
        "is_settled",
        "queue",
        "client_id",
    )


@pytest.mark.parametrize("name", MADE)
def test_a_page_that_is_made_from_the_code_is_up_to_date(name: str) -> None:
    assert PAGES[f"docs/reference/{name}"] == MADE[name](), (
        f"docs/reference/{name} is behind the code; run `make docs`."
    )


@pytest.mark.parametrize(
    ("method", "path"),
    sorted(
        (method, re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule))
        for rule in APP.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        if not rule.rule.startswith("/api/v1/")
    ),
)
def test_a_route_is_documented(method: str, path: str) -> None:
    page = PAGES["docs/reference/rest.md"]
    file = path.replace("{", "<").replace("}", ">").replace("<name>", "<path:name>")
    assert any(
        f"{begins}`" in page for begins in (f"### `{method} {path}", f"| `{file}", f"| `{file.replace('path:', '')}")
    ), f"docs/reference/rest.md does not have {method} {path}; run `make docs`."


@pytest.mark.parametrize("name", Settings.__struct_fields__)
def test_a_setting_is_documented(name: str) -> None:
    assert f"| `{name.upper()}` |" in PAGES["docs/settings.md"]


def event_classes() -> Iterator[str]:
    for name, kind in vars(events).items():
        if isinstance(kind, type) and issubclass(kind, events.Event) and kind is not events.Event:
            yield name


@pytest.mark.parametrize("name", [*event_classes(), *WebhookEvent])
def test_an_event_is_documented(name: str) -> None:
    assert f"| `{name}` |" in PAGES["docs/reference/events.md"]


def test_every_event_that_webhooks_tell_of_is_on_both_pages() -> None:
    listed = [re.findall(r"^\| (`[a-z_]+\.[a-z_]+`.*?) \|", part, re.MULTILINE) for part in event_tables()]
    first, second = ({name for cell in cells for name in re.findall(r"`([^`]+)`", cell)} for cells in listed)
    assert first == second


def event_tables() -> tuple[str, str]:
    """The table of docs/reference/events.md, and that of docs/webhooks.md."""
    made = PAGES["docs/reference/events.md"].partition("## Events for extensions")[0]
    return made, PAGES["docs/webhooks.md"].partition("## Events")[2].partition("\n## ")[0]


@pytest.mark.parametrize("name", [*(family.name for family in FAMILIES), *ALIASES, BUILD_INFO, HTTP_REQUESTS])
def test_a_metric_is_documented(name: str) -> None:
    assert f"| `{name}` |" in PAGES["docs/metrics.md"]


def commands(group: click.Group, before: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{before}{name} ")
        else:
            yield f"{before}{name}", command


@pytest.mark.skipif("docs/cli.md" not in PAGES, reason="The page of the command line is not written yet.")
@pytest.mark.parametrize(
    ("name", "command"), list(commands(cli)), ids=lambda each: each if isinstance(each, str) else ""
)
def test_a_command_is_documented_and_explains_itself(name: str, command: click.Command) -> None:
    assert re.search(rf"\bbus {name}\b", PAGES["docs/cli.md"]), f"docs/cli.md does not show `python -m bus {name}`."
    assert command.help
    for option in command.params:
        assert not isinstance(option, click.Option) or option.help, f"`{name}` does not say what {option.opts} is."


@pytest.mark.parametrize("name", EXTENSIONS)
def test_an_extension_that_ships_is_named_in_the_architecture(name: str) -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    assert re.search(rf"\b{name.rpartition('.')[2]}\b", text), f"ARCHITECTURE.md does not name {name}."


def test_the_page_for_models_names_routes_that_there_are_and_fits_on_a_page() -> None:
    page = (ROOT / "llms.txt").read_text()
    assert len(page.splitlines()) <= 80
    rules = {
        (method, re.sub(r"<[^>]*>", "<>", rule.rule))
        for rule in APP.url_map.iter_rules()
        for method in rule.methods or ()
    }
    named = re.findall(r"`(GET|POST|PUT|DELETE) (/[^`?\s]*)", page)
    assert len(named) > 10
    assert {(method, re.sub(r"<[^>]*>", "<>", path)) for method, path in named} <= rules


def test_the_links_of_the_page_for_models_lead_to_files() -> None:
    links = re.findall(r"\]\(https://github\.com/[\w-]+/[\w-]+/blob/main/([^)#]+)", (ROOT / "llms.txt").read_text())
    assert links
    assert all((ROOT / link).is_file() for link in links)


@pytest.mark.parametrize("name", [name for kind in (Client, Message) for name in dir(kind) if verb_of(kind, name)])
def test_what_the_python_client_can_do_is_on_its_page(name: str) -> None:
    assert f"`{name}`" in PAGES["docs/python.md"]


VERBS = [
    *("on", "emit", "is_heard", "before_publish", "with_commit", "use_tables", "write", "read", "add_worker", "send"),
    *("backplane.note", "backplane.hear"),
]


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_of_extensions_is_on_their_page(verb: str) -> None:
    assert f"`bus.{verb}(" in PAGES["docs/extensions.md"]


NUMBERS = {
    "faq.md": [
        f"limit of {Settings().inbox_limit:,} messages to an inbox",
        f"After {'five' if deliveries.MAX_FAILURES == 5 else deliveries.MAX_FAILURES} counted attempts",
        f"At most {connection.MAX_HELD_BYTES // 2**20} MiB is held for it",
        f"up to {'a day' if protocol.MAX_ACK_WAIT_SECONDS == 86400 else protocol.MAX_ACK_WAIT_SECONDS} in all",
    ],
    "howto.md": [
        f"up to {protocol.MAX_DELAY_SECONDS / 86400:.0f} days ahead",
        f"wait up to {protocol.MAX_WAIT_SECONDS:.0f} s for it",
        f"({message.ACK_WAIT_US // 10**6} s, or `ack_wait`)",
    ],
    "python.md": ["after five failures" if deliveries.MAX_FAILURES == 5 else "after more"],
}


@pytest.mark.parametrize(("page", "said"), [(page, said) for page, all_said in NUMBERS.items() for said in all_said])
def test_a_number_in_the_prose_is_the_codes(page: str, said: str) -> None:
    assert " ".join(said.split()) in " ".join(PAGES[f"docs/{page}"].split())
