"""Lets a thread give up work that takes minutes once nobody waits for the result. No torch."""

from __future__ import annotations

import threading

_OWN = threading.local()


class Stopped(BaseException):
    """The work of this thread is no longer wanted."""


def stop_with(event: threading.Event) -> None:
    """Makes `check_wanted` raise Stopped in the calling thread once the event is set."""
    _OWN.event = event


def check_wanted() -> None:
    """Raises Stopped if the work of the calling thread is no longer wanted."""
    event: threading.Event | None = getattr(_OWN, "event", None)
    if event is not None and event.is_set():
        raise Stopped
