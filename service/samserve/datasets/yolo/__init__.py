"""Ultralytics YOLO segmentation: ``data.yaml``, ``images/`` and a text file for each image.

A line of ``labels/<name>.txt`` is a class, from 0, and the corners of one polygon, as parts of the
width and the height.  Holes and parts of an object are joined by bridges to one polygon, as
Ultralytics' converter joins parts.  A line of a class and four values is a box.
Source: docs.ultralytics.com/datasets/segment; ultralytics/data/utils.py img2label_paths.
"""

from __future__ import annotations

from samserve.datasets.formats import Format
from samserve.datasets.yolo.description import find_description
from samserve.datasets.yolo.reading import read
from samserve.datasets.yolo.writing import write

__all__ = ["FORMAT", "read", "write"]

FORMAT = Format(
    "yolo",
    "a YOLO folder",
    recognises=lambda path: find_description(path) is not None,
    read=read,
    write=write,
    folder=True,
)
