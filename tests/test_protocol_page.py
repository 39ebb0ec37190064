"""What docs/protocol.md says is what there is: its examples, its frames, codes, states and numbers."""

from __future__ import annotations

import ast
import json
import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bus import errors, message, protocol
from bus.errors import BusError
from bus.message import Names, now_us
from bus.protocol import Frame
from bus.settings import Settings
from bus.storage import deliveries, ledger
from bus.testing import BusServer
from bus.transports import answers, delivery, parameters, rest, sends, ws_verbs
from bus.transports.ws_verbs import VERBS
from tests.conformance.remote import Remote

BUS = Path(errors.__file__).parent
PAGE = (BUS.parent / "docs" / "protocol.md").read_text()
SERVER_SIDE = [path for path in BUS.rglob("*.py") if not {"client", "cli"} & set(path.relative_to(BUS).parts)]
SOURCE = "\n".join(path.read_text() for path in SERVER_SIDE if "webhooks" not in path.parts)


def examples(label: str) -> list[dict[str, Any]]:
    """The JSON objects of the blocks with this label, one a line."""
    blocks = re.findall(rf"^```json {label}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert blocks, f"There is no block of {label} examples."
    return [json.loads(line) for block in blocks for line in block.splitlines()]


def section(title: str) -> str:
    """The text under a heading."""
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert found is not None, f"There is no section {title}."
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The cells of its tables, without heads."""
    lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line] for line in lines]
    return [
        row for at, row in enumerate(cells) if set(row[0]) != {"-"} and not (cells[at + 1 :] and is_rule(cells[at + 1]))
    ]


def constant(path: str, name: str) -> Any:
    """The value of a private constant of a module."""
    found = re.search(rf"^{name} = (.*)$", (BUS / path).read_text(), re.MULTILINE)
    assert found is not None
    return ast.literal_eval(found[1])


def is_rule(row: list[str]) -> bool:
    """True for the line between a table's head and its body."""
    return set("".join(row)) == {"-"}


def named(cell: str) -> set[str]:
    """The words in code type of a cell."""
    return set(re.findall(r"`([^`]+)`", cell))


# ---- examples


def test_every_block_of_examples_is_checked_here() -> None:
    labels = set(re.findall(r"^```json ?(.*)$", PAGE, re.MULTILINE))
    assert labels == {"message", "inbound", "outbound", "send", "verdict", "page"}


@pytest.mark.parametrize("frame", examples("inbound"), ids=str)
def test_an_inbound_example_is_a_good_frame(frame: dict[str, Any]) -> None:
    assert set(frame) <= set(Frame.__struct_encode_fields__)
    read = protocol.read(protocol.decode_frame, json.dumps(frame).encode(), "frame")
    if frame["type"] in ("send", "request"):
        protocol.draft_of(read, "code", read.msg_type, names=Names(), stamp_us=now_us())
    elif frame["type"] in ledger.VERBS:
        protocol.settle_of(frame["type"], read, read.message_id, "browser")
    assert frame["type"] in {*VERBS, "send", "ping", "auth"}


@pytest.mark.parametrize("body", examples("send"), ids=str)
def test_a_send_example_is_a_good_send(body: dict[str, Any]) -> None:
    assert set(body) <= set(protocol.Send.__struct_encode_fields__)
    send = protocol.read(protocol.decode_send, json.dumps(body).encode(), "body")
    stamp = message.parse_time("2026-02-21T17:27:21+00:00", "now")
    protocol.draft_of(send, send.sender, send.type, names=Names(), stamp_us=stamp)


@pytest.mark.parametrize(
    ("label", "type_"),
    [("message", answers.MessageBody), ("verdict", protocol.Verdict), ("page", answers.Messages)],
)
def test_other_examples_have_the_form_of_what_is_served(label: str, type_: Any) -> None:
    for example in examples(label):
        assert set(example) <= set(type_.__struct_encode_fields__)
        msgspec.convert(example, type_)


def test_the_table_of_a_message_names_all_its_fields() -> None:
    fields = [field for row in rows(section("Messages")) for field in re.findall(r"`([^`]+)`", row[0])]
    assert sorted(fields) == sorted(answers.MessageBody.__struct_encode_fields__)


# ---- frames


def test_the_inbound_table_names_every_frame_and_only_fields_that_are_read() -> None:
    table = rows(section("Inbound frames"))
    assert {name for row in table for name in named(row[0])} == {*VERBS, "send", "ping", "auth"}
    assert {field for row in table for field in named(row[1])} - {"send"} <= set(Frame.__struct_encode_fields__)


def test_the_outbound_table_names_every_frame_that_the_code_makes_and_each_has_an_example() -> None:
    made = set(re.findall(r'\{"type": ?"(\w+)"', SOURCE)) | set(
        re.findall(r'^ +"type": "(\w+)",$', SOURCE, re.MULTILINE)
    )
    listed = {name for row in rows(section("Outbound frames")) for name in named(row[0])} & made
    assert listed == made - {"string", "http", "apiKey"}
    assert {frame["type"] for frame in examples("outbound")} == listed


def test_real_frames_have_the_fields_of_the_examples(fresh_server: Callable[..., BusServer]) -> None:
    server = fresh_server()
    seen = list(conversation(Remote(lambda: server.url), server))
    for frame in seen:
        alike = [example for example in examples("outbound") if example["type"] == frame["type"]]
        assert set(frame) <= {field for example in alike for field in example} | {"duplicate", "reply"}, frame
        assert set(frame) | {"ref", "deliver_at", "field"} >= set.intersection(*map(set, alike)), frame
    assert {frame["type"] for frame in seen} == {example["type"] for example in examples("outbound")} - {"dropped"}


def conversation(remote: Remote, server: BusServer) -> Iterator[dict[str, Any]]:
    """Every frame that one client can hear, but for what is dropped; the server is stopped at the end."""
    name = f"reader-{secrets.token_hex(4)}"
    socket = remote.connect(name)
    yield socket.hello
    yield socket.ask("send", to=name, delay=60)
    yield socket.ask("send", to=name, require_ack=True)
    got = socket.expect("message")
    yield got
    yield socket.settle("reject", got["message"])
    yield socket.expect("failed")
    yield socket.ask("subscribe", queues=["q"])
    yield socket.ask("request", to="nobody", wait=0)
    yield socket.ask("sing")
    socket.send("ping")
    yield socket.expect("pong")
    server.terminate()
    yield socket.expect("goaway")


def test_the_conformance_tests_know_the_product_only_to_start_it() -> None:
    for path in (BUS.parent / "tests" / "conformance").glob("*.py"):
        imported = re.findall(r"^\s*(?:from|import) (bus\b\S*)", path.read_text(), re.MULTILINE)
        assert imported == (["bus.testing"] if path.name == "conftest.py" else []), path.name


# ---- codes


def raised(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """The (code, status) of every error of the tree that is made somewhere with a code of its own."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        kind = getattr(errors, node.func.id, None)
        if isinstance(kind, type) and issubclass(kind, BusError):
            for keyword in node.keywords:
                if keyword.arg == "code" and isinstance(keyword.value, ast.Constant):
                    yield str(keyword.value.value), kind.status


def test_the_table_of_errors_is_what_the_code_can_say() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, BusError)]
    said = {(kind.code, kind.status) for kind in kinds}
    said |= {(code, status) for status, code in constant("transports/edge.py", "_CODES").items()} | {
        ("websocket_mismatch", 400)
    }
    for path in SERVER_SIDE:
        said |= set(raised(ast.parse(path.read_text())))
    written = {(row[0].strip("`"), int(row[1])) for row in rows(section("Errors"))}
    assert written == said


def test_the_table_of_close_codes_is_what_the_code_closes_with() -> None:
    literal = r"FrameError\((\d{4})|\.close\((\d{4})|^RESTART = (\d{4})|close_code = (\d{4})"
    used = {int(code) for found in re.findall(literal, SOURCE, re.MULTILINE) for code in found if code}
    assert {int(row[0]) for row in rows(section("Close codes"))} == used | {1000, 1006}


def test_the_words_for_states_are_those_of_the_code() -> None:
    text = section("What needs an ack")
    for state in (*constant("delivery/whereabouts.py", "_STATES"), "acked", "dead_letter"):
        assert re.search(rf"--> {state}\b", text)
    ends = set(re.findall(r'(?i:settled)\((?:$|\s)*"(\w+)"', (BUS / "storage" / "ledger.py").read_text()))
    assert named(" ".join(row[0] for row in rows(text))) == ends | {"dead", "nacked", "rejected"}


def test_the_words_for_what_happens_to_a_send_are_those_of_the_code() -> None:
    (fates,) = re.findall(r'"""What happens to a message for one recipient: (.*?)"""', SOURCE, re.DOTALL)
    told = {row[0].strip("`") for row in rows(section("Outbound frames").partition("`recipients` has")[2])}
    assert told == set(re.findall(r"delivered|queued|unknown|refused|dropped|scheduled|sent", fates))


def test_the_reasons_for_a_gap_are_those_of_the_code() -> None:
    reasons = {row[0].strip("`") for row in rows(section("Cursors, epochs, gaps"))}
    assert reasons == set(re.findall(r'"(evicted|epoch_changed|unknown)"', (BUS / "resume.py").read_text()))


# ---- numbers

NUMBERS: dict[str, list[object]] = {
    "one message's JSON": [f"{Settings().max_message_size // 2**20} MiB", sends.BATCH_BODY_FACTOR],
    "JSON depth": [message.MAX_JSON_DEPTH],
    "names in a list": [f"{message.MAX_RECIPIENTS:,}; {sends.MAX_BATCH:,}"],
    "`idempotency_key`": [f"1–{protocol.MAX_KEY_LENGTH}"],
    "`headers`": [protocol.MAX_HEADERS],
    "`reason`": [f"{protocol.MAX_REASON_LENGTH:,}"],
    "`ack_wait`": [
        protocol.MIN_ACK_WAIT_SECONDS,
        f"{protocol.MAX_ACK_WAIT_SECONDS / 3600:.0f} h",
        f"{message.ACK_WAIT_US // 1_000_000} s",
    ],
    "`delay`": [f"{protocol.MAX_DELAY_SECONDS / 86400:.0f} days"],
    "`ttl`": [f"{protocol.MAX_TTL_SECONDS / 86400:,.0f} days"],
    "`wait`": [f"0–{protocol.MAX_WAIT_SECONDS:.0f} s", f"{protocol.DEFAULT_REQUEST_WAIT:.0f} s"],
    "`limit`": [f"0–{parameters.MAX_LIMIT:,}", f"{rest.MAX_PAGE_BYTES // 2**20} MiB"],
    "items of one claim": [f"1–{delivery.MAX_CLAIMED}"],
    "`max_in_flight`": [f"1–{ws_verbs.MAX_IN_FLIGHT:,}", ws_verbs.DEFAULT_IN_FLIGHT],
    "leased messages": [deliveries.CLIENT_WINDOW],
    "counted failures": [deliveries.MAX_FAILURES],
    "rests": [", ".join(map(str, deliveries.BACKOFF_SECONDS)), f"{deliveries.JITTER:.0%}".replace("%", " %")],
    "what waits in an inbox": [f"{Settings().inbox_limit:,}", f"{Settings().queue_limit:,}"],
}


@pytest.mark.parametrize("begins", NUMBERS)
def test_a_number_on_the_page_is_the_codes(begins: str) -> None:
    (row,) = [row for row in rows(section("Limits and numbers")) if row[0].startswith(begins)]
    for number in NUMBERS[begins]:
        assert str(number) in row[1], row
