"""Credentials that are replaced while the gateway runs."""

from __future__ import annotations

import asyncio

import structlog

from samserve.engines.triton.connection import TritonConnection
from samserve.engines.triton.credentials import Credentials, open_credentials
from samserve.errors import SamserveError
from samserve.settings import TritonSettings


class Rotation:
    """Has a connection use what the files say, as they were when last valid."""

    def __init__(self, settings: TritonSettings, connection: TritonConnection) -> None:
        self._settings = settings
        self._connection = connection
        self._log = structlog.get_logger("samserve.triton")
        self._used: Credentials | None = None
        self._refused: Credentials | None = None

    async def open(self) -> None:
        """Read the files for the first time; raises `Misconfigured`, which names the file."""
        self._files = await asyncio.to_thread(open_credentials, self._settings)
        self._used = self._files.value
        self._connection.open(self._used)

    async def look(self) -> None:
        """Take new credentials into use if the files have changed and Triton accepts them.

        Others are logged, once for each change, and tried again at the next look: the server's
        side of a change may come later than ours.
        """
        try:
            await asyncio.to_thread(self._files.reload)
        except SamserveError as error:
            self._log_refusal(error)
        newest = self._files.value
        if newest is self._used:
            return
        try:
            await self._connection.renew(newest)
        except SamserveError as error:
            if newest is not self._refused:
                self._log_refusal(error)
            self._refused = newest
            return
        self._used = newest
        self._log.info("new credentials for the model server are in use")

    def _log_refusal(self, error: SamserveError) -> None:
        self._log.warning(
            "new credentials for the model server are not used yet", reason=str(error)
        )
