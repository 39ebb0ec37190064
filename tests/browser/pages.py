"""Pages of another origin than the bus: a server of one page, on a port of its own."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.closing import Closing


class PageServer(Closing):
    """Serves `page`, which may be changed, at every path, from a thread of its own, until `close`."""

    def __init__(self, page: str = "") -> None:
        self.page = page
        served = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                data = served.page.encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:
                """Nobody reads it."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
