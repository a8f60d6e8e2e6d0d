"""Opening what a user names: a file, a directory or a name on the hub."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from samserve.export.errors import ExportError
from samserve.export.sources import hub
from samserve.export.sources.directory import CONFIG, read_directory, weight_files
from samserve.export.sources.files import State, read_tensors
from samserve.export.sources.naming import Naming, original_names


@dataclass(frozen=True, slots=True)
class Source:
    """Where weights came from.

    ``name`` is that of the file, the directory or the model on the hub, never a whole path;
    ``revision`` the hub's commit or empty.  ``sha256`` is the file's; for a directory it is that
    of the lines ``<name> <sha256>`` of its files in order.  ``dtype`` is the narrowest type of the
    weights as they were stored.
    """

    name: str
    revision: str
    sha256: str
    naming: Naming
    dtype: str


def open_source(spec: str | Path, revision: str | None = None) -> tuple[State, Source]:
    """Read the tensors of *spec*, in their stored types, under the original names.

    A file or directory that is there goes before a name on the hub.  Raises `ExportError`.
    """
    path, commit = Path(spec), ""
    name = path.name
    if not path.exists():
        if not hub.is_hub_name(str(spec)):
            raise ExportError(f"{spec}: no such file or directory, and no name on the hub")
        path, commit = hub.fetch(str(spec), revision)
        name = str(spec)
    try:
        tensors, sha256 = _read_directory(path) if path.is_dir() else _read_file(path)
    except OSError as error:
        raise ExportError(f"{name} cannot be read: {error.strerror or error}") from error
    naming, state = original_names(tensors)
    return state, Source(name, commit, sha256, naming, _narrowest(state.values()))


def _read_file(path: Path) -> tuple[State, str]:
    sha256 = _sha256(path)
    return read_tensors(path), sha256


def _read_directory(folder: Path) -> tuple[State, str]:
    files = weight_files(folder)
    lines = [f"{path.name} {_sha256(path)}\n" for path in sorted([*files, folder / CONFIG])]
    return read_directory(files), hashlib.sha256("".join(lines).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _narrowest(tensors: Iterable[Tensor]) -> str:
    types = {value.dtype for value in tensors if value.is_floating_point()}
    narrowest = min(types, key=lambda dtype: (dtype.itemsize, str(dtype)), default=torch.float32)
    return str(narrowest).removeprefix("torch.")
