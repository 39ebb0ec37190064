"""A WebSocket client that does only what it is told: chosen handshake headers, any bytes, every frame seen.

For tests of the protocol itself, where a well-behaved library would hide what goes over the wire. It answers pings
(so that a kept cursor moves as with any client) unless `answers_pings` is false. Every wait is bounded.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import ssl
import struct
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from tests.closing import Closing

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
WAIT_SECONDS = 10.0


class Frame(NamedTuple):
    """One frame as it came; `reserved` are the three RSV bits."""

    opcode: int
    payload: bytes
    is_final: bool = True
    reserved: int = 0

    @property
    def close_code(self) -> int:
        """The code of a close frame, 1005 when it has none."""
        return int.from_bytes(self.payload[:2], "big") if self.payload else 1005

    @property
    def close_reason(self) -> str:
        """The reason of a close frame."""
        return self.payload[2:].decode()


class Disconnected(Exception):
    """The server ended the connection without a close frame."""


def frame_bytes(
    opcode: int,
    payload: bytes = b"",
    *,
    is_final: bool = True,
    reserved: int = 0,
    mask: bytes | None = b"\x00\x00\x00\x00",
    announced: int | None = None,
) -> bytes:
    """A frame as a client sends it. None for `mask`: unmasked, a violation; `announced` lies about the length."""
    size = len(payload) if announced is None else announced
    masked = 0x80 if mask is not None else 0
    first = (0x80 if is_final else 0) | reserved << 4 | opcode
    if size < 126:
        head = struct.pack("!BB", first, masked | size)
    elif size < 65536:
        head = struct.pack("!BBH", first, masked | 126, size)
    else:
        head = struct.pack("!BBQ", first, masked | 127, size)
    if mask is None:
        return head + payload
    if any(mask):
        payload = bytes(byte ^ mask[place % 4] for place, byte in enumerate(payload))
    return head + mask + payload


class RawWebSocket(Closing):
    """One connection. `status` and `headers` are the handshake's answer, `body` what came with a refusal."""

    def __init__(
        self,
        port: int,
        path: str,
        headers: Mapping[str, str | None] | None = None,
        *,
        answers_pings: bool = True,
        receive_buffer_bytes: int | None = None,
        host: str = "127.0.0.1",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Connect and shake hands. A header of `headers` replaces the usual one of that name; None leaves it out.

        A small `receive_buffer_bytes` makes a slow reader.
        """
        self.answers_pings = answers_pings
        self.pings: list[bytes] = []
        """The payloads of the pings that came so far."""
        self._buffer = bytearray()
        self.socket = socket.socket()
        try:
            if receive_buffer_bytes is not None:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
            self.socket.settimeout(WAIT_SECONDS)
            self.socket.connect((host, port))
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if tls is not None:
                self.socket = tls.wrap_socket(self.socket, server_hostname=host)
            self._shake_hands(f"{host}:{port}", path, headers or {})
        except BaseException:
            self.socket.close()
            raise

    @property
    def is_open(self) -> bool:
        """True when the server agreed to the upgrade."""
        return self.status == 101

    # ---- out

    def send_bytes(self, data: bytes) -> None:
        """Send `data` as it is."""
        self.socket.settimeout(WAIT_SECONDS)
        self.socket.sendall(data)

    def send_frame(self, opcode: int, payload: bytes = b"", **how: Any) -> None:
        """Send one frame, masked with a random mask; `how` as for `frame_bytes`."""
        how.setdefault("mask", os.urandom(4))
        self.send_bytes(frame_bytes(opcode, payload, **how))

    def send_text(self, text: str | bytes) -> None:
        """Send a text frame; bytes may be what is no text."""
        self.send_frame(TEXT, text.encode() if isinstance(text, str) else text)

    def send_json(self, value: object) -> None:
        """Send a value as a text frame."""
        self.send_text(json.dumps(value, ensure_ascii=False))

    def send_close(self, code: int = 1000, reason: str = "") -> None:
        """Send a close frame."""
        self.send_frame(CLOSE, struct.pack("!H", code) + reason.encode())

    # ---- in

    def read_frame(self, within_seconds: float = WAIT_SECONDS) -> Frame:
        """The next frame of any kind. Raises TimeoutError, or Disconnected when the connection ended without one."""
        deadline = time.monotonic() + within_seconds
        first, second = self._take(2, deadline)
        if second & 0x80:
            raise AssertionError("A server's frame must not be masked.")
        size = second & 0x7F
        if size == 126:
            (size,) = struct.unpack("!H", self._take(2, deadline))
        elif size == 127:
            (size,) = struct.unpack("!Q", self._take(8, deadline))
        frame = Frame(first & 0x0F, self._take(size, deadline), bool(first & 0x80), first >> 4 & 0x7)
        if frame.opcode == PING:
            self.pings.append(frame.payload)
            if self.answers_pings:
                self.send_frame(PONG, frame.payload)
        return frame

    def read_json(self, within_seconds: float = WAIT_SECONDS) -> Any:
        """The value of the next text frame; pings and pongs on the way are passed over. Raises as `read_frame`."""
        frame = self._read_past_pings(within_seconds)
        if frame.opcode != TEXT:
            raise AssertionError(f"A text frame was expected, this came: {frame}.")
        return json.loads(frame.payload)

    def read_until(self, type_: str, within_seconds: float = WAIT_SECONDS) -> Any:
        """The next JSON object with this `type`; others are dropped. Raises as `read_frame`."""
        deadline = time.monotonic() + within_seconds
        while True:
            value = self.read_json(max(deadline - time.monotonic(), 0.001))
            if value.get("type") == type_:
                return value

    def read_close(self, within_seconds: float = WAIT_SECONDS) -> Frame:
        """The close frame; what comes before it is dropped. Raises as `read_frame`."""
        deadline = time.monotonic() + within_seconds
        while True:
            frame = self.read_frame(max(deadline - time.monotonic(), 0.001))
            if frame.opcode == CLOSE:
                return frame

    def read_end(self, within_seconds: float = WAIT_SECONDS) -> None:
        """Wait until the server ends the connection. Raises TimeoutError, or AssertionError when a frame comes."""
        try:
            frame = self.read_frame(within_seconds)
        except Disconnected:
            return
        raise AssertionError(f"The end was expected, this came: {frame}.")

    def is_silent(self, for_seconds: float) -> bool:
        """True when nothing but pings and pongs comes for that long. What came instead is lost."""
        try:
            self._read_past_pings(for_seconds)
        except TimeoutError:
            return True
        return False

    # ---- the end

    def close(self) -> None:
        """Close the socket without a closing handshake. Safe to call twice."""
        self.socket.close()

    # ---- inside

    def _shake_hands(self, host: str, path: str, headers: Mapping[str, str | None]) -> None:
        usual: dict[str, str | None] = {
            "Host": host,
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
            "Sec-WebSocket-Version": "13",
        }
        by_name = {name.lower(): (name, value) for name, value in (*usual.items(), *headers.items())}
        lines = [f"{name}: {value}" for name, value in by_name.values() if value is not None]
        self.send_bytes("\r\n".join([f"GET {path} HTTP/1.1", *lines, "", ""]).encode())
        deadline = time.monotonic() + WAIT_SECONDS
        while b"\r\n\r\n" not in self._buffer:
            self._receive(deadline)
        head = self._take(self._buffer.index(b"\r\n\r\n") + 4, deadline).decode("latin-1").split("\r\n")
        self.status = int(head[0].split()[1])
        pairs = (line.split(":", 1) for line in head[1:] if line)
        self.headers = {name.strip().lower(): value.strip() for name, value in pairs}
        self.body = b"" if self.is_open else self._take(int(self.headers.get("content-length", 0)), deadline)

    def _read_past_pings(self, within_seconds: float) -> Frame:
        deadline = time.monotonic() + within_seconds
        while True:
            frame = self.read_frame(max(deadline - time.monotonic(), 0.001))
            if frame.opcode not in (PING, PONG):
                return frame

    def _take(self, size: int, deadline: float) -> bytes:
        while len(self._buffer) < size:
            self._receive(deadline)
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def _receive(self, deadline: float) -> None:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError("The server sent nothing more in time.")
        self.socket.settimeout(remaining)
        try:
            data = self.socket.recv(65536)
        except ConnectionError as error:
            raise Disconnected(str(error)) from None
        if not data:
            raise Disconnected("The server closed the connection.")
        self._buffer += data
