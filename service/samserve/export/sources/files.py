"""Tensors out of untrusted files.

A ``.pth`` file is a pickle, which can hold code.  PyTorch's restricted unpickler
(``weights_only=True``) runs none of it; what is added here bounds sizes and checks what it returns.
"""

from __future__ import annotations

import errno
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import TypeGuard

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import Parameter

from samserve.export.errors import ExportError

State = dict[str, Tensor]

WRAPPERS = ("model", "state_dict")
"""Keys under which training programs keep the weights, beside an optimizer's state and the like."""

MOST_BYTES = 16 << 30
"""Bound of a file, and of all tensors of a checkpoint widened to float32; ViT-H has 2.4 GiB."""

MOST_ENTRIES = 10_000
"""Bound of the entries of an archive, one for each tensor; ViT-H has 600."""

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COUNTER = "num_batches_tracked"
"""Batch norms count; nothing else in a SAM is an integer."""

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"

_SHOWN = 200


def read_tensors(path: Path) -> State:
    """Read the named tensors of a ``.pth`` or ``.safetensors`` file, whatever it is called.

    They keep their type and, where the format allows, stay on the disk until they are used.
    Raises `ExportError` for a file that is damaged, holds anything but tensors, or tensors that
    are no weights.
    """
    state = _named_tensors(_content(path))
    if state is None:
        raise ExportError(f"{shown(path.name)} holds something else than named tensors")
    _check(state, path)
    return state


def check_size(state: State, name: str) -> None:
    """Refuse tensors that would take more than `MOST_BYTES` as float32, with `ExportError`."""
    if sum(value.numel() for value in state.values()) * 4 > MOST_BYTES:
        raise ExportError(f"{name} holds more than {MOST_BYTES >> 30} GiB of weights")


def shown(text: str) -> str:
    """Return untrusted text as one line, without control characters, cut if it is long."""
    line = "".join(character if character.isprintable() else "?" for character in text)
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}..."


def _content(path: Path) -> object:
    """Read whatever a file holds; what its readers raise becomes one line."""
    name = shown(path.name)
    with path.open("rb") as file:
        start = file.read(9)
    try:
        return _parsed(path, start)
    except ExportError:
        raise
    except pickle.UnpicklingError as error:
        # Its text is a page long and ends in advice to load without the restriction.
        raise ExportError(
            f"{name} holds something else than tensors, or is damaged; "
            "it was refused, and no code in it was run"
        ) from error
    except Exception as error:
        # A pickle calls PyTorch's functions with any arguments, so that they raise anything;
        # a damaged archive names offsets before its start, which is an invalid argument.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise ExportError(f"{name} is damaged or incomplete") from error


def _parsed(path: Path, start: bytes) -> object:
    """Read a file in the format that its first nine bytes tell."""
    if path.stat().st_size > MOST_BYTES:
        raise ExportError(f"{shown(path.name)} is larger than {MOST_BYTES >> 30} GiB")
    if start.startswith(_ZIP):
        _check_archive(path)
        return _unpickled(path, mmap=True)
    if start.startswith(_PICKLE):
        return _unpickled(path, mmap=False)
    if start[8:] == b"{":
        return load_file(path)
    fault = "is neither a PyTorch file nor a safetensors file" if start else "is empty"
    raise ExportError(f"{shown(path.name)} {fault}")


def _unpickled(path: Path, *, mmap: bool) -> object:
    # A path with this suffix PyTorch itself would take for safetensors, whatever is inside.
    mmap = mmap and not path.name.endswith(".safetensors")
    with warnings.catch_warnings(), path.open("rb") as file:
        # Such as for another version of pickles; what is read is checked anyway.
        warnings.simplefilter("ignore")
        source = path if mmap else file
        return torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)


def _check_archive(path: Path) -> None:
    """Compare every checksum of a PyTorch archive: a flipped bit is no weight."""
    name = shown(path.name)
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if len(entries) > MOST_ENTRIES:
            raise ExportError(f"{name} has more than {MOST_ENTRIES} entries")
        if any(entry.filename.endswith("/constants.pkl") for entry in entries):
            raise ExportError(f"{name} is a TorchScript program; no code in it was run")
        # PyTorch never compresses; what is compressed, or overlaps, could be of any size.
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ExportError(f"{name} is a compressed archive, which no checkpoint is")
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ExportError(f"{name} is damaged or incomplete")
        damaged = archive.testzip()
    if damaged is not None:
        raise ExportError(f"{name} is damaged: {shown(damaged)} does not have its checksum")


def _named_tensors(content: object) -> State | None:
    """Take the tensors, from under a wrapper too; None where there is anything else.

    Methods are called by their class: a pickle can hide those of its objects behind attributes.
    """
    inner = [dict.get(content, key) for key in WRAPPERS] if isinstance(content, dict) else []
    found = next(filter(_are_named_tensors, [*inner, content]), None)
    return (
        None if found is None else {key: Tensor.detach(value) for key, value in dict.items(found)}
    )


def _are_named_tensors(content: object) -> TypeGuard[State]:
    return (
        isinstance(content, dict)
        and len(content) > 0
        and all(
            isinstance(key, str) and type(value) in (Tensor, Parameter)
            for key, value in dict.items(content)
        )
    )


def _check(state: State, path: Path) -> None:
    """Refuse what is no weight; cheap checks come first, and none copies more than is checked."""
    name = shown(path.name)
    for key, value in state.items():
        fault = _fault_of_form(key, value)
        if fault:
            raise ExportError(f"{name}: {shown(key)} {fault}")
    check_size(state, name)
    storages = [value.untyped_storage() for value in state.values()]
    held = {storage.data_ptr(): storage.nbytes() for storage in storages}
    if sum(held.values()) > path.stat().st_size:
        raise ExportError(f"{name} claims more numbers than it holds")
    for key, value in state.items():
        if not bool(torch.isfinite(value.float()).all()):
            raise ExportError(f"{name}: {shown(key)} has values that are not finite in float32")


def _fault_of_form(key: str, value: Tensor) -> str:
    """Say what makes a tensor no weight, whatever its values; empty for a good one."""
    if value.layout is not torch.strided or value.is_nested or value.is_meta or value.is_neg():
        return "is no plain tensor"
    if value.dtype not in FLOATS and not (value.dtype is torch.int64 and key.endswith(COUNTER)):
        return f"has type {str(value.dtype).removeprefix('torch.')}, which no weight has"
    # Strides of 0 let a few bytes claim any shape.
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return "claims more numbers than it holds"
    return ""
