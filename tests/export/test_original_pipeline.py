"""The original predictor and generator, on the original Sam and on its export.

This verifies the adapter of ``tests/oracle``, which other tests use as the reference for models
other than Segment Anything.
"""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from tests.export.conftest import TINY_PAIR, Pair
from tests.oracle import photos
from tests.oracle.generator import auto_mask, predict, reference_auto_mask, reference_predict
from tests.oracle.sam import FOREGROUND, SMALL, round_embeddings_to_half

pytestmark = pytest.mark.parametrize(
    "pair",
    # Masks small enough that one of them does not suppress all others.
    [pytest.param((SMALL, FOREGROUND), id="small"), TINY_PAIR],
    indirect=True,
    scope="session",
)

PROMPTS: dict[str, dict[str, Any]] = {
    "point": {"points": np.array([[200.0, 100.0]]), "labels": np.array([1])},
    "point and box": {
        "points": np.array([[200.0, 100.0]]),
        "labels": np.array([0]),
        "box": np.array([60.0, 40.0, 400.0, 300.0]),
        "multimask_output": False,
    },
    "mask": {},
}


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_the_predictor_returns_the_same_masks_on_both(pair: Pair, prompt: dict[str, Any]) -> None:
    photo = photos.coffee_427x640()
    if not prompt:
        side = 4 * pair.grid
        ramp = np.linspace(-20, 20, side, dtype=np.float32)
        prompt = {"mask_input": np.tile(ramp, (1, side, 1))}
    original = round_embeddings_to_half(copy.deepcopy(pair.original))
    expected = predict(original, photo, **prompt)

    found = reference_predict(photo, pair.encoder_path, pair.decoder_path, **prompt)

    assert found.masks.shape == expected.masks.shape
    assert (found.masks == expected.masks).mean() >= 0.9999
    np.testing.assert_allclose(found.predicted_iou, expected.predicted_iou, atol=1e-4)
    spread = expected.low_res_logits.std()
    np.testing.assert_allclose(found.low_res_logits, expected.low_res_logits, atol=1e-2 * spread)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"points_per_side": 4}, id="whole"),
        pytest.param(
            {"points_per_side": 3, "crop_n_layers": 1, "min_mask_region_area": 100},
            id="crops",
        ),
    ],
)
def test_the_generator_returns_the_same_masks_on_both(pair: Pair, settings: dict[str, Any]) -> None:
    photo = photos.coffee_427x640()
    original = round_embeddings_to_half(copy.deepcopy(pair.original))
    settings = {"stability_score_thresh": 0.8, **settings}
    expected, expected_counts = auto_mask(original, photo, **settings)

    records, counts = reference_auto_mask(photo, pair.encoder_path, pair.decoder_path, **settings)

    assert counts == expected_counts
    assert [record["bbox"] for record in records] == [record["bbox"] for record in expected]
    for record, right in zip(records, expected, strict=True):
        assert (record["segmentation"] == right["segmentation"]).mean() >= 0.9999
    remaining = asdict(counts)
    assert len(records) > 1
    assert remaining["candidates"] > remaining["after_pred_iou"] > remaining["after_stability"]
    assert remaining["after_crop_edge"] > remaining["after_box_nms"]
    if "crop_n_layers" in settings:
        assert remaining["after_stability"] > remaining["after_crop_edge"]
