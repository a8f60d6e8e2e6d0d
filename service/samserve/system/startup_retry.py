"""Retries at start, while what the server needs may only be slow to come up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from samserve.errors import SamserveError

T = TypeVar("T")

# Between two attempts, and between two log lines.
_RETRY_S = 0.2
_SAY_SO_EVERY_S = 10.0


class StartupRetry:
    """Retries for *seconds* from now; *setting* is the name of the setting that says how long.

    Several steps may share the time, one after the other.  Without a setting there is one attempt.
    """

    def __init__(self, seconds: float, setting: str = "") -> None:
        self._seconds = seconds
        self._setting = setting
        self._ends = time.monotonic() + seconds
        self._log = structlog.get_logger("samserve.start")

    async def until_done(
        self,
        step: Callable[[], Awaitable[T]],
        event: str,
        worth_it: tuple[type[SamserveError], ...] = (SamserveError,),
    ) -> T:
        """Call *step* until it raises none of the errors *worth_it*, and return what it returns.

        Logs *event* now and then.  Once the time is over the last error is raised, with a text that
        names the setting.
        """
        say_so = time.monotonic()
        while True:
            try:
                return await step()
            except worth_it as error:
                now = time.monotonic()
                if not self._setting:
                    raise
                if now >= self._ends:
                    raise type(error)(self._given_up(error)) from error
                if now >= say_so:
                    left = round(self._ends - now)
                    self._log.info(
                        event, reason=str(error), setting=self._setting, gives_up_in_s=left
                    )
                    say_so = now + _SAY_SO_EVERY_S
            await asyncio.sleep(_RETRY_S)

    def _given_up(self, error: SamserveError) -> str:
        return (
            f"{error}; given up after {self._seconds:g} s, "
            f"{self._setting} gives a slow start more time"
        )
