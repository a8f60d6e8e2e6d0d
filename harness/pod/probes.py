"""Probes, as the kubelet makes them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any
from urllib.error import URLError

from harness.errors import HarnessError
from harness.program import DIRECT, HOST


class Probe:
    """An HTTP probe of a container."""

    def __init__(self, spec: Mapping[str, Any], port: int) -> None:
        self._url = f"http://{HOST}:{port}{spec['httpGet']['path']}"
        self._timeout_s: float = spec.get("timeoutSeconds", 1)
        self.period_s: float = spec.get("periodSeconds", 10)
        self.failures: int = spec.get("failureThreshold", 3)

    async def passes(self) -> bool:
        """Ask once."""
        return await asyncio.to_thread(self._ask)

    async def passed(self, alive: Callable[[], bool], *, tries: int = 0) -> None:
        """Wait until it passes; raise `HarnessError` where the kubelet would give up.

        It does not give up on readiness: for that, say how many *tries* there are.
        """
        for _ in range(tries or self.failures):
            if await self.passes():
                return
            if not alive():
                break
            await asyncio.sleep(self.period_s)
        raise HarnessError(f"{self._url} did not pass")

    def _ask(self) -> bool:
        try:
            with DIRECT.open(self._url, timeout=self._timeout_s) as answer:
                return bool(200 <= answer.status < 400)
        except (URLError, OSError):
            return False
