"""Files of tuned weights, in the format safetensors."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from samserve.tuning.errors import TuningError


def read_weights(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name.  Raises `TuningError` if it is damaged."""
    try:
        return load_file(file)
    except SafetensorError as error:
        raise TuningError(f"{file} cannot be read: {error}") from error
