"""COCO files: instances with their images and categories, and result lists of detectors."""

from __future__ import annotations

from pathlib import Path

from samserve.datasets import json_files
from samserve.datasets.coco.conversion import write
from samserve.datasets.coco.reading import read_file, read_results
from samserve.datasets.coco.writing import CocoOptions, CocoWriter, coco_writer
from samserve.datasets.formats import Format
from samserve.datasets.types import DataSet
from samserve.errors import InvalidRequest

__all__ = ["FORMAT", "RESULTS", "CocoOptions", "CocoWriter", "coco_writer", "read_file"]


def _is_instances(path: Path) -> bool:
    keys = json_files.first_keys(path)
    return "image" not in keys and not {"images", "annotations", "categories"}.isdisjoint(keys)


def _is_results(path: Path) -> bool:
    head = json_files.head(path)
    return head.startswith("[") and '"image_id"' in head and '"score"' in head


def _read(path: Path, images: Path | None) -> DataSet:
    return read_file(path)


def _read_results(path: Path, images: Path | None) -> DataSet:
    if images is None or images.is_dir():
        text = "is a list of results: --images must name the COCO file with their images"
        raise InvalidRequest(str(path), text)
    return read_results(path, images)


FORMAT = Format("coco", "a COCO file", _is_instances, _read, write)
RESULTS = Format("coco-results", "a detector's list of results", _is_results, _read_results)
