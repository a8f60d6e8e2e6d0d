"""Directories as the transformers library writes them: a configuration and weights beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from samserve.export.errors import ExportError
from samserve.export.sources.files import State, read_tensors

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""In the order of preference; each may be cut into shards that an index lists."""

MODEL_TYPE = "sam"


def weight_files(folder: Path) -> list[Path]:
    """List the files that hold a SAM's weights.

    Raises `ExportError` if there are none, or if the configuration is another model's.
    """
    found = str(_read_json(folder / CONFIG).get("model_type"))
    if found != MODEL_TYPE:
        raise ExportError(f"{folder.name} holds a model of type {found!r}; only 'sam' is served")
    for name in WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        if (folder / f"{name}.index.json").is_file():
            return _shards(folder, f"{name}.index.json")
    raise ExportError(f"{folder.name} holds neither {' nor '.join(WEIGHTS)}")


def read_directory(files: list[Path]) -> State:
    """Read the tensors of all *files*; one that occurs twice is refused."""
    state: State = {}
    for path in files:
        shard = read_tensors(path)
        twice = state.keys() & shard.keys()
        if twice:
            raise ExportError(f"{path.name} repeats {min(twice)}")
        state |= shard
    return state


def _shards(folder: Path, index: str) -> list[Path]:
    names = _read_json(folder / index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ExportError(f"{index} lists no weights")
    # An index may come from anybody: it shall not lead out of its folder.
    if not all(isinstance(name, str) and name == Path(name).name for name in names.values()):
        raise ExportError(f"{index} names files outside of its directory")
    files = [folder / name for name in sorted(set(names.values()))]
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise ExportError(f"{folder.name} lacks {missing[0]}, which {index} lists")
    return files


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ExportError(f"{path.parent.name} holds no {path.name}") from error
    except ValueError as error:
        raise ExportError(f"{path.name} is no JSON file") from error
    if not isinstance(content, dict):
        raise ExportError(f"{path.name} is no JSON object")
    return content
