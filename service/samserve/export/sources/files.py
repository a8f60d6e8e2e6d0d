"""Reading tensors from untrusted files.

A ``.pth`` file is a pickle, which can contain code.  PyTorch's restricted unpickler
(``weights_only=True``) does not run it; this module also limits sizes and checks the result.
"""

from __future__ import annotations

import errno
import pickle
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import Parameter

from samserve.export.errors import ExportError

State = dict[str, Tensor]

MAX_BYTES = 16 << 30
"""Limit of a file, and of all tensors of a checkpoint as float32; ViT-H has 2.4 GiB."""

MAX_ENTRIES = 10_000
"""Limit of the tensors of a file, and of the entries of an archive; ViT-H has 600."""

MAX_NAME = 500
"""Limit of the characters of a tensor's name."""

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COUNTER = "num_batches_tracked"
"""Suffix of the counters of batch norms, the only integers in a SAM."""

MAX_DEPTH = 3
"""Limit of the wrappers around the weights."""

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"

_MAX_SHOWN = 200


def read_tensors(path: Path, key: str = "") -> State:
    """Read the named tensors of a ``.pth`` or ``.safetensors`` file with any suffix.

    Training programs store the weights under a key, next to optimizer state and the like.  It is
    found if there is only one, else it must be *key*, with a dot between those of nested wrappers.
    Tensors keep their type and, if the format allows it, stay on the disk until they are used.
    Raises `ExportError` for a file that is corrupt or contains anything but weights.
    """
    content = _content(path)
    found = _under(content, key, path) if key else _unwrapped(content, path)
    state = {name: Tensor.detach(value) for name, value in dict.items(found)}
    _check(state, path)
    return state


def check_size(state: State, name: str) -> None:
    """Raise `ExportError` for tensors that need more than `MAX_BYTES` as float32."""
    if sum(value.numel() for value in state.values()) * 4 > MAX_BYTES:
        raise ExportError(f"{name} has more than {MAX_BYTES >> 30} GiB of weights")


def shown(text: str) -> str:
    """Return untrusted text as one line without control characters, truncated if it is long."""
    line = "".join(character if character.isprintable() else "?" for character in text)
    return line if len(line) <= _MAX_SHOWN else f"{line[:_MAX_SHOWN]}..."


def _content(path: Path) -> object:
    """Load the content of a file; errors of its reader become one line."""
    name = shown(path.name)
    with path.open("rb") as file:
        start = file.read(9)
    try:
        return _parsed(path, start)
    except ExportError:
        raise
    except pickle.UnpicklingError as error:
        # Its text is a page long and ends with the advice to load without the restriction.
        raise ExportError(
            f"{name} is corrupt or contains something other than tensors; no code in it was run; "
            "if you trust it, load it in PyTorch and save its state dict alone"
        ) from error
    except Exception as error:
        # A pickle calls PyTorch's functions with arbitrary arguments, so they raise any exception;
        # a corrupt archive has offsets before its start, which are an invalid argument (EINVAL).
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise ExportError(f"{name} is corrupt or incomplete") from error


def _parsed(path: Path, start: bytes) -> object:
    """Load a file in the format that its first nine bytes identify."""
    if path.stat().st_size > MAX_BYTES:
        raise ExportError(f"{shown(path.name)} is larger than {MAX_BYTES >> 30} GiB")
    if start.startswith(_ZIP):
        _check_archive(path)
        return _unpickled(path, mmap=True)
    if start.startswith(_PICKLE):
        return _unpickled(path, mmap=False)
    if start[8:] == b"{":
        return load_file(path)
    problem = "is neither a PyTorch file nor a safetensors file" if start else "is empty"
    raise ExportError(f"{shown(path.name)} {problem}")


def _unpickled(path: Path, *, mmap: bool) -> object:
    # PyTorch itself would read a path with this suffix as safetensors, whatever its content.
    mmap = mmap and not path.name.endswith(".safetensors")
    with warnings.catch_warnings(), path.open("rb") as file:
        # Such as about another pickle protocol; the content is checked anyway.
        warnings.simplefilter("ignore")
        source = path if mmap else file
        return torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)


