"""The port of formats: each has a `Format`, a row of `reading.FORMATS`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from samserve.datasets.types import DataSet


class SegmentationKind(Enum):
    """How pixels are written, in formats that have both."""

    RLE = "rle"
    POLYGONS = "polygons"


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """How a data set is written; formats ignore what they have no use for.

    Without ``segmentation``, a format writes what it holds without loss.  ``tolerance`` is the
    maximum distance in pixels between an outline and its polygon; at 0 both have the same pixels.
    ``images`` is the folder of the image files.

    ``image_url_prefix`` is what is before an image's name in a task of Label Studio,
    ``label_config`` the file of its project's label config, ``model_version`` that of predictions.
    """

    segmentation: SegmentationKind | None = None
    tolerance: float = 0.0
    images: Path | None = None
    image_url_prefix: str = ""
    label_config: Path | None = None
    model_version: str = ""


@dataclass(slots=True)
class Written:
    """What was written, and what the format could not hold.

    ``notes`` are texts with the number of annotations that they are about, such as "have a score,
    which YOLO files do not hold"; 0 for a text about the whole.
    """

    images: int = 0
    annotations: int = 0
    notes: Counter[str] = field(default_factory=Counter)

    def count(self, text: str, affected: int = 1) -> None:
        """Note that so many more annotations are concerned; nothing for none."""
        if affected:
            self.notes[text] += affected

    def remark(self, text: str) -> None:
        """Note something about the whole."""
        self.notes[text] = 0


@dataclass(frozen=True, slots=True)
class Format:
    """A format of data sets.

    *recognises* returns whether a path, which exists, seems to have this format; it reads little.
    *read* takes the path and the folder of the image files, or None; it raises `InvalidRequest` and
    ``OSError``, as the iteration over its images does.  *write* takes a path that does not exist: a
    ``folder`` or a file, which is complete or absent afterwards; None for a format that is only
    read.
    """

    name: str
    title: str
    recognises: Callable[[Path], bool]
    read: Callable[[Path, Path | None], DataSet]
    write: Callable[[DataSet, Path, WriteOptions], Written] | None = None
    folder: bool = False
