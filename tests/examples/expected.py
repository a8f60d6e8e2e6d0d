"""What both clients must return, from the Python client."""

from __future__ import annotations

import base64
import re
from typing import Any

import numpy as np
from samserve.app import Running
from samserve.client import Client, Mask, Prompt

from tests import photos
from tests.metric_values import total

PHOTO = photos.files()[2]
PHOTO_TEXT = base64.b64encode(PHOTO).decode()
LARGE_PHOTO_TEXT = base64.b64encode(photos.files()[1]).decode()
"""More than the HTTP listener buffers."""
BOX = (90.0, 30.0, 330.0, 280.0)
PROMPTS = [
    Prompt(points=[(200, 120)]),
    Prompt(points=[(210, 140), (20, 20, 0)]),
    Prompt(box=BOX),
]
PROMPT_ARGUMENTS = [
    {"points": [{"x": 200, "y": 120}]},
    {"points": [{"x": 210, "y": 140}, {"x": 20, "y": 20, "foreground": False}]},
    {"box": dict(zip(("xMin", "yMin", "xMax", "yMax"), BOX, strict=True))},
]
# Of batches, the server chooses the size, and the last bit of a score depends on it.
AUTOMASK = {
    "points_per_side": 8,
    "points_per_batch": 1,
    "pred_iou_thresh": 0.1,
    "stability_score_thresh": 0.7,
}
AUTOMASK_PARAMETERS = {
    re.sub("_([a-z])", lambda match: match[1].upper(), name): value
    for name, value in AUTOMASK.items()
}
LONG_AUTOMASK = {"pointsPerSide": 64}


async def check_predictions(result: dict[str, Any], service: Running) -> None:
    """Compare the scenario `predict` with the Python client."""
    async with Client(service.address) as client:
        embedding = await client.embed(PHOTO)
        prediction = await client.predict(embedding, PROMPTS, multimask="all", low_res_logits=True)
        best = prediction.results[0][result["best"]]
        again = Prompt(points=[(200, 120)], mask=best.low_res_logits)
        refined = await client.predict(embedding, [again], multimask="single")

    height, width = embedding.image_size
    assert result["image"]["id"] == embedding.id
    assert (result["image"]["height"], result["image"]["width"]) == (height, width)
    assert [len(masks) for masks in result["masks"]] == [3, 3, 3]
    for masks, expected in zip(result["masks"], prediction.results, strict=True):
        for mask, other in zip(masks, expected, strict=True):
            check_mask(mask, other)
    check_mask(result["refined"], refined.results[0][0])
    assert result["refined"]["pixels"] != result["masks"][0][result["best"]]["pixels"]


async def check_automask(result: dict[str, Any], service: Running) -> None:
    """Compare the scenario `automask` with the Python client."""
    async with Client(service.address) as client:
        found = await client.automask_all(PHOTO, **AUTOMASK)

    assert len(result["masks"]) > 3
    assert result["summaries"] == [len(found.records)] == [found.summary.mask_count]
    for mask, record in zip(result["masks"], found.records, strict=True):
        check_mask(mask, record.mask)
    done = [count for count, _ in result["progress"]]
    assert done == sorted(done)
    assert result["progress"][-1] == [64, 64]


def check_mask(mask: dict[str, Any], other: Mask) -> None:
    """Compare a mask of a scenario with one of the Python client: every pixel, every number."""
    assert (mask["height"], mask["width"]) == other.size
    pixels = np.frombuffer(base64.b64decode(mask["pixels"]), np.uint8).reshape(other.size)
    np.testing.assert_array_equal(pixels, other.array)
    logits = np.frombuffer(base64.b64decode(mask["logits"]), "<f4")
    assert logits.size == (0 if other.low_res_logits is None else other.low_res_logits.size)
    if other.low_res_logits is not None:
        np.testing.assert_array_equal(logits, other.low_res_logits.ravel())
    assert mask["area"] == other.area == pixels.sum()
    assert mask["tokenIndex"] == other.token_index
    assert tuple(mask["bbox"]) == other.bbox
    assert (mask["predictedIou"], mask["stabilityScore"]) == (
        other.predicted_iou,
        other.stability_score,
    )


def in_flight(service: Running, method: str) -> float:
    return total(service.metrics.registry, "samserve_inflight_requests", grpc_method=method)


def handled(service: Running, method: str, **labels: str) -> float:
    """Count the calls of a method that have ended, by their code."""
    registry = service.metrics.registry
    return total(registry, "grpc_server_handled_total", grpc_method=method, **labels)
