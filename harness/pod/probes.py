"""Probes, as the kubelet makes them, but more often."""

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

    It is made every tenth of a second, for as long as the kubelet would try.
    """

    def __init__(self, spec: Mapping[str, Any], port: int, host: str) -> None:
        self._url = f"http://{addresses.join(host, port)}{spec['httpGet']['path']}"
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
        deadline = time.monotonic() + self.period_s * (tries or self.failures)
        while True:
            if await self.passes():
                return
            if not alive() or time.monotonic() > deadline:
                break
            await asyncio.sleep(min(_POLL_S, self.period_s))
        raise HarnessError(f"{self._url} did not pass")

    def _ask(self) -> bool:
        try:
            with DIRECT.open(self._url, timeout=self._timeout_s) as answer:
                return bool(200 <= answer.status < 400)
        except (URLError, OSError):
            return False
