"""Timeouts and slots for clients that send or receive slowly (slow-loris protection)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from samserve.calls.timeouts import Timeout, Timeouts
from samserve.context import deadline_exceeded
from samserve.errors import SamserveError

SLOW_AFTER_S = 1.0
"""A client is slow if its request takes longer to arrive, or a message longer to send."""


class SlowClientTimeout(Timeout):
    """Cancels the wait in its block and raises an error, as `asyncio.timeout` does.

    After `SLOW_AFTER_S` it enters the context that *slow_slot* returns, which may raise an error.
    After *seconds* more it raises `DeadlineExceeded`, which names the *stage*.
    """

    __slots__ = ("_allowed_s", "_rejection", "_slot", "_slow_slot", "_stage")

    def __init__(
        self,
        timeouts: Timeouts,
        slow_slot: Callable[[], AbstractContextManager[None]],
        seconds: float,
        stage: str,
    ) -> None:
        super().__init__(timeouts, min(SLOW_AFTER_S, seconds))
        self._slow_slot = slow_slot
        self._allowed_s = seconds
        self._stage = stage
        self._slot: AbstractContextManager[None] | None = None
        self._rejection: SamserveError | None = None

    def error(self) -> SamserveError:
        """See `Timeout.error`."""
        return self._rejection or deadline_exceeded(self._stage)

    def expire(self) -> None:
        """Take a slot, or cancel the wait if there is none, or when the slot's time is over."""
        if self._slot is not None:
            super().expire()
            return
        try:
            # Both the call and the entry may raise.
            slot = self._slow_slot()
            slot.__enter__()
        except SamserveError as error:
            self._rejection = error
            super().expire()
        else:
            self._slot = slot
            self._timeouts.begin(self, self._allowed_s)

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if self._slot is not None:
            self._slot.__exit__(None, None, None)
        super().__exit__(kind, *error)
