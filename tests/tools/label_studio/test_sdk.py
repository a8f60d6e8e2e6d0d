"""Run lengths and predictions, read by Label Studio's SDK in its own environment."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samserve.bridge.tools.label_studio.results import of_mask
from samserve.client import Mask, Polygon, Polygons
from samserve.core import run_lengths
from samserve.datasets.label_studio import rle
from samserve.datasets.label_studio.label_config import LabelConfig
from samserve.datasets.label_studio.regions import Place, prediction
from samserve.types import Size

from harness.label_studio import PROGRAM
from tests.bridge.label_studio import decoded
from tests.tools.label_studio.projects import CONFIG

pytestmark = pytest.mark.long

SCRIPT = """
import json, sys
import numpy as np
from label_studio_sdk.converter import brush
from label_studio_sdk.label_interface import LabelInterface
given = json.load(sys.stdin)
found = {"decoded": [], "encoded": [], "errors": []}
for each in given["masks"]:
    found["decoded"].append(brush.decode_rle(each["rle"]).tolist())
    found["encoded"].append(brush.mask2rle(np.array(each["mask"], np.uint8) * 255))
for each in given["predictions"]:
    interface = LabelInterface(given["label_config"])
    found["errors"].append(interface.validate_prediction(each, return_errors=True))
json.dump(found, sys.stdout)
"""


def sdk(given: dict[str, Any]) -> dict[str, Any]:
    """Return what the SDK reads from masks and predictions, and what it writes."""
    python = PROGRAM.with_name("python")
    output = subprocess.run(
        [str(python), "-c", SCRIPT],
        input=json.dumps(given),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=300,
        cwd=Path(__file__).parent,
    ).stdout
    found: dict[str, Any] = json.loads(output)
    return found


def masks() -> list[np.ndarray]:
    random = np.random.default_rng(7)
    sizes = [(1, 1), (1, 9), (9, 1), (7, 5), (40, 70), (3, 20000)]
    found = [random.random(size) < density for size in sizes for density in (0.0, 0.1, 0.6, 1.0)]
    disc = np.hypot(*np.mgrid[-60:61, -60:61]) < 40
    return [*found, disc, ~disc]


def test_sdk_reads_our_run_lengths_and_we_read_its() -> None:
    given = masks()
    encoded = [rle.encode(run_lengths.encode(mask)) for mask in given]
    pairs = [
        {"rle": code, "mask": mask.astype(int).tolist()}
        for code, mask in zip(encoded, given, strict=True)
    ]

    found = sdk({"masks": pairs, "predictions": [], "label_config": CONFIG})

    for mask, read, written in zip(given, found["decoded"], found["encoded"], strict=True):
        expected = np.repeat(mask.ravel() * 255, 4)
        np.testing.assert_array_equal(np.array(read), expected)
        # The SDK fills the last byte, or adds one.
        alpha = decoded(written, *mask.shape)[:, :, 3]
        np.testing.assert_array_equal(alpha > 0, mask)


def test_sdk_accepts_our_predictions() -> None:
    config = LabelConfig.parse(CONFIG)
    square = np.zeros((20, 30), bool)
    square[5:15, 5:25] = True
    corners = np.array([(5, 5), (25, 5), (25, 15), (5, 15)], np.float32)
    polygons = Polygons((20, 30), (Polygon(corners),), 1.0)
    counts = run_lengths.encode(square).counts
    mask = Mask((20, 30), counts, 0, 1.01, 0.99, 200, (5, 5, 19, 9), polygons=polygons)
    made = [
        prediction(of_mask(mask, Size(20, 30), Place(control, label), "id"), "model 1")
        for control, label in zip(config.outputs("image"), ("Coin", "Outline"), strict=True)
    ]

    found = sdk({"masks": [], "predictions": made, "label_config": CONFIG})

    assert found["errors"] == [[], []]
