"""A local server that misbehaves as instructed, and remembers the requests."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Behaviour = Callable[["Handler", bytes], None]


class BadServer:
    """Serves the same content under every path, correctly unless told otherwise.

    Attributes:
        content: the bytes of every file.
        asked: path and Range header of each request so far.
        released: what `halfway` waits for.
    """

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.asked: list[tuple[str, str | None]] = []
        self.released = threading.Event()
        self._behaviours: dict[str, list[Behaviour]] = {}
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._http.block_on_close = False
        self._http.bad = self  # type: ignore[attr-defined]

    def url(self, path: str = "weights.pth") -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}/{path}"

    def will(self, *behaviours: Behaviour, path: str = "weights.pth") -> str:
        """Sets how to answer successive requests (the last applies forever); returns the URL."""
        self._behaviours[f"/{path}"] = list(behaviours)
        return self.url(path)

    def behaviour(self, path: str) -> Behaviour:
        left = self._behaviours.get(path, [honest])
        return left.pop(0) if len(left) > 1 else left[0]

    @contextmanager
    def running(self) -> Iterator[BadServer]:
        thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.released.set()
            self._http.shutdown()
            self._http.server_close()
            thread.join()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def bad(self) -> BadServer:
        return self.server.bad  # type: ignore[attr-defined,no-any-return]

    @property
    def start(self) -> int:
        """The byte from which the client wants the content."""
        return int(self.headers.get("Range", "bytes=0-")[len("bytes=") : -1])

    def do_GET(self) -> None:
        self.bad.asked.append((self.path, self.headers.get("Range")))
        self.close_connection = True
        with suppress(ConnectionError):  # the client has gone
            self.bad.behaviour(self.path)(self, self.bad.content)

    def head(self, code: int, **headers: object) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def head_of(self, content: bytes) -> bytes:
        """Sends the headers for the part that the client requests; returns the body to send."""
        body = content[self.start :]
        if not self.start:
            self.head(200, Content_Length=len(body))
        elif body:
            span = f"bytes {self.start}-{len(content) - 1}/{len(content)}"
            self.head(206, Content_Length=len(body), Content_Range=span)
        else:
            self.head(416, Content_Length=0)
        return body

    def log_message(self, format: str, *args: object) -> None:
        pass


def honest(handler: Handler, content: bytes) -> None:
    handler.wfile.write(handler.head_of(content))


def ignores_range(handler: Handler, content: bytes) -> None:
    handler.head(200, Content_Length=len(content))
    handler.wfile.write(content)


def wrong_range(handler: Handler, content: bytes) -> None:
    """Sends other bytes than requested, and says so, unless all are requested."""
    if not handler.start:
        honest(handler, content)
        return
    span = f"bytes {handler.start + 1}-{len(content) - 1}/{len(content)}"
    body = content[handler.start + 1 :]
    handler.head(206, Content_Length=len(body), Content_Range=span)
    handler.wfile.write(body)


def refuses_range(handler: Handler, content: bytes) -> None:
    if handler.start:
        handler.head(416, Content_Length=0)
    else:
        honest(handler, content)


def sends(other: bytes) -> Behaviour:
    return lambda handler, content: honest(handler, other)


def breaks_off(after: int) -> Behaviour:
    """Promises everything, sends `after` bytes of it, and closes the connection."""
    return lambda handler, content: _write(handler, handler.head_of(content)[:after])


def resets(after: int) -> Behaviour:
    """Promises everything, sends `after` bytes of it, and resets the connection."""

    def behave(handler: Handler, content: bytes) -> None:
        _write(handler, handler.head_of(content)[:after])
        linger = struct.pack("ii", 1, 0)
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    return behave


def closes(handler: Handler, content: bytes) -> None:
    """Closes the connection without an answer."""


def babbles(handler: Handler, content: bytes) -> None:
    handler.wfile.write(b"what is HTTP?\r\n\r\n")


def status(code: int) -> Behaviour:
    return lambda handler, content: handler.head(code, Content_Length=0)


def hangs(handler: Handler, content: bytes) -> None:
    """Accepts the request and never answers."""
    handler.bad.released.wait()


def halfway(handler: Handler, content: bytes) -> None:
    """Stops in the middle of the body until released."""
    body = handler.head_of(content)
    _write(handler, body[: len(body) // 2])
    handler.bad.released.wait()
    _write(handler, body[len(body) // 2 :])


def redirects(url: str) -> Behaviour:
    return lambda handler, content: handler.head(302, Location=url, Content_Length=0)


def unframed(extra: bytes = b"") -> Behaviour:
    """Sends the content and more without saying how long it will be."""

    def behave(handler: Handler, content: bytes) -> None:
        handler.head(200)
        _write(handler, content + extra)

    return behave


def chunked(handler: Handler, content: bytes) -> None:
    handler.head(200, Transfer_Encoding="chunked")
    for start in range(0, len(content), 50_000):
        piece = content[start : start + 50_000]
        _write(handler, f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
    _write(handler, b"0\r\n\r\n")


def _write(handler: Handler, body: bytes) -> None:
    handler.wfile.write(body)
    handler.wfile.flush()
