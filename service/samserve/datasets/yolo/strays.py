"""Label files of a YOLO folder whose image is missing."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from samserve.datasets import image_files
from samserve.datasets.files import walk

_OTHERS = ("classes.txt",)
"""What labelling tools write beside the labels."""


@dataclass(frozen=True, slots=True)
class Strays:
    """The paths of the label files without an image.

    ``folders`` are pairs of a folder with labels and the one with their images.  Files without
    labels are left out, and labels beside their images, where any text may be.  Iterating raises
    ``OSError``.
    """

    folders: tuple[tuple[Path, Path], ...]

    def __iter__(self) -> Iterator[str]:
        found: dict[Path, None] = {}
        for labels, images in self.folders:
            if labels != images and labels.is_dir():
                found |= dict.fromkeys(_strays(labels, images))
        return (str(path) for path in found)


def _strays(labels: Path, images: Path) -> Iterator[Path]:
    for folder, files in itertools.groupby(walk(labels), key=lambda path: path.parent):
        stems = _stems(images / folder.relative_to(labels))
        for path in files:
            is_labels = path.suffix == ".txt" and path.name not in _OTHERS
            if is_labels and path.stem not in stems and path.stat().st_size:
                yield path


def _stems(folder: Path) -> set[str]:
    if not folder.is_dir():
        return set()
    return {path.stem for path in folder.iterdir() if image_files.is_image(path)}
