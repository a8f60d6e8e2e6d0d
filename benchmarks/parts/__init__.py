"""The parts of the suite: what each measures, and how to run it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.results import Result


@dataclass(frozen=True)
class Plan:
    """How a part is run: *quick* has fewer blocks, *toy* has small models and images for tests."""

    folder: Path
    threads: int
    minutes: float = 15.0
    quick: bool = False
    toy: bool = False

    def blocks(self, count: int) -> int:
        """Return the number of blocks: *count*, or fewer."""
        if self.toy:
            return 1
        return max(1, count // 3) if self.quick else count


PARTS = {
    "predict": "point prompts on a cached embedding, against segment-anything",
    "gateway": "CPU time of the gateway for a call, against a bare gRPC server",
    "http": "CPU time of the gateway for a call over HTTP, against gRPC",
    "web": "point prompts decoded in a browser, against calls of the server from the same page",
    "bridge": "a click in an annotation tool over the bridge, against gRPC",
    "embed": "Embed of known and of new images, against its parts",
    "clicks": "latency of point prompts beside an AutoMask",
    "default": "AutoMask of the default model with 1,024 points, against the previous version",
    "large": "AutoMask of an image of 48 megapixels",
    "memory": "peak memory of an AutoMask with 1,024 points",
    "automask": "AutoMask with 256 points, against the generator of segment-anything",
    "annotate": "`samserve annotate` over 200 images, against one image after another",
    "families": "SAM 2.1, EdgeTAM and MobileSAM, against transformers and segment-anything",
    "soak": "memory and errors at 80 % load for many minutes",
}
"""Each is a module of this package with a function ``run``."""

SEPARATE = ("web", "annotate", "families", "soak")
"""Parts that take long, or need a browser, and run only by their names."""


def runner(name: str) -> Callable[[Plan], Result]:
    """Return the function that runs a part."""
    module = importlib.import_module(f"benchmarks.parts.{name}")
    run: Callable[[Plan], Result] = module.run
    return run
