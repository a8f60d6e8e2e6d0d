"""Time limits for clients that send or receive slowly (slow-loris protection)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any, cast

from samserve.context import deadline_exceeded
from samserve.errors import SamserveError

PROMPT_S = 1.0
"""Time in which a request arrives, and an answer is taken, if the client is not slow."""


class SlowClientTimeout:
    """Cancels the waiting in its block, and raises why, as `asyncio.timeout` does.

    After `PROMPT_S` it enters what *slow_place* gives, which may refuse.  After *seconds* more it
    raises `DeadlineExceeded`, which names the *stage*.  A timer costs next to nothing; a task for
    every wait would be a tenth of the smallest call.
    """

    def __init__(
        self, slow_place: Callable[[], AbstractContextManager[None]], seconds: float, stage: str
    ) -> None:
        self._slow_place = slow_place
        self._seconds = seconds
        self._stage = stage
        self._loop = asyncio.get_running_loop()
        self._held = ExitStack()
        self._error: SamserveError | None = None

    def __enter__(self) -> None:
        self._task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._cancelling = self._task.cancelling()
        self._timer = self._loop.call_later(min(PROMPT_S, self._seconds), self._take_slow_place)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._timer.cancel()
        self._held.close()
        if self._error is None:
            return
        ours = self._task.uncancel() <= self._cancelling
        if ours and kind is asyncio.CancelledError:
            raise self._error from None

    def _take_slow_place(self) -> None:
        try:
            # It may refuse when it is called, and when it is entered.
            self._held.enter_context(self._slow_place())
        except SamserveError as error:
            self._end(error)
        else:
            self._timer = self._loop.call_later(self._seconds, self._give_up)

    def _give_up(self) -> None:
        self._end(deadline_exceeded(self._stage))

    def _end(self, error: SamserveError) -> None:
        self._error = error
        self._task.cancel()
