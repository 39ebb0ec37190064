"""The shipped examples of proxies, running in front of a server: nginx and Caddy as they come, with TLS.

Of an example only the addresses, the certificate and the patience are changed; each has to stand there once.
"""

from __future__ import annotations

import os
import signal
import ssl
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPSConnection
from pathlib import Path

import trustme

from bus.settings import ROOT
from bus.testing import HOST, Answer, BusServer, eventually, free_port, processes
from tests.conftest import require
from tests.event_source import EventSource
from tests.rawws import RawWebSocket

READ_TIMEOUT_SECONDS = 3
"""How long nginx bears a silent answer: three heartbeats of tests.faults.quick_streams."""

NGINX = """
daemon off;
{user}
pid {folder}/nginx.pid;
error_log {folder}/log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    gzip on;
    include {folder}/message-bus.conf;
}}
"""
CADDY = """{
    admin off
    auto_https disable_redirects
    skip_install_trust
}
"""


class Proxy:
    """A running proxy: `port` speaks TLS, `plain_port` (0: none) tells to use that."""

    def __init__(self, folder: Path, command: list[str], port: int, plain_port: int = 0) -> None:
        self.port, self.plain_port = port, plain_port
        self._log = folder / "log"
        self.tls = ssl.create_default_context(cafile=folder / "authority")
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                command, env={**os.environ, "HOME": str(folder), "XDG_DATA_HOME": str(folder)}, stdout=log, stderr=log
            )

    def call(self, method: str, path: str, body: bytes | None = None) -> Answer:
        """One request over TLS; the body of the answer as text."""
        connection = HTTPSConnection(HOST, self.port, timeout=30, context=self.tls)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            headers = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, response.read().decode(), headers)
        finally:
            connection.close()

    def stream(self, query: str, headers: Mapping[str, str] | None = None) -> EventSource:
        """An open event stream."""
        # As HTTP/1.0, so that the proxy sends no chunks.
        source = EventSource(self, query, headers, version="1.0", tls=self.tls)  # type: ignore[arg-type]
        assert source.status == 200, source.head
        source.read_until("connected")
        return source

    def socket(self, path: str, headers: Mapping[str, str | None] | None = None) -> RawWebSocket:
        """A WebSocket, open or refused."""
        return RawWebSocket(self.port, path, headers, tls=self.tls)

    def reload(self) -> None:
        """Have nginx read its configuration again."""
        self.process.send_signal(signal.SIGHUP)

    def workers(self) -> set[int]:
        """The process ids of nginx's workers."""
        return {process.pid for process in processes() if process.parent == self.process.pid}

    def answers(self) -> bool:
        """True when requests get through to the bus. Raises RuntimeError when it ended."""
        if self.process.poll() is not None:
            raise RuntimeError(f"The proxy does not start:\n{self._log.read_text()}")
        try:
            return self.call("GET", "/health").status == 200
        except OSError:
            return False

    def close(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(10)


def nginx(bus: BusServer, folder: Path) -> Proxy:
    """nginx with deploy/nginx/message-bus.conf."""
    program, port, plain_port = require("nginx"), free_port(), free_port()
    certificate = certify(folder)
    example = replaced(
        "deploy/nginx/message-bus.conf",
        {
            "listen 80;": f"listen {HOST}:{plain_port};",
            "listen 443 ssl http2;": f"listen {HOST}:{port} ssl http2;",
            "server 127.0.0.1:5001;": f"server {HOST}:{bus.port};",
            "/etc/nginx/tls/bus.example.com.pem": str(certificate),
            "/etc/nginx/tls/bus.example.com.key": f"{certificate}.key",
            "proxy_read_timeout 75s;": f"proxy_read_timeout {READ_TIMEOUT_SECONDS}s;",
        },
    )
    (folder / "message-bus.conf").write_text(example)
    user = "user root;" if os.getuid() == 0 else ""
    (folder / "nginx.conf").write_text(NGINX.format(user=user, folder=folder))
    return Proxy(folder, [program, "-p", str(folder), "-c", str(folder / "nginx.conf")], port, plain_port)


def caddy(bus: BusServer, folder: Path) -> Proxy:
    """Caddy with deploy/caddy/Caddyfile."""
    program, port = require("caddy"), free_port()
    certificate = certify(folder)
    example = replaced(
        "deploy/caddy/Caddyfile",
        {
            "bus.example.com {": f"https://{HOST}:{port} {{\n\ttls {certificate} {certificate}.key",
            "127.0.0.1:5001": f"{HOST}:{bus.port}",
        },
    )
    (folder / "Caddyfile").write_text(CADDY + example)
    return Proxy(folder, [program, "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"], port)


PROXIES: dict[str, Callable[[BusServer, Path], Proxy]] = {"nginx": nginx, "caddy": caddy}


@contextmanager
def in_front_of(bus: BusServer, kind: str, folder: Path) -> Iterator[Proxy]:
    """A proxy of this kind that passes requests on to the bus."""
    proxy = PROXIES[kind](bus, folder)
    try:
        eventually(proxy.answers, what=kind)
        yield proxy
    finally:
        proxy.close()


def replaced(example: str, changes: Mapping[str, str]) -> str:
    """The text of an example with these changes. Raises AssertionError when what is to be changed is not there once."""
    text = (ROOT / example).read_text()
    for old, new in changes.items():
        assert text.count(old) == 1, f"{example} has {old!r} {text.count(old)} times."
        text = text.replace(old, new)
    return text


def certify(folder: Path) -> Path:
    """A certificate for this machine, with its key beside it, and who signed it."""
    certificate = folder / "certificate"
    authority = trustme.CA()
    issued = authority.issue_cert(HOST, "bus.example.com")
    issued.cert_chain_pems[0].write_to_path(certificate)
    issued.private_key_pem.write_to_path(f"{certificate}.key")
    authority.cert_pem.write_to_path(folder / "authority")
    return certificate
