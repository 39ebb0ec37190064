"""What was heard and is not written yet: bounded, whoever makes how much noise.

What administrators do is kept one by one. Refusals, which any stranger can cause, are gathered: the same one within a second
is one entry with a count. Each process may write SPARE different ones at once and then one every REFILL_SECONDS; what
goes beyond is told once a minute in one entry, with the number of refusals of each address. So a flood costs at most
three records a minute and worker, about 0.2 GB in 90 days of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from bus.audit.record import Entry
from bus.events import Audited
from bus.masking import masked
from bus.message import now_us

SECOND_US = 1_000_000
WINDOW_US = SECOND_US
SUMMARY_US = 60 * SECOND_US
SPARE = 500
REFILL_SECONDS = 30.0
MAX_WAITING = 10_000
"""Entries that wait while the store can't write; beyond, the youngest are lost, and counted."""

ADDRESSES = 20
"""Addresses that a summary names; all others are one."""

MAX_CHARACTERS = 300
MAX_DETAILS = 20
REFUSED, SUMMARY, LOST = "refused", "audit.summarised", "audit.lost"


class Gatherer:
    """Event loop only. `lost` counts what found no room since it was last written."""

    def __init__(self, clock_us: Callable[[], int] = now_us) -> None:
        """`clock_us` is the bus's clock."""
        self._clock_us = clock_us
        self._waiting: list[Entry] = []
        self._window: dict[tuple[object, ...], Entry] = {}  # the refusals of this second, by what makes them equal
        self._window_ends = 0
        self._beyond: Counter[str] = Counter()
        self._beyond_ends = 0
        self._allowance, self._refilled_us = float(SPARE), 0
        self.lost = 0

    def hear(self, event: Audited) -> bool:
        """Take an event; True when there is something to write at once."""
        now = self._clock_us()
        if event.outcome != REFUSED:
            self._keep(entry_of(event, now))
            return True
        self._gather(event, now)
        return False

    @property
    def is_empty(self) -> bool:
        return not (self._waiting or self._window or self._beyond or self.lost)

    def take(self, *, all_: bool = False) -> list[Entry]:
        """What is to be written now; with `all_`, also what would be gathered for a while."""
        now = self._clock_us()
        if self._window and (all_ or now >= self._window_ends):
            for entry in self._window.values():
                self._keep(entry)
            self._window.clear()
        if self._beyond and (all_ or now >= self._beyond_ends):
            self._keep(_summary(self._beyond, now))
            self._beyond.clear()
        taken, self._waiting = self._waiting, []
        if self.lost:
            taken.append(Entry(now, LOST, "failed", "audit", "audit_logs", times=self.lost))
            self.lost = 0
        return taken

    def put_back(self, entries: Sequence[Entry]) -> None:
        """What could not be written."""
        kept = [entry for entry in entries if entry.operation != LOST]
        self.lost += sum(entry.times for entry in entries if entry.operation == LOST)
        self._waiting[:0] = kept
        self.lost += len(self._waiting[MAX_WAITING:])
        del self._waiting[MAX_WAITING:]

    def _keep(self, entry: Entry) -> None:
        if len(self._waiting) < MAX_WAITING:
            self._waiting.append(entry)
        else:
            self.lost += 1

    def _gather(self, event: Audited, now: int) -> None:
        entry = entry_of(event, now)
        key = (entry.user_id, entry.operation, entry.table_name, entry.record_id, entry.address)
        if known := self._window.get(key):
            known.times += 1
        elif self._may_write(now):
            if not self._window:
                self._window_ends = now + WINDOW_US
            self._window[key] = entry
        else:
            if not self._beyond:
                self._beyond_ends = now + SUMMARY_US
            named = entry.address in self._beyond or len(self._beyond) < ADDRESSES
            self._beyond[entry.address if named else "others"] += 1

    def _may_write(self, now: int) -> bool:
        """Take one from the allowance, which fills up again with time."""
        earned = (now - self._refilled_us) / SECOND_US / REFILL_SECONDS
        self._allowance = min(float(SPARE), self._allowance + earned)
        self._refilled_us = now
        if self._allowance < 1:
            return False
        self._allowance -= 1
        return True


def entry_of(event: Audited, now: int) -> Entry:
    """An event as it is written. A detail `old.name` is a former value, `org_id` the organisation, all else what is new."""
    kind, colon, own = event.target.partition(":")
    if not colon or kind.startswith("/"):
        kind, own = ("route", event.target) if event.target.startswith("/") else (event.target, "")
    old: dict[str, str] = {}
    new: dict[str, str] = {}
    for name, value in list(event.detail.items())[:MAX_DETAILS]:
        if name != "org_id":
            values = old if name.startswith("old.") else new
            values[_clean(name.removeprefix("old."))] = _clean(value)
    org_id = event.detail.get("org_id")
    return Entry(
        timestamp_us=now,
        operation=_clean(event.action),
        outcome=event.outcome,
        user_id=_clean(event.actor),
        table_name=_clean(kind),
        record_id=_clean(own),
        old_values=old or None,
        new_values=new or None,
        org_id=None if org_id is None else _clean(org_id),
        address=_clean(event.address),
        request_id=_clean(event.request_id),
    )


def _summary(by_address: Counter[str], now: int) -> Entry:
    counts = {address or "unknown": str(times) for address, times in by_address.items()}
    return Entry(now, SUMMARY, REFUSED, "anybody", "audit_logs", new_values=counts, times=by_address.total())


def _clean(text: str) -> str:
    """A text without secrets, of bounded length, that UTF-8 can hold: targets and details may be a stranger's."""
    return masked(text)[:MAX_CHARACTERS].encode("utf-8", "replace").decode()
