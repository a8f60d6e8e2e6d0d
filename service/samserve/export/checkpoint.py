"""Reading SAM checkpoints and exporting them."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor

from samserve.export.errors import ExportError
from samserve.export.onnx_export import export_decoder, export_encoder
from samserve.export.repository import write_pair
from samserve.export.sam.config import config_from_state
from samserve.export.sam.model import Sam


def load_sam(path: Path) -> Sam:
    """Load a ``sam_vit_b``, ``_l`` or ``_h`` checkpoint, or another size of the same networks.

    A checkpoint is a pickle: only tensors are taken from it and no code of it runs.
    """
    state = _read_state(path)
    # Without memory: every value comes from the checkpoint or the strict load fails.
    with torch.device("meta"):
        sam = Sam(config_from_state(state))
    try:
        sam.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise ExportError(f"{path.name} is no SAM checkpoint: {error}") from error
    return sam.eval().requires_grad_(False)


def export_checkpoint(path: Path, repository: Path, name: str, *, description: str = "") -> None:
    """Write the checkpoint's encoder and decoder into a Triton model repository."""
    sam = load_sam(path)
    described = description or f"Segment Anything, {path.stem}"
    write_pair(repository, name, export_encoder(sam), export_decoder(sam), description=described)


def _read_state(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ExportError(f"{path.name} holds something else than tensors: {error}") from error
    if not isinstance(state, dict) or not all(torch.is_tensor(value) for value in state.values()):
        raise ExportError(f"{path.name} holds something else than named tensors")
    return {name: tensor.float() for name, tensor in state.items()}
