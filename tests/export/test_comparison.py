"""How answers are compared: by their best masks, inside the picture."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from samserve.engines.fake import MODEL
from samserve.export.parity import PROMPTS_PER_PICTURE, Answer, Placed, compare, place
from samserve.models import families
from samserve.types import Parity

HEIGHT, WIDTH = 120, 256


@pytest.fixture
def placed() -> Placed:
    """A picture that takes the upper part of the frame: 480 of 1024 rows."""
    return place(np.zeros((480, 1024, 3), np.uint8), families.SAM1, MODEL)


def answer(
    masks: np.ndarray, iou: tuple[float, float, float, float] = (0, 0.9, 0.5, 0.1)
) -> Answer:
    """One answer for every prompt: bool masks ``[4,256,256]``."""
    logits = np.where(masks, 1, -1).astype(np.float32)
    return Answer(
        embedding={name: np.ones((1, 4, 8, 8), np.float32) for name in ("coarse", "fine")},
        logits=np.broadcast_to(logits, (PROMPTS_PER_PICTURE, 4, 256, 256)),
        iou=np.tile(np.array(iou, np.float32), (PROMPTS_PER_PICTURE, 1)),
    )


def scaled(right: Answer, *, fine: float) -> Answer:
    """The same answer, but for the second tensor of its embedding."""
    tensor = right.embedding["fine"] * np.float32(fine)
    return replace(right, embedding={**right.embedding, "fine": tensor})


def masks(token: int, rows: slice, columns: slice = slice(None)) -> np.ndarray:
    chosen = np.zeros((4, 256, 256), bool)
    chosen[token, rows, columns] = True
    return chosen


def figures(placed: Placed, right: Answer, found: Answer) -> Parity:
    return compare([placed], [right], [found]).figures


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

    assert figures(placed, right, half).mean_iou == pytest.approx(0.5)
    assert figures(placed, right, other).mean_iou == 1


def test_what_lies_below_the_picture_does_not_count(placed: Placed) -> None:
    right, below = masks(1, slice(0, 60)), masks(1, slice(HEIGHT, None))

    assert figures(placed, answer(right), answer(right | below)).mean_iou == 1
    assert figures(placed, answer(right), answer(below)).mean_iou == 0


@pytest.mark.parametrize("rows", [0, HEIGHT - 1, HEIGHT], ids=lambda rows: f"{rows} rows")
def test_masks_that_are_nearly_empty_or_full_are_not_among_the_figures(
    placed: Placed, rows: int
) -> None:
    right, half = answer(masks(1, slice(0, rows))), answer(masks(1, slice(0, HEIGHT // 2)))

    same = compare([placed], [right], [right])
    other = compare([placed], [right], [half])

    assert (same.empty_or_full, same.figures.prompts) == (PROMPTS_PER_PICTURE, 0)
    assert (same.figures.mean_iou, same.figures.worst_iou) == (0, 0)
    # Only what both sides leave empty, or fill, cannot be told apart.
    assert (other.empty_or_full, other.figures.prompts) == (0, PROMPTS_PER_PICTURE)
    assert other.figures.worst_iou <= 0.51


def spread(logits: float, seed: int = 0) -> Answer:
    """One answer for every prompt, of logits about a value, that vary by 1."""
    plain = answer(masks(1, slice(0, 0)))
    varied = np.random.default_rng(seed).normal(logits, 1, (4, 256, 256)).astype(np.float32)
    return replace(plain, logits=np.broadcast_to(varied, plain.logits.shape))


@pytest.mark.parametrize("logits", [-30, 30], ids=["empty", "full"])
def test_masks_that_say_nothing_are_judged_by_their_logits(placed: Placed, logits: float) -> None:
    right = spread(logits)
    near = replace(right, logits=right.logits + np.float32(0.001))
    same, close, other = (
        compare([placed], [right], [found]) for found in (right, near, spread(logits, seed=1))
    )

    assert same.refusal("fp32", 0.99) == ""
    assert close.logits_error == pytest.approx(0.001, rel=0.1)
    assert close.refusal("fp32", 0.99) == ""
    assert other.logits_error > 1
    for precision in ("fp32", "fp16"):
        assert "25 prompts are nearly empty or full, and" in other.refusal(precision, 0)


def test_logits_that_are_no_numbers_or_all_the_same_are_refused(placed: Placed) -> None:
    right = spread(-30)
    broken = replace(right, logits=np.full_like(right.logits, np.nan))
    flat = replace(right, logits=np.full_like(right.logits, -30))

    for one, other in ((right, broken), (flat, flat)):
        assert "nearly empty or full" in compare([placed], [one], [other]).refusal("fp32", 0)


@pytest.mark.parametrize(("precision", "error"), [("fp32", 0.002), ("fp16", 0.1)])
def test_an_embedding_that_is_wrong_is_refused_whatever_the_masks(
    placed: Placed, precision: str, error: float
) -> None:
    right = answer(masks(1, slice(0, 60)))
    found = scaled(right, fine=1 + error)

    refusal = compare([placed], [right], [found]).refusal(precision, 0)

    assert f"embeddings in {precision} differ" in refusal
    assert compare([placed], [right], [right]).refusal(precision, 1) == ""


def test_an_embedding_of_nothing_cannot_be_judged(placed: Placed) -> None:
    right = answer(masks(1, slice(0, 60)))
    nothing = scaled(right, fine=0)

    assert "not finite" in compare([placed], [nothing], [nothing]).refusal("fp32", 0)


def test_other_choices_are_counted_and_what_is_no_number_is_never_chosen(placed: Placed) -> None:
    right = answer(masks(1, slice(0, 9)))
    other = answer(masks(1, slice(0, 9)), (0, 0.5, 0.9, 0.1))
    broken = answer(masks(1, slice(0, 9)), (0, np.nan, np.nan, 0.1))

    assert figures(placed, right, right).changed_choices == 0
    assert figures(placed, right, other).changed_choices == 1
    assert figures(placed, right, broken).changed_choices == 1


def test_the_largest_distance_of_an_embedding_is_told(placed: Placed) -> None:
    right = answer(masks(1, slice(0, 9)))
    near = scaled(right, fine=1.01)

    found = compare([placed, placed], [right, right], [right, near]).figures

    assert found.embedding_error == pytest.approx(0.01, rel=1e-3)
    assert (found.pictures, found.prompts) == (2, 2 * PROMPTS_PER_PICTURE)
