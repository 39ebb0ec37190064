"""One WebSocket connection of a client, from the handshake to its end. A session is never used again.

websockets' own threads answer pings, and stop reading the socket while nobody takes what was read; that is the
back-pressure. Its keep-alive is off, because it would take a slow application for a dead server: `read` looks for
signs of life itself, and only while it is hungry.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import threading
import time

import msgspec
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.http11 import Response
from websockets.sync.client import ClientConnection, connect

from bus.client.received import ServerFrame, decode_frame
from bus.client.reconnection import Ending
from bus.client.rest import USER_AGENT, Address, reason_of, seconds_of

OPEN_SECONDS = 10.0
CLOSE_SECONDS = 2.0
STALL_SECONDS = 10
"""How long a write may make no progress before the connection counts as dead."""
SILENCE_SECONDS = 20.0
"""After so long without a frame a ping is sent, and after as long again without its pong the server counts as dead."""


class SessionEnded(Exception):
    """The connection is gone, or did not come about. `ending` says why."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.reason)
        self.ending = ending


class Session:
    """An open, confirmed connection. One thread reads; any thread may write or close."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._probe: threading.Event | None = None
        self._probe_at = time.monotonic() + SILENCE_SECONDS
        self.confirmed = ServerFrame()
        """The `connection_confirmed` that began it."""

    @classmethod
    def open(cls, address: Address, url: str, api_key: str | None) -> Session:
        """Connect to `url`, a socket of the bus at `address`, and wait for the server's confirmation.

        Raises SessionEnded within about twice OPEN_SECONDS.
        """
        try:
            connection = connect(
                url,
                legacy=True,
                additional_headers={"X-API-Key": api_key} if api_key else None,
                user_agent_header=USER_AGENT,
                proxy=None if address.is_loopback else True,
                compression=None,
                open_timeout=OPEN_SECONDS,
                close_timeout=CLOSE_SECONDS,
                ping_interval=None,
                max_size=None,  # The server bounds its messages; a second bound here could only break the connection.
            )
        except InvalidStatus as error:
            raise SessionEnded(_refused(error.response)) from error
        except (OSError, WebSocketException, http.client.HTTPException) as error:
            raise SessionEnded(Ending(reason=f"{address.base} can't be reached: {reason_of(error)}")) from error
        with contextlib.suppress(OSError):  # Closed by the server already: the first read tells why.
            timeval = struct.pack("@ll", STALL_SECONDS, 0)
            connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
        session = cls(connection)
        try:
            session._await_confirmation()
        except BaseException:
            session.close(1002)
            raise
        return session

    def read(self, timeout: float) -> ServerFrame | None:
        """The next frame, or None when none came within `timeout` seconds. Raises SessionEnded."""
        try:
            now = time.monotonic()
            if now >= self._probe_at:
                self._look_for_life(now)
            data = self._connection.recv(timeout=max(0.0, min(timeout, self._probe_at - now)), decode=False)
        except TimeoutError:
            return None
        except (ConnectionClosed, OSError) as error:
            raise SessionEnded(_ending_of(error)) from error
        self._probe = None
        self._probe_at = time.monotonic() + SILENCE_SECONDS
        try:
            return decode_frame(data)
        except msgspec.DecodeError as error:
            self.close(1007)
            raise SessionEnded(Ending(reason=f"the server sent what is no frame of a bus: {error}")) from error

    def write(self, text: bytes) -> None:
        """Send one text frame. Raises SessionEnded; then the frame may or may not have arrived."""
        try:
            self._connection.send(text, text=True)
        except (ConnectionClosed, OSError) as error:
            raise SessionEnded(_ending_of(error)) from error

    def close(self, code: int = 1000) -> None:
        """Shake hands for closing, or cut the connection after CLOSE_SECONDS. The reader must go on reading."""
        self._connection.close(code)

    def _look_for_life(self, now: float) -> None:
        if self._probe is not None and not self._probe.is_set():
            self._connection.close_socket()
            raise SessionEnded(Ending(reason=f"the server gave no sign of life for {SILENCE_SECONDS:.0f} s"))
        self._probe = self._connection.ping()
        self._probe_at = now + SILENCE_SECONDS

    def _await_confirmation(self) -> None:
        deadline = time.monotonic() + OPEN_SECONDS
        while (remaining := deadline - time.monotonic()) > 0:
            frame = self.read(remaining)
            if frame is not None and frame.type == "connection_confirmed":
                self.confirmed = frame
                return
        raise SessionEnded(Ending(reason="the server did not confirm the connection in time"))


class _Body(msgspec.Struct):
    error: str


def _refused(response: Response) -> Ending:
    try:
        sentence = msgspec.json.decode(response.body or b"", type=_Body).error
    except msgspec.DecodeError:
        sentence = f"The server answered {response.status_code} {response.reason_phrase}."
    after = seconds_of(response.headers.get("Retry-After"))
    return Ending(reason=sentence, status=response.status_code, after_seconds=after)


def _ending_of(error: ConnectionClosed | OSError) -> Ending:
    if isinstance(error, OSError):
        return Ending(reason=f"the connection broke: {reason_of(error)}")
    if error.rcvd is None:
        return Ending(reason="the connection broke")
    return Ending(reason=error.rcvd.reason or f"the server closed with {error.rcvd.code}", close_code=error.rcvd.code)
