"""The original predictor and generator, run on the original Sam and on what was exported from it.

This holds the adapter of ``tests/oracle`` to account: other tests use it as the reference for
models that are no Segment Anything.
"""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from tests.export.conftest import TINY_PAIR, Pair
from tests.oracle import pictures
from tests.oracle.generator import auto_mask, predict, reference_auto_mask, reference_predict
from tests.oracle.sam import FOREGROUND, SMALL, keep_embeddings_as_half

pytestmark = pytest.mark.parametrize(
    "pair",
    # Not so large masks that one of them suppresses all others.
    [pytest.param((SMALL, FOREGROUND), id="small"), TINY_PAIR],
    indirect=True,
    scope="session",
)

PROMPTS: dict[str, dict[str, Any]] = {
    "click": {"points": np.array([[200.0, 100.0]]), "labels": np.array([1])},
    "click and box": {
        "points": np.array([[200.0, 100.0]]),
        "labels": np.array([0]),
        "box": np.array([60.0, 40.0, 400.0, 300.0]),
        "multimask_output": False,
    },
    "mask": {},
}


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_predictor_answers_alike_on_both(pair: Pair, prompt: dict[str, Any]) -> None:
    picture = pictures.coffee_427x640()
    if not prompt:
        side = 4 * pair.grid
        ramp = np.linspace(-20, 20, side, dtype=np.float32)
        prompt = {"mask_input": np.tile(ramp, (1, side, 1))}
    original = keep_embeddings_as_half(copy.deepcopy(pair.original))
    expected = predict(original, picture, **prompt)

    answer = reference_predict(picture, pair.encoder_path, pair.decoder_path, **prompt)

    assert answer.masks.shape == expected.masks.shape
    assert (answer.masks == expected.masks).mean() >= 0.9999
    np.testing.assert_allclose(answer.predicted_iou, expected.predicted_iou, atol=1e-4)
    spread = expected.low_res_logits.std()
    np.testing.assert_allclose(answer.low_res_logits, expected.low_res_logits, atol=1e-2 * spread)


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
def test_generator_finds_the_same_on_both(pair: Pair, settings: dict[str, Any]) -> None:
    picture = pictures.coffee_427x640()
    original = keep_embeddings_as_half(copy.deepcopy(pair.original))
    settings = {"stability_score_thresh": 0.8, **settings}
    expected, expected_counts = auto_mask(original, picture, **settings)

    records, counts = reference_auto_mask(picture, pair.encoder_path, pair.decoder_path, **settings)

    assert counts == expected_counts
    assert [record["bbox"] for record in records] == [record["bbox"] for record in expected]
    for record, right in zip(records, expected, strict=True):
        assert (record["segmentation"] == right["segmentation"]).mean() >= 0.9999
    left = asdict(counts)
    assert len(records) > 1
    assert left["candidates"] > left["after_pred_iou"] > left["after_stability"]
    assert left["after_crop_edge"] > left["after_box_nms"]
    if "crop_n_layers" in settings:
        assert left["after_stability"] > left["after_crop_edge"]
