"""The families of models that can be exported, and which of them a checkpoint belongs to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from samserve.export.errors import ExportError
from samserve.export.families import sam1, sam2, sam_hq
from samserve.export.families.base import Network, without_prefix
from samserve.export.families.sam2_sizes import EDGETAM, name_of
from samserve.export.sources import identification
from samserve.export.sources.files import shown
from samserve.export.sources.source import Checkpoint

_LOADERS: dict[str, Callable[[Checkpoint], Network]] = {
    "sam": sam1.load,
    "sam2": sam2.load,
    "edgetam": sam2.load_edgetam,
    "sam_hq": sam_hq.load,
}
"""By `Kind.loader`."""

_REQUIREMENTS: dict[str, Callable[[], object]] = {name_of(EDGETAM): sam2.check_timm}
"""Checks for packages that networks need and that the export does not install, by variant."""

_PARTS = ("vision_config", "prompt_encoder_config", "mask_decoder_config")
"""The parts of a configuration that describe the networks for images."""


def load(checkpoint: Checkpoint) -> Network:
    """Build the networks of a checkpoint.

    The names of its tensors may have a prefix that training added.  Raises `ExportError` if it
    belongs to no family, or is incomplete; its text has one line.
    """
    kind = _kind(checkpoint)
    prefix = identification.training_prefix(checkpoint.tensors)
    plain = replace(checkpoint, tensors=without_prefix(checkpoint.tensors, prefix))
    return _LOADERS[kind.loader](plain)


def check_requirements(variant: str) -> None:
    """Raise `ExportError` if a package is missing that the networks of a *variant* need."""
    _REQUIREMENTS.get(variant, lambda: None)()


def _kind(checkpoint: Checkpoint) -> identification.Kind:
    """Return the kind by the names of tensors; a configuration must agree."""
    kind = identification.of_names(checkpoint.tensors)
    if checkpoint.config is None:
        return kind
    declared = checkpoint.config["model_type"]
    if declared not in kind.types:
        raise ExportError(
            f"config.json has the type {shown(str(declared))}, but the weights are those of "
            f"{kind.title}"
        )
    for part in _PARTS:
        if checkpoint.config.get(part) is None:
            raise ExportError(f"config.json has no {part}")
    return kind
