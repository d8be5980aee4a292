"""HTTP requests in bounded time, and the ways in which they fail.

Uses the standard library's client, which honours the proxies of the environment.
"""

from __future__ import annotations

import concurrent.futures
import re
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPMessage, HTTPResponse
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.request import (
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    Request,
    build_opener,
)

import certifi

from cfrestore import __version__

OPEN_SECONDS = 10.0
"""Time limit for everything before the body: name resolution, connection, redirects, headers."""

SILENCE_SECONDS = 5.0
"""Time limit for each connection, and between two reads of the body."""

_BLOCK = 1 << 18
_PASSING = (408, 429, 500, 502, 503, 504)  # status codes of temporary failures


class RefusedError(Exception):
    """A server does not supply a file; the message continues a sentence begun with its URL."""


class SilentError(RefusedError):
    """A server cannot be reached, or does not answer."""


class BrokenError(Exception):
    """A transfer failed in a way that may be temporary."""


class RangeError(BrokenError):
    """A server has nothing from the requested byte on."""


@contextmanager
def answer(url: str, start: int) -> Iterator[HTTPResponse]:
    """Requests a file from a given byte on; `start_of` tells whether the server honoured that.

    Raises:
        RefusedError, SilentError, BrokenError, RangeError: there is no such response.
    """
    headers = {"User-Agent": f"cfrestore/{__version__}"}
    if start:
        headers["Range"] = f"bytes={start}-"
    with _open(Request(url, headers=headers)) as response:
        yield response


def start_of(response: HTTPResponse) -> int:
    """The offset at which the body begins in the file; -1 if the server does not say."""
    if response.status != 206:
        return 0
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(match[1]) if match else -1


def blocks(response: HTTPResponse) -> Iterator[bytes]:
    """The body in blocks, as it arrives; a premature end is not detected here.

    Raises:
        BrokenError: the connection broke, or nothing arrived for a while.
    """
    while True:
        try:
            block = response.read1(_BLOCK)
        except TimeoutError as error:
            raise BrokenError(f"fell silent for {SILENCE_SECONDS:g} s") from error
        except (OSError, HTTPException) as error:
            raise BrokenError(f"broke the connection ({_reason(error)})") from error
        if not block:
            return
        yield block


class _Redirects(HTTPRedirectHandler):
    """Follows redirects, but not from an encrypted connection to an unencrypted one."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        if not newurl.startswith(("https://", f"{req.type}://")):
            raise HTTPError(newurl, code, msg, headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(request: Request) -> HTTPResponse:
    """Opens in a separate thread, because name resolution has no timeout."""
    outcome: concurrent.futures.Future[HTTPResponse] = concurrent.futures.Future()

    def work() -> None:
        try:
            outcome.set_result(_opener().open(request, timeout=SILENCE_SECONDS))
        except (OSError, HTTPException, ValueError) as error:
            outcome.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        return outcome.result(OPEN_SECONDS)
    except HTTPError as error:
        error.close()
        raise _refusal(error.code, str(error.reason)) from error
    except (OSError, HTTPException, ValueError, concurrent.futures.TimeoutError) as error:
        raise _failure(error) from error


def _opener() -> OpenerDirector:
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())  # some Python installations have none
    return build_opener(HTTPSHandler(context=context), _Redirects)


def _refusal(code: int, reason: str) -> RefusedError | BrokenError:
    if code == 416:
        return RangeError("has no more of the file")
    if 300 <= code < 400:
        return RefusedError(f"redirects in a circle or to nowhere ({code})")
    kind = BrokenError if code in _PASSING else RefusedError
    return kind(f"answered {code} {reason}".rstrip())


def _failure(error: Exception) -> RefusedError | BrokenError:
    cause = error.reason if isinstance(error, URLError) else error
    if isinstance(cause, (TimeoutError, concurrent.futures.TimeoutError)):
        return SilentError(f"did not answer within {OPEN_SECONDS:g} s")
    if isinstance(cause, (ConnectionResetError, ConnectionAbortedError, BrokenPipeError)):
        return BrokenError("broke the connection")
    if isinstance(cause, HTTPException):
        return BrokenError(f"does not speak HTTP ({_reason(cause)})")
    return SilentError(f"cannot be reached ({_reason(cause)})")


def _reason(error: BaseException | str) -> str:
    """The reason of an error, on one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__
