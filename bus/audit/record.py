"""A record of the audit trail, and the chain of hashes that they form.

    hash = SHA-256(the hash before it, as 32 bytes + the record as JSON without its hash)

The JSON has its keys in alphabetical order, no spaces, and nothing but ASCII: `json.dumps(record, sort_keys=True,
separators=(",", ":"))` of Python makes it from an exported line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any, Self

import msgspec

from bus.message import iso

GENESIS = "0" * 64
"""What stands before the first record."""

TRIMMED = "audit.trimmed"
"""Retention's own operation: `record_id` is the number of the last record that it took, `new_values` has its hash."""


class Anchor(msgspec.Struct, frozen=True):
    """Where the chain begins: the number and hash of the record before its first one."""

    number: int = 0
    hash: str = GENESIS


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the trail: `user_id` did `operation` to the record `record_id` of `table_name`, and what came of it.

    `outcome`: done, refused, failed. `times`: how often the same was refused within a second. `hash` is over the hash before
    it and this record.
    """

    number: int
    timestamp: str
    table_name: str
    record_id: str
    operation: str
    outcome: str
    old_values: dict[str, str] | None
    new_values: dict[str, str] | None
    user_id: str
    org_id: str | None
    address: str
    request_id: str
    times: int
    hash: str


class Entry(msgspec.Struct):
    """What becomes a record once it has its place. `timestamp_us`: the bus's clock."""

    timestamp_us: int
    operation: str
    outcome: str
    user_id: str
    table_name: str = ""
    record_id: str = ""
    old_values: dict[str, str] | None = None
    new_values: dict[str, str] | None = None
    org_id: str | None = None
    address: str = ""
    request_id: str = ""
    times: int = 1

    def placed(self, before: Anchor) -> Record:
        """The record that follows another one."""
        fields = msgspec.structs.asdict(self)
        fields["timestamp"] = iso(fields.pop("timestamp_us")).decode()
        fields["number"] = before.number + 1
        return Record(**fields, hash=digest(before.hash, fields))


def digest(before: str, fields: dict[str, Any]) -> str:
    """The hash of a record whose fields, but for its hash, are these."""
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(bytes.fromhex(before) + text.encode()).hexdigest()


class Broken(Exception):
    """The chain does not hold. The text is a sentence that names the record."""


class Chain:
    """Checks records in the order of their numbers, from an anchor on. `end` is the last one that held."""

    def __init__(self, anchor: Anchor, *, expected: Anchor | None = None) -> None:
        """`expected`: a record's number and hash as somebody noted them before; it has to be in the chain."""
        self._anchor = anchor
        self.end = anchor
        self._expected = expected
        self._trimmed: Anchor | None = None
        self.records = 0

    def add(self, records: Iterable[Record]) -> Self:
        """Check some more. Raises Broken."""
        for record in records:
            fields = msgspec.structs.asdict(record)
            written = fields.pop("hash")
            if record.number != self.end.number + 1:
                raise Broken(
                    f"Record {self.end.number + 1} is missing: record {record.number} follows {self.end.number}."
                )
            if digest(self.end.hash, fields) != written:
                raise Broken(
                    f"Record {record.number}, or one before it, was changed: its hash is not that of its content."
                )
            self.end = Anchor(record.number, written)
            self.records += 1
            if record.operation == TRIMMED:
                self._trimmed = Anchor(int(record.record_id), (record.new_values or {}).get("hash", ""))
            if self._expected is not None and record.number == self._expected.number:
                self._check_expected(written)
        return self

    def close(self) -> None:
        """Check what only the whole chain tells. Raises Broken."""
        if self._anchor.number and self._trimmed != self._anchor:
            raise Broken(
                f"The trail begins behind record {self._anchor.number}, and no record says that retention took those before."
            )
        expected, first, last = self._expected, self._anchor.number, self.end.number
        if expected is not None and expected.number < first:
            raise Broken(
                f"Record {expected.number} can't be compared: retention took all up to {first}. Note another one."
            )
        if expected is not None and expected.number == first:
            self._check_expected(self._anchor.hash)
        if expected is not None and expected.number > last:
            raise Broken(f"Record {expected.number}, which was noted, is missing: the trail ends with {last}.")

    def _check_expected(self, written: str) -> None:
        if self._expected is not None and written != self._expected.hash:
            raise Broken(f"Record {self._expected.number} is not the one that was noted: the trail was written anew.")
