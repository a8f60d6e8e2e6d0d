"""Credentials that are replaced while the gateway runs."""

from __future__ import annotations

import asyncio

import structlog

from samserve.engines.triton.connection import TritonConnection
from samserve.engines.triton.credentials import CredentialFiles, Signature
from samserve.errors import SamserveError


class Rotation:
    """Has a connection use what the files say, as they were when last in order."""

    def __init__(self, files: CredentialFiles, connection: TritonConnection) -> None:
        self._files = files
        self._connection = connection
        self._log = structlog.get_logger("samserve.triton")
        self._used: Signature = ()
        self._refused: Signature | None = None

    async def open(self) -> None:
        """Read the files for the first time; raises `EngineUnavailable`, which names the file."""
        self._used, credentials = await asyncio.to_thread(self._files.read)
        self._connection.open(credentials)

    async def look(self) -> None:
        """Take new credentials into use if the files have changed and Triton accepts them.

        Others are logged, once for each change, and tried again at the next look: the server's
        side of a change may come later than ours.
        """
        if not self._files.paths:
            return
        now = await asyncio.to_thread(self._files.signature)
        if now == self._used:
            return
        try:
            used, credentials = await asyncio.to_thread(self._files.read)
            await self._connection.renew(credentials)
        except SamserveError as error:
            if now != self._refused:
                self._log.warning(
                    "new credentials for the model server are not used yet", reason=str(error)
                )
            self._refused = now
            return
        self._used, self._refused = used, None
        self._log.info("new credentials for the model server are in use")
