"""An HTTP server on the loopback that cuts connections, is busy or knows no ranges, if asked to."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`; `cuts` are the bytes after which the next answers end early."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.cuts: list[int] = []
        self.statuses: list[int] = []  # errors of the next answers
        self.knows_ranges = True
        self.asked: list[str] = []  # the Range of each request
        self.paths: list[str] = []  # and its path
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server, asked = self.server, self.headers.get("Range", "")
        server.asked.append(asked)
        server.paths.append(self.path)
        data = server.files.get(self.path.rsplit("/", 1)[-1])
        status = server.statuses.pop(0) if server.statuses else 200 if data is not None else 404
        start = 0
        if status == 200 and asked and server.knows_ranges:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            status = 206 if start < len(data) else 416
        self.send_response(status)
        body = data[start:] if status in (200, 206) else b""
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.cuts.pop(0)] if server.cuts and body else body)

    def log_message(self, *_: object) -> None: ...


@contextmanager
def serving() -> Iterator[Server]:
    """A server that runs in a thread."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
