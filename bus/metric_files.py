"""Makes one account of all workers' figures: each leaves a sample in a file named by its slot, and reads the others'.

A successor in a slot counts on from what its predecessor left: what only rises never falls, and a worker that was killed
loses what it counted since its last sample, a second at most. The first worker of a server begins with none, so nothing
piles up and no figure outlives its server.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
from msgspec import structs

from bus.metrics import Block

STALE_SECONDS = 5.0
"""What rises and falls is left out when its worker said nothing for so long: it is gone, or stopped."""

WORKER = "worker"
"""The label that a figure of one worker gets; its value is the slot."""

_RISES = ("counter", "histogram", "summary")


class _Sample(msgspec.Struct):
    """What a slot left, at a moment of the clock that all processes of a machine share."""

    at: float
    blocks: list[Block]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Sample).decode


class MetricFiles:
    """The samples of a server's workers. `take()` gives this worker's present figures. Event loop only."""

    def __init__(self, folder: Path, slot: int, take: Callable[[], list[Block]]) -> None:
        self._folder = folder
        self._take = take
        self.on_sample: Callable[[list[Block]], None] = lambda _: None  # hears what each sample holds
        self._path = _path(folder, slot)
        former = _read(self._path)
        self._inherited = {block.name: block for block in former.blocks if block.kind in _RISES} if former else {}

    def own(self) -> list[Block]:
        """This slot's figures: what this worker counted, on top of what its predecessors did."""
        blocks = self._take()
        for block in blocks:
            before = self._inherited.get(block.name)
            if before is not None and _are_alike(block, before):
                _add(block, before)
        taken = {block.name for block in blocks}
        rest = [block for name, block in self._inherited.items() if name not in taken]
        return blocks + [structs.replace(block, series=dict(block.series)) for block in rest]

    def sample(self) -> Callable[[], None]:
        """Take a sample; what is returned puts it in the place of the last, whole or not at all, and may run on a native
        thread. One after the other: an older one must not follow a newer. It raises OSError."""
        blocks = self.own()
        self.on_sample(blocks)
        data = _encode(_Sample(time.monotonic(), blocks))
        draft = self._path.with_suffix(".new")

        def write() -> None:
            draft.write_bytes(data)
            os.replace(draft, self._path)

        return write

    def all(self) -> list[Block]:
        """The account of all slots, as their last samples tell it: so whoever is asked next tells no less."""
        merged: dict[str, Block] = {}
        for path in sorted(self._folder.glob("metrics-*.msgpack")):
            sample = _read(path)
            if sample is not None:
                slot = int(path.stem.removeprefix("metrics-"))
                _merge(merged, sample.blocks, slot, alive=time.monotonic() - sample.at < STALE_SECONDS)
        return list(merged.values())


def forget(folder: Path) -> None:
    """Begin without samples. Only while no worker runs."""
    for path in folder.glob("metrics-*"):
        path.unlink()


def _path(folder: Path, slot: int) -> Path:
    return folder / f"metrics-{slot}.msgpack"


def _read(path: Path) -> _Sample | None:
    """The sample at a path; None when there is none, or it was written by a version with another form."""
    try:
        return _decode(path.read_bytes())
    except (FileNotFoundError, msgspec.MsgspecError):
        return None


def _merge(merged: dict[str, Block], blocks: Iterable[Block], slot: int, *, alive: bool) -> None:
    for block in blocks:
        if not alive and block.kind not in _RISES:
            continue
        if block.across == "worker":
            block.series = {(*pairs, (WORKER, str(slot))): value for pairs, value in block.series.items()}
        known = merged.get(block.name)
        if known is None:
            merged[block.name] = block
        elif _are_alike(known, block):
            _add(known, block, largest=block.across == "max")


def _are_alike(one: Block, other: Block) -> bool:
    return one.kind == other.kind and (one.kind == "summary" or one.bounds == other.bounds)


def _add(into: Block, more: Block, *, largest: bool = False) -> None:
    """Join two blocks of one family."""
    for pairs, value in more.series.items():
        known = into.series.get(pairs)
        if known is None:
            into.series[pairs] = value
        elif largest:
            into.series[pairs] = max(known, value)
        else:
            counted = 2 if into.kind == "summary" else len(value)  # quantiles don't add up
            into.series[pairs] = [a + b for a, b in zip(known[:counted], value[:counted], strict=True)]
