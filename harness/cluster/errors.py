"""What goes wrong here, and waiting for what takes a moment."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import redis

from harness.errors import HarnessError

_POLL_S = 0.02
_Found = TypeVar("_Found")


class PortTakenError(HarnessError):
    """Somebody else listens on a port that a node was to have."""


class NotYetError(Exception):
    """What is waited for is not so; the text says what is missing."""


def wait_for(check: Callable[[], _Found], timeout_s: float) -> _Found:
    """Return what ``check`` returns, once it raises neither `NotYetError` nor an error of Redis.

    Raises `HarnessError` with the last of these errors after ``timeout_s`` seconds.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return check()
        except (NotYetError, redis.RedisError) as error:
            if time.monotonic() > deadline:
                raise HarnessError(f"still so after {timeout_s:g} s: {error}") from error
        time.sleep(_POLL_S)
