"""``samserve`` with a slow decoder while a file exists: ``slow_gateway.py FILE serve ...``."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

from samserve.cli.main import main
from samserve.engines.triton.engine import TritonEngine

DELAY_S = 0.4

_decode = TritonEngine.decode


def slow_decode(switch: Path) -> Any:
    """Return a `TritonEngine.decode` that takes longer while *switch* exists."""

    async def decode(self: TritonEngine, *arguments: Any) -> Any:
        if switch.exists():  # noqa: ASYNC240 - negligible compared with the delay
            await asyncio.sleep(DELAY_S)
        return await _decode(self, *arguments)

    return decode


if __name__ == "__main__":
    TritonEngine.decode = slow_decode(Path(sys.argv.pop(1)))  # type: ignore[method-assign]
    main()
