"""The JavaScript that both clients share: run lengths are decoded as pycocotools decodes them."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco

from tests.examples.programs import FOLDER, run_node, run_npm

pytestmark = pytest.mark.slow


def random_masks() -> list[np.ndarray]:
    """Return masks of random sizes and densities: noise, blobs, empty and full ones."""
    rng = np.random.default_rng(7)
    masks = []
    for _ in range(300):
        height, width = rng.integers(1, 80, 2)
        density = rng.choice([0.0, 0.01, 0.5, 0.99, 1.0])
        cell = rng.integers(1, 20)
        coarse = rng.random((height // cell + 1, width // cell + 1)) < density
        masks.append(np.kron(coarse, np.ones((cell, cell), bool))[:height, :width])
    # Runs that need five and more characters.
    large = np.zeros((3000, 2000), bool)
    large[10:, 700:1900] = True
    large[:, 1999] = True
    return [*masks, large, large.T, ~large]


def decoded(cases: list[tuple[int, int, str]]) -> list[str | dict[str, str]]:
    result: list[str | dict[str, str]] = json.loads(
        run_node(FOLDER / "decode_rles.mjs", text=json.dumps(cases))
    )
    return result


def test_every_mask_is_decoded_like_pycocotools() -> None:
    masks = random_masks()
    counts = [
        coco.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"].decode() for mask in masks
    ]
    answers = decoded([(*mask.shape, text) for mask, text in zip(masks, counts, strict=True)])

    assert len(answers) == len(masks)
    for mask, answer in zip(masks, answers, strict=True):
        assert isinstance(answer, str)
        pixels = np.frombuffer(base64.b64decode(answer), np.uint8).reshape(mask.shape)
        np.testing.assert_array_equal(pixels, mask)


@pytest.mark.parametrize(
    "counts",
    [
        pytest.param("", id="empty"),
        pytest.param("3", id="too few pixels"),
        pytest.param("\x0f", id="invalid character"),
        pytest.param("P", id="unfinished number"),
        pytest.param("`1", id="too many pixels"),
        pytest.param("O", id="negative run"),
    ],
)
def test_run_lengths_that_do_not_fit_are_refused(counts: str) -> None:
    assert decoded([(2, 2, counts)]) == [{"error": "RangeError"}]


def test_types_of_the_clients_hold(web_pages: Path) -> None:
    # The generated code is there once the pages are built.
    run_npm("run", "--silent", "check")
