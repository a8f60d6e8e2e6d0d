"""A gateway whose engine computes nothing, to measure the cost of everything else.

``python -m benchmarks.free_gateway serve [options of samserve serve]``
"""

from __future__ import annotations

import sys

import numpy as np
from samserve import app
from samserve.context import RequestContext
from samserve.engines.base import DecoderOutput, EncoderInput, PromptBatch
from samserve.engines.fake import FakeEngine
from samserve.memory.slot import Slot
from samserve.types import Embedding

SIDE, TOKENS = 256, 4


class FreeEngine(FakeEngine):
    """Returns the same discs for every prompt, without any work."""

    def __init__(self) -> None:
        super().__init__()
        grid = np.arange(SIDE, dtype=np.float32) - SIDE / 2
        disc = 60 - np.hypot(grid[:, None], grid)
        self._logits = np.stack([disc + 5 * token for token in range(TOKENS)])[None]
        self._iou = np.array([[0.9, 0.95, 0.92, 0.89]], dtype=np.float32)

    async def encode(
        self, model: str, image: EncoderInput, into: Slot, context: RequestContext
    ) -> None:
        """Write nothing: new memory is zero."""

    async def decode(
        self, model: str, embedding: Embedding, prompts: PromptBatch, context: RequestContext
    ) -> DecoderOutput:
        """Return the stored discs."""
        count = len(prompts.point_labels)
        return DecoderOutput(np.repeat(self._logits, count, 0), np.repeat(self._iou, count, 0))


def main() -> int:
    """Run the command line of samserve with this engine."""
    from samserve.cli.main import main as samserve  # noqa: PLC0415 - after the replacement below

    app.FakeEngine = FreeEngine  # type: ignore[misc]
    return samserve()


if __name__ == "__main__":
    sys.exit(main())
