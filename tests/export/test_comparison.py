"""How answers are compared: by their best masks, inside the picture."""

from __future__ import annotations

import numpy as np
import pytest
from samserve.export.parity import PROMPTS_PER_PICTURE, Answer, Placed, compare, place

HEIGHT, WIDTH = 120, 256


@pytest.fixture
def placed() -> Placed:
    """A picture that takes the upper part of the frame: 480 of 1024 rows."""
    return place(np.zeros((480, 1024, 3), np.uint8), 1024)


def answer(
    masks: np.ndarray, iou: tuple[float, float, float, float] = (0, 0.9, 0.5, 0.1)
) -> Answer:
    """One answer for every prompt: bool masks ``[4,256,256]``."""
    logits = np.where(masks, 1, -1).astype(np.float32)
    return Answer(
        embedding=np.ones((1, 256, 64, 64), np.float32),
        logits=np.broadcast_to(logits, (PROMPTS_PER_PICTURE, 4, 256, 256)),
        iou=np.tile(np.array(iou, np.float32), (PROMPTS_PER_PICTURE, 1)),
    )


def masks(token: int, rows: slice, columns: slice = slice(None)) -> np.ndarray:
    chosen = np.zeros((4, 256, 256), bool)
    chosen[token, rows, columns] = True
    return chosen


def test_prompts_lie_inside_the_picture(placed: Placed) -> None:
    corners = placed.coords[placed.labels > 0]

    assert placed.coords.shape == (1, PROMPTS_PER_PICTURE, 2, 2)
    assert sorted(set(placed.labels.ravel().tolist())) == [-1, 1, 2, 3]
    assert corners.min() >= 0
    assert corners[:, 0].max() <= 1024
    assert 440 < corners[:, 1].max() <= 480


def test_the_mask_that_the_reference_would_choose_counts(placed: Placed) -> None:
    right = answer(masks(1, slice(0, 100)))
    half = answer(masks(1, slice(0, 50)))
    other = answer(masks(2, slice(0, 100)) | masks(1, slice(0, 100)))

    assert compare([placed], [right], [half]).mean_iou == pytest.approx(0.5)
    assert compare([placed], [right], [other]).mean_iou == 1


def test_what_lies_below_the_picture_does_not_count(placed: Placed) -> None:
    right, below = masks(1, slice(0, 60)), masks(1, slice(HEIGHT, None))

    assert compare([placed], [answer(right)], [answer(right | below)]).mean_iou == 1
    assert compare([placed], [answer(right)], [answer(below)]).mean_iou == 0


def test_two_empty_masks_are_equal_and_one_is_not(placed: Placed) -> None:
    empty, full = answer(masks(1, slice(0, 0))), answer(masks(1, slice(None)))

    assert compare([placed], [empty], [empty]).worst_iou == 1
    assert compare([placed], [empty], [full]).worst_iou == 0


def test_other_choices_are_counted_and_what_is_no_number_is_never_chosen(placed: Placed) -> None:
    right = answer(masks(1, slice(0, 9)))
    other = answer(masks(1, slice(0, 9)), (0, 0.5, 0.9, 0.1))
    broken = answer(masks(1, slice(0, 9)), (0, np.nan, np.nan, 0.1))

    assert compare([placed], [right], [right]).changed_choices == 0
    assert compare([placed], [right], [other]).changed_choices == 1
    assert compare([placed], [right], [broken]).changed_choices == 1


def test_the_largest_distance_of_an_embedding_is_told(placed: Placed) -> None:
    right = answer(masks(1, slice(0, 9)))
    near = Answer(right.embedding * 1.01, right.logits, right.iou)

    figures = compare([placed, placed], [right, right], [right, near])

    assert figures.embedding_error == pytest.approx(0.01, rel=1e-3)
    assert (figures.pictures, figures.prompts) == (2, 2 * PROMPTS_PER_PICTURE)
