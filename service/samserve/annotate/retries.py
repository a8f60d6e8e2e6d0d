"""Repeats calls that a server rejects for now."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import TypeVar

from samserve.client import ModelNotFound, ResourceExhausted, SamserveClientError, Unavailable

T = TypeVar("T")

# Codes that every further call would return too.
_FATAL_CODES = frozenset({"PERMISSION_DENIED", "UNAUTHENTICATED", "UNIMPLEMENTED"})
# Avoids a tight loop if the server returns a retry delay of 0.
_MIN_WAIT_S = 0.05
_MAX_BACKOFF_FACTOR = 8


class Retries:
    """Retries calls that the server rejects temporarily, after the delay that it returns.

    Only one call is retried at a time, since waiting calls would compete for the same quota.  A
    call may consist of two requests, of which a quota admits one; so the delay grows with each
    rejection.  *note* is called once, with the first rejection: a long job is rejected often.
    """

    def __init__(self, note: Callable[[ResourceExhausted], None] = lambda error: None) -> None:
        self._note = note
        self._noted = False
        self._lock = asyncio.Lock()

    async def run(self, call: Callable[[], Awaitable[T]]) -> T:
        """Make a call until it is accepted or fails with an error that a retry cannot fix."""
        try:
            return await call()
        except ResourceExhausted as error:
            wait_s = self._wait_s(error)
        async with self._lock:
            for rejections in itertools.count():
                await asyncio.sleep(wait_s * min(2**rejections, _MAX_BACKOFF_FACTOR))
                try:
                    return await call()
                except ResourceExhausted as error:
                    wait_s = self._wait_s(error)
        raise AssertionError("the loop has no end")

    def _wait_s(self, error: ResourceExhausted) -> float:
        """Return the delay before the next attempt; raise *error* if waiting does not help."""
        if error.retry_after_s is None:
            raise error
        if not self._noted:
            self._note(error)
        self._noted = True
        return max(error.retry_after_s, _MIN_WAIT_S)


def is_fatal(error: SamserveClientError) -> bool:
    """Return whether all further calls would fail in the same way."""
    return unreachable(error) or isinstance(error, ModelNotFound) or error.code in _FATAL_CODES


def unreachable(error: SamserveClientError) -> bool:
    """Return whether the call got no response from a server."""
    return isinstance(error, Unavailable) and not error.reason


def describe(error: SamserveClientError) -> str:
    """Return one line with the server's error, or that the server is unreachable."""
    if unreachable(error):
        return f"the server is unreachable: {error.message}"
    if not error.request_id:
        return error.message  # raised by the client itself
    return f"{error.message} ({error.reason or error.code}, request {error.request_id})"
