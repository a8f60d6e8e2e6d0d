"""Exported decoders compute what the original networks do, with less arithmetic.

The exported graph is compared with one that is traced from the modules of the original library, on
the same float16 embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from samserve.export.families import sam1, sam2, sam_hq
from samserve.export.onnx_export import export_decoder
from samserve.export.onnx_file import serialized
from samserve.export.sources.source import Checkpoint

from tests.export.conftest import session
from tests.families.toys import SAM2_SIZE
from tests.oracle import photos, plain_decoder, sam2_local
from tests.oracle import sam2 as sam2_models
from tests.oracle import sam_hq as hq_models
from tests.oracle.onnx_sam import without_threshold
from tests.oracle.sam import SMALL, build_sam

_PLAIN: dict[str, Callable[[Any], onnx.ModelProto]] = {
    "sam1": plain_decoder.plain_decoder,
    "sam_hq": plain_decoder.plain_hq_decoder,
    "sam2": plain_decoder.plain_sam2_decoder,
}
"""Decoders of the modules of the original libraries."""

FAMILIES = tuple(_PLAIN)

# Images, prompts, points, and prompts with a mask.
SHAPES = [
    (1, 1, 2, 0),
    (2, 1, 2, 0),
    (1, 3, 1, 0),
    (1, 5, 4, 0),
    (1, 1, 24, 0),
    (1, 3, 2, 3),
    (2, 3, 2, 3),
    (1, 3, 2, 1),
    (2, 2, 0, 2),
]

Feeds = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Decoders:
    """The decoder of the original library and the exported one, of the same weights."""

    original: onnxruntime.InferenceSession
    exported: onnxruntime.InferenceSession

    def feeds(self, images: int, prompts: int, points: int, masks: int) -> Feeds:
        """Return inputs of both, with random values in the range of real ones."""
        random = np.random.default_rng([images, prompts, points, masks])
        shapes = {each.name: each.shape[1:] for each in self.original.get_inputs()}
        side = shapes["mask_input"][-1]
        labels = np.array([1, 0, 2, 3, -1], np.float32)[np.arange(points) % 5]
        embedding = [name for name in shapes if not name.startswith(("point_", "mask_"))]
        return {
            **{
                name: random.normal(size=(images, *shapes[name])).astype(np.float16)
                for name in embedding
            },
            "point_coords": random.uniform(0, 4 * side, (images, prompts, points, 2)).astype("f4"),
            "point_labels": np.broadcast_to(labels, (images, prompts, points)).copy(),
            "mask_input": 8 * random.normal(size=(images, masks, side, side)).astype("f4"),
        }

    def run(self, feeds: Feeds, thresholds: np.ndarray | None = None) -> list[np.ndarray]:
        """Return the outputs of the exported decoder."""
        every = without_threshold(self.exported, len(feeds["point_coords"]))
        given = every if thresholds is None else {"iou_threshold": thresholds}
        return self.exported.run(None, {**feeds, **given})


@cache
def decoders(family: str) -> Decoders:
    model, network = _models(family)
    original = _PLAIN[family](model)
    return Decoders(session(serialized(original)), session(serialized(export_decoder(network))))


def _models(family: str) -> tuple[Any, Any]:
    """Return a model of the original library, and the networks with its weights."""
    if family == "sam1":
        sam = build_sam(SMALL, photos.calibration())
        return sam, sam1.load(Checkpoint(dict(sam.state_dict())))
    if family == "sam_hq":
        hq = hq_models.build(hq_models.TOY, photos.calibration())
        return hq, sam_hq.load(Checkpoint(dict(hq.state_dict())))
    model = sam2_models.model(SAM2_SIZE)
    # Otherwise the masks amplify rounding.
    sam2_local.localise(model, photos.calibration())
    return model, sam2.load(Checkpoint(dict(model.state_dict()), model.config.to_dict()))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_are_those_of_the_original(family: str, shape: tuple[int, ...]) -> None:
    pair = decoders(family)
    feeds = pair.feeds(*shape)

    expected = pair.original.run(None, feeds)
    outputs = pair.run(feeds)

    assert_same_masks(outputs[0], expected[0])
    for output, wanted in zip(outputs[1:], expected[1:], strict=True):
        np.testing.assert_allclose(output, wanted, rtol=1e-4, atol=1e-5)


def assert_same_masks(logits: np.ndarray, expected: np.ndarray) -> None:
    """Compare logits: signs are equal, except for a few pixels whose magnitude is negligible."""
    assert logits.shape == expected.shape
    mean = np.abs(expected).mean()
    differing = (logits > 0) != (expected > 0)
    # Small models have few pixels.
    assert differing.sum() <= max(1, 1e-5 * differing.size)
    assert np.abs(expected[differing]).max(initial=0) <= 1e-4 * mean
    assert np.abs(logits - expected).max() <= 1e-3 * mean


def test_networks_are_equal_in_float64(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """The algebra is exact: what differs in float32 is rounding.

    Of SAM 2 only, since `segment-anything` encodes positions in float32.
    """
    model = deepcopy(sam2_models.model(SAM2_SIZE))
    network = sam2.load(Checkpoint(dict(model.state_dict()), model.config.to_dict()))
    feeds = decoders("sam2").feeds(2, 3, 2, 1)
    network.model.double()
    original = plain_decoder.Sam2Decoder(model.double()).double()
    exported = network.decoder_graph().double()
    # The networks compute in float32, whatever their weights are.
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    request.addfinalizer(partial(torch.set_default_dtype, torch.float32))
    torch.set_default_dtype(torch.float64)
    tensors = [torch.from_numpy(each) for each in feeds.values()]
    tensors[-3:] = [each.double() for each in tensors[-3:]]

    with torch.no_grad():
        expected = original(*tensors)
        outputs = exported(*tensors, torch.full((2, 4), -torch.inf))

    for output, wanted in zip(outputs, expected, strict=True):
        assert output.dtype == torch.float64
        torch.testing.assert_close(output, wanted, rtol=1e-9, atol=1e-7)


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_below_the_threshold_have_no_masks_and_others_are_unchanged(family: str) -> None:
    pair = decoders(family)
    feeds = pair.feeds(2, 5, 2, 0)
    logits, iou, *scores = pair.run(feeds)
    best = np.sort(iou.max(2), axis=1)
    # Between two prompts: another number of them passes for each image.
    limits = np.array([best[0, 0:2].mean(), best[1, 2:4].mean()], np.float32)
    thresholds = np.broadcast_to(limits[:, None], (2, iou.shape[2])).copy()

    skipped, same_iou, *same_scores = pair.run(feeds, thresholds)

    passes = iou.max(2) >= limits[:, None]
    assert passes.sum(1).tolist() == [4, 2]
    assert not skipped[~passes].any()
    np.testing.assert_allclose(skipped[passes], logits[passes], rtol=1e-4, atol=1e-3)
    for output, wanted in zip([same_iou, *same_scores], [iou, *scores], strict=True):
        np.testing.assert_array_equal(output, wanted)


@pytest.mark.parametrize("family", FAMILIES)
def test_thresholds_count_for_their_own_mask_token(family: str) -> None:
    pair = decoders(family)
    feeds = pair.feeds(1, 4, 2, 0)
    logits, iou, *_ = pair.run(feeds)
    thresholds = np.full((1, iou.shape[2]), np.inf, np.float32)
    thresholds[0, 2] = np.median(iou[0, :, 2])

    skipped = pair.run(feeds, thresholds)[0]

    passes = iou[0, :, 2] >= thresholds[0, 2]
    assert 0 < passes.sum() < 4
    assert skipped[0].any((1, 2, 3)).tolist() == passes.tolist()
    assert logits[0].any((1, 2, 3)).all()


@pytest.mark.parametrize("prompts", [1, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_prompt_may_pass(family: str, prompts: int) -> None:
    pair = decoders(family)
    feeds = pair.feeds(2, prompts, 2, 0)
    tokens = pair.run(feeds)[1].shape[2]

    logits, *_ = pair.run(feeds, np.full((2, tokens), np.inf, np.float32))

    assert logits.shape[:3] == (2, prompts, tokens)
    assert not logits.any()
