"""Opening a checkpoint: a file, a directory or a name on the hub."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samserve.export.errors import ExportError
from samserve.export.sources import hub
from samserve.export.sources.directory import CONFIG, read_config, read_files, weight_files
from samserve.export.sources.files import State, shown
from samserve.export.sources.names import is_hub_name


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """The content of a checkpoint: tensors by their stored names and in their stored types.

    ``config`` is the configuration of the transformers library next to the weights, None for a
    single file.
    """

    tensors: State
    config: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """Which tensors of a checkpoint are used.

    ``key`` is that of their wrapper in a file, see `read_tensors`, ``prefix`` the beginning of
    their names, which is removed; all tensors if empty.
    """

    key: str = ""
    prefix: str = ""

    def __str__(self) -> str:
        """Return the parts that are set, as in a model card."""
        parts = (f"{name} {shown(value)}" for name, value in asdict(self).items() if value)
        return ", ".join(parts)


EVERYTHING = Selection()


@dataclass(frozen=True, slots=True)
class Source:
    """The source of weights.

    ``name`` is the name of the file, the directory or the model on the hub, never a whole path;
    ``revision`` is the commit on the hub, else empty.  ``sha256`` is that of the file; for a
    directory, that of the lines ``<name>\\0<sha256>\\n`` of its weights and configuration, in
    order of names.  ``dtype`` is the narrowest stored type of the weights.
    """

    name: str
    revision: str
    sha256: str
    dtype: str


def open_source(
    spec: str | Path, revision: str | None = None, selection: Selection = EVERYTHING
) -> tuple[Checkpoint, Source]:
    """Read the tensors of *spec*, in their stored types and under their stored names.

    An existing file or directory takes precedence over a name on the hub, and has no *revision*.
    Raises `ExportError`.
    """
    path, commit = Path(spec), ""
    name = os.path.basename(os.path.abspath(path))
    try:
        if not path.exists():
            path, commit = _fetch(spec, revision)
            name = str(spec)
        elif revision:
            raise ExportError(
                f"{shown(name)} is a local path; only models on the hub have revisions"
            )
        checkpoint, sha256 = _read(path, shown(name), selection)
    except OSError as error:
        raise ExportError(f"{shown(name)} cannot be read: {error.strerror or error}") from error
    dtype = _narrowest(checkpoint.tensors.values())
    return checkpoint, Source(shown(name), commit, sha256, dtype)


def _fetch(spec: str | Path, revision: str | None) -> tuple[Path, str]:
    if not is_hub_name(str(spec)):
        raise ExportError(
            f"{shown(str(spec))}: no such file or directory, and not a name on the hub"
        )
    try:
        return hub.fetch(str(spec), revision)
    except hub.NotAvailable as error:
        raise ExportError(
            f"{spec}: no such file or directory, and not available from the hub: {error.reason}"
        ) from error


def _read(path: Path, name: str, selection: Selection) -> tuple[Checkpoint, str]:
    """Read a file or directory; return its content and its SHA-256."""
    is_folder = path.is_dir()
    if not is_folder and not path.is_file():
        raise ExportError(f"{name} is neither a file nor a directory")
    config = read_config(path) if is_folder else None
    weights = weight_files(path) if is_folder else [path]
    files = sorted([*weights, path / CONFIG]) if is_folder else weights
    before = [_fingerprint(file) for file in files]
    sums = [_sha256(file) for file in files]
    tensors = _selected(read_files(weights, name, selection.key), selection.prefix)
    if [_fingerprint(file) for file in files] != before:
        raise ExportError(f"{name} changed while it was read")
    return Checkpoint(tensors, config), _digest(files, sums) if is_folder else sums[0]


def _selected(tensors: State, prefix: str) -> State:
    """Return the tensors whose names begin with a prefix, without it."""
    if not prefix:
        return tensors
    start = prefix.rstrip(".") + "."
    found = {
        name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)
    }
    if not found:
        some = ", ".join(list(tensors)[:3])
        raise ExportError(f"no name begins with {shown(start)!r}; the names are {shown(some)} ...")
    return found


def _digest(files: list[Path], sums: list[str]) -> str:
    lines = [
        os.fsencode(f"{path.name}\0{digest}\n") for path, digest in zip(files, sums, strict=True)
    ]
    return hashlib.sha256(b"".join(lines)).hexdigest()


def _fingerprint(path: Path) -> tuple[int, ...]:
    """Return values that change if a file is replaced or written to."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _narrowest(tensors: Iterable[Tensor]) -> str:
    types = {value.dtype for value in tensors if value.is_floating_point()}
    narrowest = min(types, key=lambda dtype: (dtype.itemsize, str(dtype)), default=torch.float32)
    return str(narrowest).removeprefix("torch.")
