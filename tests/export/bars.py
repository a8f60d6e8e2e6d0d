"""When an answer counts as the reference's."""

from __future__ import annotations

import numpy as np
import pytest

from tests.export.conftest import View
from tests.export.prompts import Answer, picture_logits


def relative_l2(value: np.ndarray, expected: np.ndarray) -> float:
    difference = value.astype(np.float64) - expected
    return float(np.linalg.norm(difference) / np.linalg.norm(expected))


def assert_same_logits(answer: Answer, expected: Answer) -> None:
    assert np.abs(answer.logits - expected.logits).max() < 1e-4 * expected.logits.std()
    assert np.abs(answer.iou - expected.iou).max() < 1e-5
    assert answer.best.tolist() == expected.best.tolist()


def assert_same_masks(view: View, answer: Answer, expected: Answer) -> None:
    """Compare the best masks at the picture's size.

    They are cut at 0, as they are served, and where 30 % of the picture are foreground: a cut at 0
    compares little in a mask that is nearly empty or nearly full.
    """
    logits = picture_logits(view, answer, expected.best)
    right = picture_logits(view, expected, expected.best)
    middle = np.quantile(right[:, ::4, ::4], 0.7, axis=(1, 2)).reshape(-1, 1, 1)

    assert (right > middle).mean((1, 2)) == pytest.approx(0.3, abs=0.02)
    for cut in (0, middle):
        assert ((logits > cut) == (right > cut)).mean((1, 2)).min() >= 0.9999


def assert_worth_comparing(expected: Answer) -> None:
    """Logits are spread, and prompts have different ones."""
    assert expected.logits.std() > 2
    assert np.ptp(expected.logits, axis=0).std() > 1
