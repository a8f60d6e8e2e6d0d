"""Tensors out of files that nobody vouches for.

A ``.pth`` file is a pickle, which can hold code.  Only tensors are taken from it: PyTorch's
restricted unpickler refuses everything else before it could run.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from samserve.export.errors import ExportError

State = dict[str, Tensor]

WRAPPERS = ("model", "state_dict")
"""Keys under which training programs keep the weights, beside an optimizer's state and the like."""

MOST_BYTES = 16 << 30
"""Bound of all tensors of a checkpoint, widened to float32; ViT-H has 2.4 GiB."""

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"

# What PyTorch's readers raise for bytes that they cannot make sense of.
_DAMAGE = (
    *(AssertionError, AttributeError, EOFError, IndexError, KeyError, OverflowError),
    *(RuntimeError, TypeError, ValueError, zipfile.BadZipFile),
)


def read_tensors(path: Path) -> State:
    """Read the named tensors of a ``.pth`` or ``.safetensors`` file, whatever it is called.

    They keep their type and, where the format allows, stay on the disk until they are used.
    Raises `ExportError` for a file that is damaged, holds anything but tensors, or tensors that
    are no weights.
    """
    with path.open("rb") as file:
        start = file.read(9)
    if start[:4] == _ZIP or start[:1] == _PICKLE:
        state = _unwrapped(_unpickle(path, zipped=start[:4] == _ZIP), path.name)
    elif start[8:] == b"{":
        state = _read_safetensors(path)
    else:
        raise ExportError(f"{path.name} is neither a PyTorch file nor a safetensors file")
    _check(state, path.name)
    return state


def _unpickle(path: Path, *, zipped: bool) -> object:
    try:
        if zipped:
            _check_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped or None)
    except pickle.UnpicklingError as error:
        # Its text is a page long and ends in advice to load without the restriction.
        raise ExportError(
            f"{path.name} holds something else than tensors, or is damaged; "
            "it was refused, and no code in it was run"
        ) from error
    except _DAMAGE as error:
        raise ExportError(f"{path.name} is damaged or incomplete") from error


def _check_archive(path: Path) -> None:
    """Compare every checksum of a PyTorch archive: a flipped bit is no weight."""
    with zipfile.ZipFile(path) as archive:
        # PyTorch never compresses; what is compressed could be of any size.
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ExportError(f"{path.name} is a compressed archive, which no checkpoint is")
        damaged = archive.testzip()
    if damaged is not None:
        raise ExportError(f"{path.name} is damaged: {damaged} does not have its checksum")


def _read_safetensors(path: Path) -> State:
    try:
        state: State = load_file(path)
    except (SafetensorError, *_DAMAGE) as error:
        raise ExportError(f"{path.name} is damaged or incomplete") from error
    return state


def _unwrapped(content: object, name: str) -> State:
    for wrapper in WRAPPERS:
        inner = content.get(wrapper) if isinstance(content, dict) else None
        if isinstance(inner, Mapping) and inner:
            content = inner
            break
    if not isinstance(content, Mapping) or not all(
        isinstance(key, str) and torch.is_tensor(value) for key, value in content.items()
    ):
        raise ExportError(f"{name} holds something else than named tensors")
    return dict(content)


def _check(state: State, name: str) -> None:
    for key, value in state.items():
        fault = _fault(value)
        if fault:
            raise ExportError(f"{name}: {key} {fault}")
    if sum(value.numel() for value in state.values()) * 4 > MOST_BYTES:
        raise ExportError(f"{name} holds more than {MOST_BYTES >> 30} GiB of weights")


def _fault(value: Tensor) -> str:
    """Say what makes a tensor no weight; empty for a good one."""
    if value.layout is not torch.strided or value.is_quantized or value.is_complex():
        return "is no dense tensor of real numbers"
    # Strides of 0 let a few bytes claim any shape.
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return "claims more numbers than it holds"
    if value.is_floating_point():
        return "" if bool(torch.isfinite(value).all()) else "has values that are not finite"
    return "" if value.dtype is torch.int64 else f"has type {value.dtype}, which no weight has"
