"""The parity check compares the best masks, within the image."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from samserve.engines.fake import MODEL
from samserve.export.parity import (
    PROMPTS_PER_IMAGE,
    ModelOutput,
    ParityCase,
    compare,
    parity_case,
)
from samserve.models import families
from samserve.types import Parity

HEIGHT, WIDTH = 120, 256


@pytest.fixture
def case() -> ParityCase:
    """An image that fills the upper part of the frame: 480 of 1024 rows."""
    return parity_case(np.zeros((480, 1024, 3), np.uint8), families.SAM1, MODEL)


def output(
    masks: np.ndarray, iou: tuple[float, float, float, float] = (0, 0.9, 0.5, 0.1)
) -> ModelOutput:
    """Return the same output for every prompt: bool masks ``[4,256,256]``."""
    logits = np.where(masks, 1, -1).astype(np.float32)
    return ModelOutput(
        embedding={name: np.ones((1, 4, 8, 8), np.float32) for name in ("coarse", "fine")},
        logits=np.broadcast_to(logits, (PROMPTS_PER_IMAGE, 4, 256, 256)),
        iou=np.tile(np.array(iou, np.float32), (PROMPTS_PER_IMAGE, 1)),
    )


def scaled(right: ModelOutput, *, fine: float) -> ModelOutput:
    """Return the same output with a scaled second tensor of its embedding."""
    tensor = right.embedding["fine"] * np.float32(fine)
    return replace(right, embedding={**right.embedding, "fine": tensor})


def masks(token: int, rows: slice, columns: slice = slice(None)) -> np.ndarray:
    chosen = np.zeros((4, 256, 256), bool)
    chosen[token, rows, columns] = True
    return chosen


def figures(case: ParityCase, right: ModelOutput, found: ModelOutput) -> Parity:
    return compare([case], [right], [found]).figures


def test_prompts_are_inside_the_image(case: ParityCase) -> None:
    corners = np.concatenate([coords[labels > 0] for coords, labels in case.prompts])

    assert sum(labels.shape[1] for _, labels in case.prompts) == PROMPTS_PER_IMAGE
    assert {coords.shape[2:] for coords, _ in case.prompts} == {(2, 2)}
    assert [sorted(set(labels.ravel().tolist())) for _, labels in case.prompts] == [[-1, 1], [2, 3]]
    assert corners.min() >= 0
    assert corners[:, 0].max() <= 1024
    assert 440 < corners[:, 1].max() <= 480


def test_the_best_mask_of_the_reference_is_compared(case: ParityCase) -> None:
    right = output(masks(1, slice(0, 100)))
    half = output(masks(1, slice(0, 50)))
    other = output(masks(2, slice(0, 100)) | masks(1, slice(0, 100)))

    assert figures(case, right, half).mean_iou == pytest.approx(0.5)
    assert figures(case, right, other).mean_iou == 1


def test_padding_is_not_compared(case: ParityCase) -> None:
    right, below = masks(1, slice(0, 60)), masks(1, slice(HEIGHT, None))

    assert figures(case, output(right), output(right | below)).mean_iou == 1
    assert figures(case, output(right), output(below)).mean_iou == 0


@pytest.mark.parametrize("rows", [0, HEIGHT - 1, HEIGHT], ids=lambda rows: f"{rows} rows")
def test_nearly_empty_or_full_masks_are_excluded_from_the_figures(
    case: ParityCase, rows: int
) -> None:
    right, half = output(masks(1, slice(0, rows))), output(masks(1, slice(0, HEIGHT // 2)))

    same = compare([case], [right], [right])
    other = compare([case], [right], [half])

    assert (same.empty_or_full, same.figures.prompts) == (PROMPTS_PER_IMAGE, 0)
    assert (same.figures.mean_iou, same.figures.worst_iou) == (0, 0)
    # Only masks that are empty, or full, on both sides are excluded.
    assert (other.empty_or_full, other.figures.prompts) == (0, PROMPTS_PER_IMAGE)
    assert other.figures.worst_iou <= 0.51


def spread(logits: float, seed: int = 0) -> ModelOutput:
    """Return the same output for every prompt: logits with this mean and a deviation of 1."""
    plain = output(masks(1, slice(0, 0)))
    varied = np.random.default_rng(seed).normal(logits, 1, (4, 256, 256)).astype(np.float32)
    return replace(plain, logits=np.broadcast_to(varied, plain.logits.shape))


@pytest.mark.parametrize("logits", [-30, 30], ids=["empty", "full"])
def test_empty_or_full_masks_are_compared_by_their_logits(case: ParityCase, logits: float) -> None:
    right = spread(logits)
    near = replace(right, logits=right.logits + np.float32(0.001))
    same, close, other = (
        compare([case], [right], [found]) for found in (right, near, spread(logits, seed=1))
    )

    assert same.failure("fp32", 0.99) == ""
    assert close.logits_error == pytest.approx(0.001, rel=0.1)
    assert close.failure("fp32", 0.99) == ""
    assert other.logits_error > 1
    for precision in ("fp32", "fp16"):
        assert "25 prompts are nearly empty or full, and" in other.failure(precision, 0)


def test_nan_or_constant_logits_fail(case: ParityCase) -> None:
    right = spread(-30)
    broken = replace(right, logits=np.full_like(right.logits, np.nan))
    flat = replace(right, logits=np.full_like(right.logits, -30))

    for one, other in ((right, broken), (flat, flat)):
        assert "nearly empty or full" in compare([case], [one], [other]).failure("fp32", 0)


@pytest.mark.parametrize(("precision", "error"), [("fp32", 0.002), ("fp16", 0.1)])
def test_a_wrong_embedding_fails_for_any_masks(
    case: ParityCase, precision: str, error: float
) -> None:
    right = output(masks(1, slice(0, 60)))
    found = scaled(right, fine=1 + error)

    failure = compare([case], [right], [found]).failure(precision, 0)

    assert f"embeddings in {precision} differ" in failure
    assert compare([case], [right], [right]).failure(precision, 1) == ""


def test_a_zero_embedding_fails(case: ParityCase) -> None:
    right = output(masks(1, slice(0, 60)))
    nothing = scaled(right, fine=0)

    assert "not finite" in compare([case], [nothing], [nothing]).failure("fp32", 0)


def test_other_best_masks_are_counted_and_nan_is_never_the_best(case: ParityCase) -> None:
    right = output(masks(1, slice(0, 9)))
    other = output(masks(1, slice(0, 9)), (0, 0.5, 0.9, 0.1))
    broken = output(masks(1, slice(0, 9)), (0, np.nan, np.nan, 0.1))

    assert figures(case, right, right).best_mask_mismatch_ratio == 0
    assert figures(case, right, other).best_mask_mismatch_ratio == 1
    assert figures(case, right, broken).best_mask_mismatch_ratio == 1


def test_the_largest_embedding_distance_is_reported(case: ParityCase) -> None:
    right = output(masks(1, slice(0, 9)))
    near = scaled(right, fine=1.01)

    found = compare([case, case], [right, right], [right, near]).figures

    assert found.embedding_error == pytest.approx(0.01, rel=1e-3)
    assert (found.images, found.prompts) == (2, 2 * PROMPTS_PER_IMAGE)
