"""Assertions that outputs of an export equal those of the reference."""

from __future__ import annotations

import numpy as np
import pytest

from tests.export.conftest import View
from tests.export.prompts import DecoderOutput, photo_logits


def relative_l2(value: np.ndarray, expected: np.ndarray) -> float:
    difference = value.astype(np.float64) - expected
    return float(np.linalg.norm(difference) / np.linalg.norm(expected))


def assert_same_logits(output: DecoderOutput, expected: DecoderOutput) -> None:
    assert np.abs(output.logits - expected.logits).max() < 1e-4 * expected.logits.std()
    assert np.abs(output.iou - expected.iou).max() < 1e-5
    assert output.best.tolist() == expected.best.tolist()


def assert_same_masks(view: View, output: DecoderOutput, expected: DecoderOutput) -> None:
    """Compare the best masks at the size of the photo.

    Thresholds are 0, as in served masks, and the value at which 30 % of the photo are foreground: a
    threshold of 0 compares little in a mask that is nearly empty or nearly full.
    """
    logits = photo_logits(view, output, expected.best)
    right = photo_logits(view, expected, expected.best)
    quantile = np.quantile(right[:, ::4, ::4], 0.7, axis=(1, 2)).reshape(-1, 1, 1)

    assert (right > quantile).mean((1, 2)) == pytest.approx(0.3, abs=0.02)
    for threshold in (0, quantile):
        assert ((logits > threshold) == (right > threshold)).mean((1, 2)).min() >= 0.9999


def assert_informative(expected: DecoderOutput) -> None:
    """Check that logits vary, and differ between prompts, so that a comparison can fail."""
    assert expected.logits.std() > 2
    assert np.ptp(expected.logits, axis=0).std() > 1
