"""Loading a checkpoint, in any of its published formats, into a SAM."""

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
    """Load the SAM that *spec* names, and return it with its source.

    *spec* is a file, a directory of the transformers library, or a name on the Hugging Face hub, at
    *revision*.  Weights are converted to float32.  Raises `ExportError`.
    """
    tensors, source = open_source(spec, revision)
    return sam_from(tensors), source


def sam_from(state: Mapping[str, Tensor]) -> Sam:
    """Build a SAM from tensors under the names of the original checkpoints.

    Raises `ExportError` for a missing or unexpected tensor, or for a wrong shape.
    """
    # On the meta device, which allocates nothing: every value comes from the checkpoint.
    with torch.device("meta"):
        sam = Sam(config_from_state(state))
    _check(state, {name: value.shape for name, value in sam.state_dict().items()})
    # Copied, not only converted: a tensor mapped to a file would change or end with the file.
    converted = {
        name: value.to(torch.float32 if value.is_floating_point() else value.dtype, copy=True)
        for name, value in state.items()
    }
    sam.load_state_dict(converted, strict=True, assign=True)
    return sam.eval().requires_grad_(False)


def _check(state: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> None:
    missing, unknown = sorted(shapes.keys() - state.keys()), sorted(state.keys() - shapes.keys())
    if missing or unknown:
        parts = [_first("missing", missing), _first("unexpected", unknown)]
        raise ExportError(f"not a SAM checkpoint: {'; '.join(filter(None, parts))}")
    for name, shape in shapes.items():
        if state[name].shape != shape:
            found, expected = tuple(state[name].shape), tuple(shape)
            raise ExportError(f"not a SAM checkpoint: {name} has shape {found}, not {expected}")


def _first(text: str, names: list[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{text} {names[0]}{more}" if names else ""
