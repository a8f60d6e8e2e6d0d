"""The families of models that can be exported, and which of them a checkpoint belongs to."""

from __future__ import annotations

from collections.abc import Callable

from samserve.export.families import sam1, sam2
from samserve.export.families.base import Network
from samserve.export.sources.source import Checkpoint

_LOADERS: dict[str, Callable[[Checkpoint], Network]] = {
    "sam": sam1.load,
    "sam2": sam2.load,
    "sam2_video": sam2.load,
}
"""By the type of a model in its configuration of the transformers library."""


def load(checkpoint: Checkpoint) -> Network:
    """Build the networks of a checkpoint.  Raises `ExportError` if it belongs to no family."""
    kind = "sam" if checkpoint.config is None else str(checkpoint.config["model_type"])
    return _LOADERS[kind](checkpoint)
