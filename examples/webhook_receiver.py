"""A receiver of webhooks with the standard library only: checks each request, and shows each event once.

    python -m examples.webhook_receiver whsec_…            # then give the bus http://127.0.0.1:8090/ as an endpoint

The bus calls addresses of this machine only if WEBHOOK_ALLOWED_TARGETS names them: 127.0.0.0/8.
"""

from __future__ import annotations

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from bus.client.webhooks import Verdict, WebhookReceiver

MAX_BODY_BYTES = 1024 * 1024


class Handler(BaseHTTPRequestHandler):
    """One request."""

    receiver: WebhookReceiver

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
            self.answer(413)
            return
        self.answer(self.receiver.receive(self.headers, self.rfile.read(int(length)), show))

    def answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()


def show(verdict: Verdict) -> None:
    """What this receiver does with an event. If it raises, the event comes again."""
    print(f"{verdict.id}: {verdict.payload}", flush=True)


def main(secret: str, port: int = 8090) -> None:
    Handler.receiver = WebhookReceiver(secret)
    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        print(f"Waiting for webhooks on http://127.0.0.1:{server.server_port}/", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("Usage: python -m examples.webhook_receiver SECRET [PORT]")
    main(sys.argv[1], *map(int, sys.argv[2:]))
