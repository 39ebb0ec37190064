"""What of the bus retention needs, as plain callables: so it runs in a test without one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
import msgspec

from bus.events import Event
from bus.message import Epochs, now_us
from bus.metrics import Metrics
from bus.storage.deliveries import Swept


class Host(msgspec.Struct):
    """`read` and `write` wait for a job on a reader's or the writer's thread; `clock()` is the bus's, in microseconds.

    `folder` is the archive's. `wants` says whether anybody hears an event of a type; `is_busy` whether others write.
    """

    read: Callable[[Any], Any]
    write: Callable[[Any], Any]
    clock: Callable[[], int]
    epochs: Callable[[], Epochs]
    folder: Path
    tell_swept: Callable[[Swept], None]
    emit: Callable[[Event], None]
    wants: Callable[[type[Event]], bool]
    is_busy: Callable[[], bool]
    metrics: Metrics
    wall: Callable[[], int] = now_us
    pause: Callable[[float], None] = gevent.sleep
