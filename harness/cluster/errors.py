"""Errors of the cluster harness, and waiting for conditions."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import redis

from harness.errors import HarnessError

_POLL_S = 0.02
_Result = TypeVar("_Result")


class PortTakenError(HarnessError):
    """Another process listens on the port of a node."""


class NotReadyError(Exception):
    """A condition is not met yet; the text states which."""


def wait_for(check: Callable[[], _Result], timeout_s: float) -> _Result:
    """Return the result of ``check``, once it raises neither `NotReadyError` nor a Redis error.

    Raises `HarnessError` with the last of these errors after ``timeout_s`` seconds.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return check()
        except (NotReadyError, redis.RedisError) as error:
            if time.monotonic() > deadline:
                raise HarnessError(f"timed out after {timeout_s:g} s: {error}") from error
        time.sleep(_POLL_S)
