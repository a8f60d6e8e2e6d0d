"""Data sets as examples: what counts, how they are divided, and clear refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from samserve.core import run_lengths
from samserve.datasets.types import Annotation, ImageRecord, Origin
from samserve.tuning.errors import TuningError
from samserve.tuning.examples import WEIGHTS, read_examples, split
from samserve.types import CocoRle, Size

from tests.tuning import toys


def _mask(height: int, width: int) -> CocoRle:
    mask = np.zeros((height, width), bool)
    mask[2:6, 2:6] = True
    return run_lengths.encode(mask)


@pytest.fixture
def record(tmp_path: Path) -> ImageRecord:
    """An image of 20x10 pixels with an accepted and a corrected object, and what does not count.

    That is a group, a box, and a mask without pixels.
    """
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    mask = _mask(10, 20)
    annotations = (
        Annotation(mask, origin=Origin.ACCEPTED),
        Annotation(mask, origin=Origin.CORRECTED),
        Annotation(mask, iscrowd=True),
        Annotation(None),
        Annotation(run_lengths.encode(np.zeros((10, 20), bool))),
    )
    return ImageRecord("a.png", Size(10, 20), annotations)


def test_objects_with_pixels_are_weighed_by_their_origin(
    tmp_path: Path, record: ImageRecord
) -> None:
    (example,) = read_examples([record], tmp_path)

    assert example.size == Size(10, 20)
    weights = [target.weight for target in example.targets]
    assert weights == [WEIGHTS["accepted"], WEIGHTS["corrected"]]
    assert weights[1] > weights[0]


def test_missing_images_are_named(tmp_path: Path, record: ImageRecord) -> None:
    missing = [replace(record, file_name=f"{name}.png") for name in "xyz"]

    with pytest.raises(TuningError, match=r"images are missing in .*: x\.png and 2 more"):
        read_examples([record, *missing], tmp_path)


def test_mask_of_another_size_than_its_image_is_refused(
    tmp_path: Path, record: ImageRecord
) -> None:
    wrong = ImageRecord("a.png", Size(20, 10), (Annotation(_mask(20, 10)),))

    with pytest.raises(TuningError, match=r"a\.png: its masks are of 10x20 pixels"):
        read_examples([wrong], tmp_path)


def test_file_that_is_no_image_is_refused(tmp_path: Path, record: ImageRecord) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")

    with pytest.raises(TuningError, match=r"a\.png cannot be read as an image"):
        read_examples([record], tmp_path)


def test_held_out_part_is_drawn_by_image_from_the_seed(tmp_path: Path) -> None:
    examples = toys.discs(tmp_path, 1, 10)

    trained, held_out = split((*examples, *examples), 0.3, seed=1)

    assert {example.key for example in held_out}.isdisjoint(example.key for example in trained)
    assert (len(trained), len(held_out)) == (14, 6)
    assert split((*examples, *examples), 0.3, seed=1) == (trained, held_out)
    assert split((*examples, *examples), 0.3, seed=2) != (trained, held_out)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, float("nan")])
def test_no_held_out_part_is_refused(tmp_path: Path, fraction: float) -> None:
    with pytest.raises(TuningError, match="there is no held-out part"):
        split(toys.discs(tmp_path, 1, 2), fraction, seed=0)
