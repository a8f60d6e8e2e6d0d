"""HTTP probes as the kubelet runs them, at a shorter interval."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.error import URLError

from samserve.system import addresses

from harness.errors import HarnessError
from harness.program import DIRECT

_POLL_S = 0.1


class Probe:
    """An HTTP probe of a container.

    It runs every 0.1 s, for as long as the kubelet would retry.
    """

    def __init__(self, spec: Mapping[str, Any], port: int, host: str) -> None:
        self._url = f"http://{addresses.join(host, port)}{spec['httpGet']['path']}"
        self._timeout_s: float = spec.get("timeoutSeconds", 1)
        self.period_s: float = spec.get("periodSeconds", 10)
        self.failures: int = spec.get("failureThreshold", 3)

    async def succeeds(self) -> bool:
        """Run the probe once; return whether it succeeds."""
        return await asyncio.to_thread(self._request)

    async def wait(self, alive: Callable[[], bool], *, tries: int = 0) -> None:
        """Wait until the probe succeeds.

        Raises `HarnessError` after the probe's failure threshold, or after *tries* periods. The
        kubelet retries a readiness probe without limit, so that one requires *tries*.
        """
        deadline = time.monotonic() + self.period_s * (tries or self.failures)
        while True:
            if await self.succeeds():
                return
            if not alive() or time.monotonic() > deadline:
                break
            await asyncio.sleep(min(_POLL_S, self.period_s))
        raise HarnessError(f"the probe of {self._url} failed")

    def _request(self) -> bool:
        try:
            with DIRECT.open(self._url, timeout=self._timeout_s) as response:
                return bool(200 <= response.status < 400)
        except (URLError, OSError):
            return False
