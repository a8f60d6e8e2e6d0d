"""Retries at startup, for services that the server depends on and that may start slowly."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from samserve.errors import SamserveError

T = TypeVar("T")

# Between two attempts, and between two log entries.
_RETRY_S = 0.2
_LOG_INTERVAL_S = 10.0


class StartupRetry:
    """Retries for *seconds* from now; *setting* is the name of the setting of that time.

    Several consecutive steps may share the time.  Without a setting there is one attempt.
    """

    def __init__(self, seconds: float, setting: str = "") -> None:
        self._seconds = seconds
        self._setting = setting
        self._deadline = time.monotonic() + seconds
        self._log = structlog.get_logger("samserve.start")

    async def run(
        self,
        step: Callable[[], Awaitable[T]],
        event: str,
        retry_on: tuple[type[SamserveError], ...] = (SamserveError,),
    ) -> T:
        """Call *step* until it raises none of the errors *retry_on*, and return its result.

        Logs *event* periodically.  When the time is over, raises the last error, with a text that
        names the setting.
        """
        next_log = time.monotonic()
        while True:
            try:
                return await step()
            except retry_on as error:
                now = time.monotonic()
                if not self._setting:
                    raise
                if now >= self._deadline:
                    raise type(error)(self._timeout_message(error)) from error
                if now >= next_log:
                    remaining_s = round(self._deadline - now)
                    self._log.info(
                        event, reason=str(error), setting=self._setting, gives_up_in_s=remaining_s
                    )
                    next_log = now + _LOG_INTERVAL_S
            await asyncio.sleep(_RETRY_S)

    def _timeout_message(self, error: SamserveError) -> str:
        return (
            f"{error}; given up after {self._seconds:g} s, increase {self._setting} for slow starts"
        )
