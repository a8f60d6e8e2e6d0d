"""From a checkpoint, in any of its published forms, to a SAM with its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from samserve.export.errors import ExportError
from samserve.export.sam.config import config_from_state
from samserve.export.sam.model import Sam
from samserve.export.sources.source import Source, open_source


def open_sam(spec: str | Path, revision: str | None = None) -> tuple[Sam, Source]:
    """Load the SAM that *spec* names, and say where it came from.

    *spec* is a file, a directory of the transformers library, or a name on its hub, there at
    *revision*.  Weights are widened to float32.  Raises `ExportError`.
    """
    tensors, source = open_source(spec, revision)
    return sam_from(tensors), source


def sam_from(state: Mapping[str, Tensor]) -> Sam:
    """Build the SAM whose tensors are given under the names of the original checkpoints.

    Raises `ExportError` if one is missing, too many or of another shape.
    """
    # Without memory: every value comes from the checkpoint.
    with torch.device("meta"):
        sam = Sam(config_from_state(state))
    _check(state, {name: value.shape for name, value in sam.state_dict().items()})
    # Copied, not only widened: what stays mapped to a file would change, or end, with it.
    widened = {
        name: value.to(torch.float32 if value.is_floating_point() else value.dtype, copy=True)
        for name, value in state.items()
    }
    sam.load_state_dict(widened, strict=True, assign=True)
    return sam.eval().requires_grad_(False)


def _check(state: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> None:
    missing, unknown = sorted(shapes.keys() - state.keys()), sorted(state.keys() - shapes.keys())
    if missing or unknown:
        which = [_some("lacks", missing), _some("does not belong there:", unknown)]
        raise ExportError(f"no SAM checkpoint: {'; '.join(filter(None, which))}")
    for name, shape in shapes.items():
        if state[name].shape != shape:
            found, expected = tuple(state[name].shape), tuple(shape)
            raise ExportError(f"no SAM checkpoint: {name} has shape {found}, not {expected}")


def _some(text: str, names: list[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{text} {names[0]}{more}" if names else ""
