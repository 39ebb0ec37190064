"""The parsers' fuzzer, in short; `python -m tests.fuzz.parsers` goes on for ten minutes."""

from __future__ import annotations

from tests.fuzz import parsers


def test_broken_bytes_are_refused_in_their_way() -> None:
    count, failure = parsers.run(2.0, seed=1)
    assert not failure, failure
    assert count > 100
