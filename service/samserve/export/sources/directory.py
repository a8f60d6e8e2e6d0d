"""Directories of the transformers library: a configuration and weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from samserve.export.errors import ExportError
from samserve.export.sources.files import State, check_size, read_tensors, shown
from samserve.export.sources.identification import SUPPORTED, of_type, unsupported

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""In the order of preference; each may be split into shards that an index lists."""

MAX_JSON = 16 << 20
"""Limit of the bytes of a configuration or an index."""


def read_config(folder: Path) -> dict[str, Any]:
    """Read the configuration of a model.  Raises `ExportError` for a type without an export."""
    config = _read_json(folder / CONFIG)
    found = config.get("model_type")
    kind = of_type(found)
    if kind is None:
        text = f"the type {shown(repr(found))}" if found else "an unknown type"
        raise ExportError(f"{shown(folder.name)} has a model of {text}; supported are {SUPPORTED}")
    if not kind.loader:
        raise ExportError(unsupported(kind, f"model_type {found}"))
    return config


def weight_files(folder: Path) -> list[Path]:
    """Return the files with the weights of a model.  Raises `ExportError` if there are none."""
    name = shown(folder.name)
    for file in WEIGHTS:
        if (folder / file).is_file():
            return [folder / file]
        if (folder / f"{file}.index.json").is_file():
            return _shards(folder, f"{file}.index.json")
    raise ExportError(f"{name} has neither {' nor '.join(WEIGHTS)}")


def read_files(files: list[Path], name: str, key: str = "") -> State:
    """Read the tensors of all *files* of the checkpoint *name*, under *key* in the files.

    Raises `ExportError` for a tensor that two files contain.
    """
    state: State = {}
    for path in files:
        shard = read_tensors(path, key)
        repeated = state.keys() & shard.keys()
        if repeated:
            raise ExportError(f"{shown(path.name)} repeats {shown(min(repeated))}")
        state |= shard
    check_size(state, name)
    return state


def _shards(folder: Path, index: str) -> list[Path]:
    names = _read_json(folder / index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ExportError(f"{index} lists no weights")
    # An index is untrusted input: its paths must not leave its folder.
    if not all(isinstance(name, str) and _is_plain(name) for name in names.values()):
        raise ExportError(f"{index} names files outside of its directory")
    files = [folder / name for name in sorted(set(names.values()))]
    for path in files:
        if not path.is_file():
            raise ExportError(
                f"{shown(folder.name)} has no {shown(path.name)}, which {index} lists"
            )
        if not _is_inside(path, folder):
            raise ExportError(f"{shown(path.name)} is a link to outside of its directory")
    return files


def _is_plain(name: str) -> bool:
    return name not in ("", "..") and name == Path(name).name


def _is_inside(path: Path, folder: Path) -> bool:
    """Return whether a link ends in its folder, or in the blob folder of the hub's cache."""
    resolved = folder.resolve()
    allowed = [resolved]
    if resolved.parent.name == "snapshots":
        allowed.append(resolved.parent.with_name("blobs"))
    return path.resolve().parent in allowed


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ExportError(f"{shown(path.parent.name)} has no {path.name}")
    if path.stat().st_size > MAX_JSON:
        raise ExportError(f"{path.name} is larger than {MAX_JSON >> 20} MiB")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{path.name} is not a JSON file") from error
    if not isinstance(content, dict):
        raise ExportError(f"{path.name} is not a JSON object")
    return content
