"""Checks of a run's options and folders, before anything is measured or trained."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch

from samserve.export.errors import ExportError
from samserve.export.staging import staging
from samserve.export.triton_repository import check_name
from samserve.tuning.errors import TuningError

MAX_RATE = 1.0
"""Highest learning rate: one above it destroys every decoder in a few steps."""
DEVICES = ("cpu", "cuda")


def check_length(steps: int | None, minutes: float | None) -> None:
    """Raise `TuningError` unless the length is positive, in either steps or minutes."""
    if (steps is None) == (minutes is None):
        raise TuningError("the length of the run is needed, either in steps or in minutes")
    length = steps if minutes is None else minutes
    # Written so that NaN fails.
    if length is None or not 0 < length < math.inf:
        raise TuningError(f"the length of the run must be positive and finite, not {length}")


def check_rate(rate: float | None) -> None:
    """Raise `TuningError` unless the learning rate is above 0 and at most `MAX_RATE`."""
    if rate is not None and not 0 < rate <= MAX_RATE:
        raise TuningError(f"the learning rate must be above 0 and at most {MAX_RATE:g}, not {rate}")


def check_device(device: str) -> None:
    """Raise `TuningError` for a device that is unknown, or that this installation cannot use."""
    if device not in DEVICES:
        raise TuningError(f"the device must be one of {', '.join(DEVICES)}, not {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise TuningError("the device cuda is not available: PyTorch finds no GPU that it can use")


def check_model_name(name: str) -> None:
    """Raise `TuningError` for a name that is not valid for a model."""
    try:
        check_name(name)
    except ExportError as error:
        raise TuningError(str(error)) from error


def check_folders(repository: Path, name: str, run: Path) -> None:
    """Create the folders of a run.

    Raises `TuningError` if that is not possible, if files cannot be written there, or if the
    repository has the model *name*, which would be overwritten.
    """
    for role in ("encoder", "decoder"):
        folder = repository / f"{name}_{role}"
        if os.path.lexists(folder):
            raise TuningError(
                f"{repository} has a model {name!r} already: choose another name or repository"
            )
    try:
        run.mkdir(parents=True, exist_ok=True)
        # Publishing begins in the same way.
        with staging(repository):
            pass
    except OSError as error:
        raise TuningError(f"cannot write to {error.filename}: {error.strerror}") from error
