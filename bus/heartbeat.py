"""Pings, deadlines and the lazy writing of cursors: what happens to connections as time passes.

Everything goes by the monotonic clock. The connections are looked at in slices, each once a second, so that no turn
of the event loop pays for all of them.
"""

from __future__ import annotations

import time
from collections import deque

import gevent

from bus.connection import Connection
from bus.cursors import Cursors
from bus.hub import Hub

PING_SECONDS = 25.0
"""An idle connection is pinged this often: below the 30 and 60 s after which proxies forget a silent one."""

SILENT_SECONDS = 35.0
"""A peer that sent nothing, and took nothing, for so long is dropped."""

STUCK_SECONDS = 30.0
"""A slow reader that took no byte of what is held for it, for so long, is closed with 1013."""

SLICES = 20


class Heartbeat:
    """Event loop only. One timer for all connections."""

    def __init__(self, hub: Hub, cursors: Cursors) -> None:
        self._hub = hub
        self._cursors = cursors
        self._round: list[Connection] = []
        self._at = 0
        self._seqs: deque[int] = deque(maxlen=61)  # the log's end, second by second
        self._timer = gevent.get_hub().loop.timer(1.0 / SLICES, 1.0 / SLICES)

    def start(self) -> None:
        self._timer.start(self._tick)

    def stop(self) -> None:
        self._timer.stop()

    def messages_per_minute(self) -> int:
        """Messages of the whole bus in the last 60 s; since the start, when that is less long ago."""
        return self._hub.tail.delivered - self._seqs[0] if self._seqs else 0

    def _tick(self) -> None:
        if self._at % SLICES == 0:
            self._round = list(self._hub.connections)
            self._seqs.append(self._hub.tail.delivered)
            self._cursors.flush()
        mine = self._round[self._at % SLICES :: SLICES]
        self._at += 1
        now = self._hub.now = time.monotonic()
        for connection in mine:
            if connection.descriptor >= 0 and not connection.closing:
                self._look_at(connection, now)

    def _look_at(self, connection: Connection, now: float) -> None:
        if connection.held is not None:
            connection.look_for_progress(now)
            if self._hub.written.held is not None:
                self._hub.written.held(connection.held_bytes)
        if connection.held is not None and now - connection.last_progress > STUCK_SECONDS:
            connection.close(1013, "Too slow: nothing was read for 30 s. Come back; nothing is lost.")
            connection.lose()  # it does not read, so it would not read the close frame either
        elif not connection.encoding.answers:
            self._look_at_stream(connection, now)
        elif now - max(connection.last_read, connection.last_progress) > SILENT_SECONDS:
            connection.lose()
        elif self._owes_ping(connection) or now - max(connection.last_ping, connection.last_read) > PING_SECONDS:
            self._ping(connection)
            connection.last_ping = now

    def _look_at_stream(self, connection: Connection, now: float) -> None:
        """A peer that never answers: it gets its ping when it is due, and the kernel is asked what became of the rest."""
        if now >= connection.next_beat:
            connection.next_beat = now + connection.encoding.beat_seconds
            self._ping(connection)
        elif not (connection.unsure or self._owes_ping(connection)):
            return
        else:
            self._hub.flush()
        if connection.descriptor < 0 or connection.closing:
            return
        if self._hub.confirm_taken(connection):
            connection.unsure = False
            return
        if not connection.unsure:  # the deadline begins when the first bytes are on their way
            connection.unsure = True
            connection.taken = connection.count_taken()
            connection.last_progress = now
            return
        connection.look_for_progress(now)
        if now - connection.last_progress > STUCK_SECONDS:
            connection.close_code = 1013
            connection.lose()

    def _owes_ping(self, connection: Connection) -> bool:
        """True when something was written since the last ping."""
        room = connection.room
        if room is None:
            return False
        if not connection.live:
            return connection.position > connection.pinged
        return max(room.last_seq, self._hub.last_to_all) > connection.pinged

    def _ping(self, connection: Connection) -> None:
        """Ask the peer to confirm what was written to it so far, or tell it how far that is."""
        hub = self._hub
        hub.flush()
        if connection.descriptor < 0 or connection.closing:
            return
        seq = hub.tail.delivered if connection.live else connection.position
        connection.pinged = max(seq, connection.pinged)
        connection.write(connection.encoding.ping(connection.pinged), 0)
