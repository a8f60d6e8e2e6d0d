"""Rotation of the credentials for Triton while the gateway runs."""

from __future__ import annotations

import asyncio

import structlog

from samserve.engines.triton.connection import TritonConnection
from samserve.engines.triton.credentials import Credentials, open_credentials
from samserve.errors import SamserveError
from samserve.settings import TritonSettings


class CredentialRotation:
    """Keeps a connection on the last valid content of the credentials files."""

    def __init__(self, settings: TritonSettings, connection: TritonConnection) -> None:
        self._settings = settings
        self._connection = connection
        self._log = structlog.get_logger("samserve.triton")
        self._used: Credentials | None = None
        self._rejected: Credentials | None = None

    async def open(self) -> None:
        """Read the files for the first time.  Raises `Misconfigured`, which names the file."""
        self._files = await asyncio.to_thread(open_credentials, self._settings)
        self._used = self._files.value
        self._connection.open(self._used)

    async def refresh(self) -> None:
        """Use new credentials if the files have changed and Triton accepts them.

        A failure is logged once per change and retried at the next refresh: the server may be
        updated later than this gateway.
        """
        try:
            await asyncio.to_thread(self._files.reload)
        except SamserveError as error:
            self._log_failure(error)
        newest = self._files.value
        if newest is self._used:
            return
        try:
            await self._connection.renew(newest)
        except SamserveError as error:
            if newest is not self._rejected:
                self._log_failure(error)
            self._rejected = newest
            return
        self._used = newest
        self._log.info("Triton credentials reloaded")

    def _log_failure(self, error: SamserveError) -> None:
        self._log.warning("Triton credentials reload failed", reason=str(error))
