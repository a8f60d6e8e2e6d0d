"""``data.yaml``: the names of the classes, and the folders of the images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from samserve.datasets.types import Category
from samserve.errors import InvalidRequest

FILE = "data.yaml"
IMAGES, LABELS = "images", "labels"
SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Description:
    """Categories, whose ids are the classes, and the folders or lists of images of each split."""

    categories: tuple[Category, ...]
    splits: dict[str, tuple[Path, ...]]


def find_description(path: Path) -> Path | None:
    """Return the YAML file of a data set: *path* itself, or ``data.yaml`` or the only one in it."""
    if path.is_file():
        return path if path.suffix in (".yaml", ".yml") else None
    for name in (FILE, "dataset.yaml"):
        if (path / name).is_file():
            return path / name
    found = [*path.glob("*.yaml"), *path.glob("*.yml")]
    return found[0] if len(found) == 1 and (path / LABELS).is_dir() else None


def read_description(file: Path) -> Description:
    """Read a description.  Raises `InvalidRequest` and ``OSError``."""
    try:
        value = yaml.safe_load(file.read_text("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InvalidRequest(str(file), "is not UTF-8") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InvalidRequest(str(file), f"is not valid YAML: {reason}") from error
    if not isinstance(value, dict):
        raise InvalidRequest(str(file), "must have the keys names and train")
    root = _root(file, value.get("path"))
    splits = {name: _folders(file, root, name, value[name]) for name in SPLITS if value.get(name)}
    if not splits and (root / IMAGES).is_dir():
        splits = {"": (root / IMAGES,)}
    return Description(_categories(file, value.get("names")), splits)


def write_description(file: Path, categories: tuple[Category, ...], splits: dict[str, str]) -> None:
    """Write a description; *splits* are folders relative to it.  Raises ``OSError``."""
    names = {index: each.name for index, each in enumerate(categories)}
    text = yaml.safe_dump({**splits, "names": names}, sort_keys=False, allow_unicode=True)
    file.write_text(text, "utf-8")


def label_file(image: Path) -> Path:
    """Return the file of an image's labels: the last folder ``images`` becomes ``labels``."""
    parts = list(image.parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == IMAGES:
            parts[index] = LABELS
            break
    return Path(*parts).with_suffix(".txt")


def label_folder(images: Path) -> Path:
    """Return the folder of the labels of a folder of images."""
    return label_file(images / "image").parent


def _root(file: Path, path: Any) -> Path:
    """Return the folder that others are relative to; that of the file if it does not exist.

    Ultralytics looks for a relative one in its own folder of data sets, too.
    """
    if isinstance(path, str) and "\0" not in path and (file.parent / path).is_dir():
        return file.parent / path
    return file.parent


def _folders(file: Path, root: Path, split: str, value: Any) -> tuple[Path, ...]:
    every = value if isinstance(value, list) else [value]
    for each in every:
        if not isinstance(each, str) or "\0" in each:
            raise InvalidRequest(
                f"{file}: {split}", "must be a folder of images, or a list of them"
            )
    # Exports of some tools begin with ../ although the folder is beside the file.
    return tuple(
        found if (found := root / each).exists() else root / each.removeprefix("../")
        for each in every
    )


def _categories(file: Path, names: Any) -> tuple[Category, ...]:
    pairs = list(enumerate(names)) if isinstance(names, list) else names
    pairs = list(pairs.items()) if isinstance(pairs, dict) else pairs
    if not isinstance(pairs, list) or not pairs:
        raise InvalidRequest(f"{file}: names", "must be a list of names, or names by class")
    for index, name in pairs:
        if type(index) is not int or index < 0 or isinstance(name, dict | list | None):
            raise InvalidRequest(
                f"{file}: names", f"{str(index)[:40]!r} is not a class with a name"
            )
    return tuple(Category(index, str(name)) for index, name in sorted(pairs))
