"""What is measured, and when a model counts as better."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from samserve.core import run_lengths
from samserve.models.repository import discover
from samserve.tuning import pipeline
from samserve.tuning.batches import low_res
from samserve.tuning.errors import TuningError
from samserve.tuning.evaluation import Demands, Evaluation, Figures, shortcoming
from samserve.tuning.examples import Example, Parts, Target
from samserve.types import Array, Size

from tests.tuning import toys
from tests.tuning.fakes import FakeEmbeddings

FIGURES = Figures(images=2, objects=8, click_iou=0.6, box_iou=0.8, clicks=5.0)
DEMANDS = Demands(min_gain=0.01, max_loss=0.02)


def test_better_model_has_no_shortcoming() -> None:
    after = replace(FIGURES, click_iou=0.64, box_iou=0.79)

    assert shortcoming(FIGURES, after, None, DEMANDS) == ""
    assert shortcoming(FIGURES, after, (FIGURES, replace(FIGURES, box_iou=0.77)), DEMANDS) == ""


@pytest.mark.parametrize(
    ("after", "old", "message"),
    [
        ({"click_iou": 0.61}, {}, "the mean IoU on the held-out part went from 0.700 to 0.705"),
        ({"click_iou": 0.3}, {}, "the mean IoU on the held-out part went from 0.700 to 0.550"),
        ({"click_iou": 0.57, "box_iou": 0.95}, {}, "one click fell from 0.600 to 0.570"),
        ({"click_iou": 0.95, "box_iou": 0.77}, {}, "a box fell from 0.800 to 0.770"),
        ({"click_iou": 0.9}, {"box_iou": 0.75}, "the mean IoU on old data fell from 0.700"),
    ],
)
def test_model_that_gains_too_little_or_loses_somewhere_is_not_better(
    after: dict[str, float], old: dict[str, float], message: str
) -> None:
    figures = replace(FIGURES, **after), (FIGURES, replace(FIGURES, **old))

    assert message in shortcoming(FIGURES, *figures, DEMANDS)


class _Perfect:
    """A decoder whose masks are those of the objects after a number of clicks, or for a box.

    Before, they are empty.  Outside the image, all pixels are foreground.
    """

    def __init__(self, embeddings: FakeEmbeddings, example: Example, clicks: int) -> None:
        self._clicks = clicks
        self._transform = transform = embeddings.transform(example)
        masks = [run_lengths.decode(target.mask) for target in example.targets]
        self._goals = np.stack([low_res(mask, transform) for mask in masks]) > 0

    def decode(
        self, embedding: object, coords: Array, labels: Array, masks: Array
    ) -> tuple[Array, Array]:
        """See `ExportedModel.decode`."""
        side = self._transform.mask_side
        logits = np.full((1, coords.shape[1], 4, side, side), -8.0, np.float32)
        for row, (points, kinds) in enumerate(zip(coords[0], labels[0], strict=True)):
            boxed = (kinds >= 2).any()
            place = points[kinds >= 2].mean(0) if boxed else points[kinds == 1][0]
            column, line = (int(value) // 4 for value in place)
            if boxed or np.isin(kinds, (0, 1)).sum() >= self._clicks:
                (goal,) = (each for each in self._goals if each[line, column])
                logits[0, row, :, goal] = 8.0
        resized = self._transform.resized
        logits[..., resized.height // 4 :, :] = logits[..., resized.width // 4 :] = 8.0
        return logits, np.ones((1, coords.shape[1], 4), np.float32)


@pytest.mark.parametrize("clicks", [1, 2, 4])
def test_clicks_are_counted_and_padding_is_not_measured(tmp_path: Path, clicks: int) -> None:
    (base,) = discover(toys.SAM_TINY)
    embeddings = FakeEmbeddings(base.info)
    (square,) = toys.discs(tmp_path, 1, 1)
    # Half of the frame is padding.
    masks = [run_lengths.decode(target.mask)[:64] for target in square.targets[:2]]
    targets = tuple(Target(run_lengths.encode(mask)) for mask in masks)
    example = replace(square, size=Size(64, 128), targets=targets)
    embeddings.model = _Perfect(embeddings, example, clicks)

    figures = Evaluation(base.info, seed=0).figures(embeddings, [example])

    assert figures == Figures(1, 2, float(clicks == 1), 1.0, float(clicks))


@pytest.mark.parametrize("old", [False, True])
def test_objects_that_are_too_small_to_be_measured_are_refused(tmp_path: Path, old: bool) -> None:
    images = toys.discs(tmp_path, 1, 2)
    parts = Parts(images, images, images, images)
    few = [FIGURES, replace(FIGURES, objects=3)]

    with pytest.raises(TuningError, match="only 3 objects on 2 held-out images are large enough"):
        pipeline._check_measured(parts, few if old else few[::-1], 16)
    pipeline._check_measured(parts, few, 1)