def _check_archive(path: Path) -> None:
    """Verify the checksums and sizes of a PyTorch archive."""
    name = shown(path.name)
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if len(entries) > MAX_ENTRIES:
            raise ExportError(f"{name} has more than {MAX_ENTRIES} entries")
        if any(entry.filename.endswith("/constants.pkl") for entry in entries):
            raise ExportError(f"{name} is a TorchScript program; no code in it was run")
        # PyTorch never compresses; compressed or overlapping entries could have any size.
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ExportError(f"{name} is a compressed archive, not a checkpoint")
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ExportError(f"{name} is corrupt or incomplete")
        corrupt = archive.testzip()
    if corrupt is not None:
        raise ExportError(f"{name} is corrupt: {shown(corrupt)} does not match its checksum")


def _unwrapped(content: object, path: Path) -> State:
    """Return the only named tensors of a file, which may be under a key."""
    if _are_named_tensors(content):
        return content
    found = dict(_wrapped(content, (), 0))
    if len(found) > 1:
        keys = " and ".join(repr(shown(key)) for key in list(found)[:4])
        raise ExportError(f"{shown(path.name)} has tensors under {keys}: choose with --key")
    for state in found.values():
        return state
    raise ExportError(f"{shown(path.name)} contains something other than named tensors")


def _wrapped(content: object, keys: tuple[str, ...], depth: int) -> Iterator[tuple[str, State]]:
    """Yield the named tensors of a network under each key, with the dotted key."""
    if depth > MAX_DEPTH or not isinstance(content, dict):
        return
    # Those of an optimizer are not named like those of a network, with a dot.
    if keys and _are_named_tensors(content) and any("." in name for name in dict.keys(content)):
        yield ".".join(keys), content
        return
    for key, value in dict.items(content):
        if type(key) is str:
            yield from _wrapped(value, (*keys, key), depth + 1)


def _under(content: object, key: str, path: Path) -> State:
    """Return the named tensors under a dotted key."""
    found: Any = content
    rest = key
    while rest:
        names = [name for name in _keys(found) if rest == name or rest.startswith(f"{name}.")]
        if not names:
            parent = key[: -len(rest) - 1]
            place = f"under {shown(parent)!r} it has" if parent else "it has"
            some = ", ".join(repr(shown(name)) for name in _keys(found)[:6]) or "none"
            raise ExportError(f"{shown(path.name)} has no key {shown(key)!r}; {place} {some}")
        # Keys may contain dots.
        name = max(names, key=len)
        found, rest = dict.__getitem__(found, name), rest[len(name) + 1 :]
    if not _are_named_tensors(found):
        raise ExportError(
            f"{shown(path.name)} has something other than named tensors under {shown(key)!r}"
        )
    return found


def _keys(content: object) -> list[str]:
    keys = list(dict.keys(content)) if isinstance(content, dict) else []
    return [key for key in keys if type(key) is str]


def _are_named_tensors(content: object) -> TypeGuard[State]:
    """Return whether a value is a dictionary of tensors by names.

    Methods are called on the class: a pickle can hide those of its objects behind attributes.
    """
    return (
        isinstance(content, dict)
        and len(content) > 0
        and all(
            isinstance(key, str) and type(value) in (Tensor, Parameter)
            for key, value in dict.items(content)
        )
    )


def _check(state: State, path: Path) -> None:
    """Raise `ExportError` for a tensor that is not a weight; cheap checks come first."""
    name = shown(path.name)
    if len(state) > MAX_ENTRIES:
        raise ExportError(f"{name} has more than {MAX_ENTRIES} tensors")
    for key, value in state.items():
        problem = _tensor_problem(key, value)
        if problem:
            raise ExportError(f"{name}: {shown(key)} {problem}")
    check_size(state, name)
    storages = [value.untyped_storage() for value in state.values()]
    sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
    if sum(sizes.values()) > path.stat().st_size:
        raise ExportError(f"{name} declares more values than it contains")
    for key, value in state.items():
        if not bool(torch.isfinite(value.float()).all()):
            raise ExportError(f"{name}: {shown(key)} has values that are not finite in float32")


def _tensor_problem(key: str, value: Tensor) -> str:
    """Return why a tensor is not a weight, regardless of its values; empty if it is one."""
    if len(key) > MAX_NAME:
        return f"has a name of more than {MAX_NAME} characters"
    if value.layout is not torch.strided or value.is_nested or value.is_meta or value.is_neg():
        return "is not a dense tensor"
    if value.numel() == 0:
        return "has no values"
    if value.dtype not in FLOATS and not (value.dtype is torch.int64 and key.endswith(COUNTER)):
        return f"has type {str(value.dtype).removeprefix('torch.')}, which is not a type of weights"
    # With strides of 0, a few bytes can declare any shape.
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return "declares more values than it contains"
    return ""
