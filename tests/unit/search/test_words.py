"""Words: what is written in one way and asked for in another is the same word, in every script; nothing is an operator."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import apsw
import pytest

from bus import search
from bus.errors import Malformed
from bus.search.query import Wanted, parse
from bus.search.snippets import snippet
from bus.search.sqlite_index import SQLITE, fts5_match
from bus.search.words import MAX_CHARACTERS, indexed, texts_of

Search = Callable[[str], list[int]]
SENTENCES = [
    "The deploy of build-42 failed: timeout after 30s",
    "שָׁלוֹם עוֹלָם, הבנייה נכשלה",
    "Die Größe der Straße in Zürich",
    "私は日本語を勉強します。東京タワー",
    "한국어 문장입니다",
    "ภาษาไทยง่ายนิดเดียว",
    "Ｆｕｌｌ ｗｉｄｔｈ ＡＢＣ",
    "see https://example.com/a_b-c.txt?x=1",
    "OR AND NOT NEAR text: marks who",
    "x" * 300,
]


@pytest.fixture(scope="module")
def find() -> Search:
    """Looks for a text in an index of SENTENCES."""
    connection = apsw.Connection(":memory:")
    folder = Path(search.__file__).parent / "migrations"
    connection.execute((folder / "0001_search.sql").read_text())
    rows = [(number, indexed(text), "", "") for number, text in enumerate(SENTENCES)]
    connection.execute(SQLITE.insert(len(rows)), [value for row in rows for value in row])

    def ask(text: str) -> list[int]:
        match = fts5_match(Wanted(parse(text)))
        return [
            seq for (seq,) in connection.execute("SELECT rowid FROM search_index WHERE search_index MATCH ?", (match,))
        ]

    return ask


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("DEPLOY", 0),
        ("time* dep*", 0),
        ("build-42", 0),
        ('"deploy of build"', 0),
        ("שלום", 1),
        ("עולם שלום", 1),
        ("שָׁלוֹם", 1),
        ("grosse STRASSE zurich", 2),
        ("Größe", 2),
        ("日本", 3),
        ("本語を勉", 3),
        ("日", 3),
        ("ー", 3),
        ("東京 タワー", 3),
        ("문장", 4),
        ("어", 4),
        ("ไทย", 5),
        ("full abc", 6),
        ("example.com", 7),
        ("a_b-c.txt", 7),
        ("near OR", 8),
        ("x" * 250, 9),
    ],
)
def test_a_word_is_found_however_it_is_written(find: Search, text: str, found: int) -> None:
    assert find(text) == [found]


@pytest.mark.parametrize(
    "text",
    [
        '"of deploy"',
        "deploy OR nothing",
        "NEAR(deploy failed)",
        "text:deploy",
        "語日",
        "deplo",
        "-deployment",
        "^deploys",
    ],
)
def test_all_of_it_has_to_be_found_and_nothing_is_an_operator(find: Search, text: str) -> None:
    assert find(text) == []


def test_any_garbage_is_a_search_or_refused(find: Search) -> None:
    chance = random.Random(7)
    alphabet = [
        "a",
        "deploy",
        "日",
        "ש",
        '"',
        "'",
        "*",
        "(",
        ")",
        ":",
        "-",
        "+",
        "^",
        "{",
        "}",
        " ",
        "\\",
        "\0",
        "%",
        ";",
        "é",
        "\u0301",
    ]
    alphabet += [" OR ", " NEAR/2 ", "\U0001f600", "\ud7a3", "\u0e31", "𐐷", "½", "ﷺ"]
    for _ in range(600):
        text = "".join(chance.choices(alphabet, k=chance.randint(1, 25)))
        with suppress(Malformed):
            find(text)


@pytest.mark.parametrize("text", ["", '"', "* -", "a*", "w " * 600, " ".join(f"w{n}" for n in range(33))])
def test_what_can_not_be_looked_for_is_refused(text: str) -> None:
    with pytest.raises(Malformed) as refused:
        parse(text)
    assert refused.value.field == "q"


def test_values_are_texts_and_keys_are_not() -> None:
    payload = json.dumps({"key": ["one", {"k2": "two"}, None, True, 4711, -1.50, 10**30], "k3": ""}).encode()
    assert texts_of(payload, len(payload)).split() == ["one", "two", "4711", "-1.5", f"1{'0' * 30}"]


def test_of_a_long_payload_the_beginning_counts() -> None:
    payload = json.dumps({"first": 'said "שלום" \\ ', "second": "rest " * 50_000}).encode()
    found = texts_of(payload[:65_536], len(payload))
    assert found.startswith('said "שלום" \\  rest rest')
    assert len(found) == MAX_CHARACTERS
    assert texts_of(b'{"a": "cut in \\u05', 1000).startswith("cut in ")
    assert texts_of('{"a": "cut in ש'.encode()[:-1], 1000) == "cut in "


@pytest.mark.parametrize(
    ("text", "wanted", "marked"),
    [
        ("all is well", "IS", ["is"]),
        ("שָׁלוֹם עולם", "שלום", ["שָׁלוֹם"]),
        ("私は日本語を", "日本", ["日本"]),
        ("word " * 100 + "needle " + "word " * 100, "needle", ["needle"]),
        ("deployment and deploy", "dep*", ["deployment", "deploy"]),
        ("<img src=x onerror=alert(1)>", "onerror", ["onerror"]),
        ("nothing here", "elsewhere", []),
    ],
)
def test_a_snippet_says_where_the_words_stand(text: str, wanted: str, marked: list[str]) -> None:
    shown = snippet(json.dumps(text).encode(), parse(wanted))
    assert [shown.text[at : at + length] for at, length in shown.matches] == marked
    assert len(shown.text) <= 160
