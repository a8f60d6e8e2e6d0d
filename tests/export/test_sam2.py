"""SAM 2 against the class of transformers, at toy size."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from onnx import TensorProto
from samserve.core.upsampling import Upsampling
from samserve.export.checkpoint import open_network
from samserve.export.families.sam2_graphs import EncoderGraph
from samserve.export.half import halve
from samserve.export.onnx_export import UNCAST
from samserve.export.parity import BOUNDS
from samserve.models import families
from samserve.models.families.base import Family, ImageTransform
from samserve.models.families.sam2 import Sam2
from samserve.types import Array, FloatArray, Label, Size
from torch import Tensor
from torch.nn import functional

from tests.export.equality import relative_l2
from tests.export.sam2_pair import (
    TENSORS,
    Arrays,
    Sam2Pair,
    assert_same_embeddings,
    assert_same_outcomes,
    decode_exported,
    decode_reference,
    prompts_of,
    refined,
)
from tests.oracle import sam2

TOY = replace(sam2.TOY, delta=0.01)
"""A rule by which some masks of the seed are stable and some are not."""
SEED = 14

KINDS = [
    *("points1", "points2", "points4", "box", "points1+box", "points4+box"),
    *("mask", "points2+mask", "box+mask"),
]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Sam2Pair:
    folder = tmp_path_factory.mktemp("sam2")
    model = sam2.model(TOY, seed=SEED)
    network, _ = open_network(sam2.save(model, folder))
    return Sam2Pair(model, network, folder)


def test_embeddings_are_those_of_the_library(pair: Sam2Pair) -> None:
    expected = pair.reference_embedding(pair.placed(families.SAM2)["image"])

    assert_same_embeddings(pair, pair.embed(families.SAM2), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("images", "count"), [(1, 1), (2, 3), (1, 5)])
def test_masks_are_those_of_the_library(pair: Sam2Pair, kind: str, images: int, count: int) -> None:
    prompts = prompts_of(kind, pair, images=images, count=count)

    assert_same_outcomes(decode_exported(pair, prompts), decode_reference(pair, prompts))


@pytest.mark.parametrize("kind", ["points1", "points1+box"])
def test_refinement_gives_the_masks_of_the_library(pair: Sam2Pair, kind: str) -> None:
    prompts = prompts_of(kind, pair, images=2, count=3)
    first, expected = decode_exported(pair, prompts), decode_reference(pair, prompts)

    second = decode_exported(pair, refined(prompts, first))

    assert_same_outcomes(second, decode_reference(pair, refined(prompts, expected)))
    assert any(
        (one.masks != other.masks).any()
        for row, others in zip(first, second, strict=True)
        for one, other in zip(row, others, strict=True)
    )


def test_masks_are_chosen_by_their_stability(pair: Sam2Pair) -> None:
    found = decode_exported(pair, prompts_of("points1", pair, images=2, count=5))

    tokens = {outcome.auto for row in found for outcome in row}
    assert 0 in tokens
    assert len(tokens) >= 2


def in_torch(pair: Sam2Pair) -> Callable[[Arrays], list[np.ndarray]]:
    """Return the decoder's graph before its export, for alterations."""
    graph = pair.network.decoder_graph().eval()
    return lambda feeds: [each.numpy() for each in graph(*map(torch.from_numpy, feeds.values()))]


class PaddedFamily(Sam2):
    """SAM 2 with the frame of SAM 1: images keep their aspect ratio."""

    def transform(self, image: Size, sides: object) -> ImageTransform:
        return families.SAM1.transform(image, sides)

    def place(self, pixels: np.ndarray, transform: ImageTransform) -> np.ndarray:
        return families.SAM1.place(pixels, transform)


class TwoStepFamily(Sam2):
    """SAM 2 with the upsampling of SAM 1, over the model frame."""

    def upsampling(self, transform: ImageTransform) -> Upsampling:
        return families.SAM1.upsampling(transform)


class UnpaddedBoxFamily(Sam2):
    """SAM 2 without the padding point beside a box, as in SAM 1."""

    def prompt(
        self, points: Array, labels: Sequence[Label], box: Array | None
    ) -> tuple[FloatArray, FloatArray]:
        coords, values = super().prompt(points, labels, box)
        return coords[:-1], values[:-1]


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        (PaddedFamily(), "points1"),
        (PaddedFamily(), "box"),
        (TwoStepFamily(), "points1"),
        (UnpaddedBoxFamily(), "box"),
        (UnpaddedBoxFamily(), "points2+box"),
    ],
)
def test_a_rule_of_sam_1_is_noticed(pair: Sam2Pair, family: Family, kind: str) -> None:
    prompts = prompts_of(kind, pair, images=2, count=3)
    expected = decode_reference(pair, prompts)
    assert_same_outcomes(decode_exported(pair, prompts), expected)

    with pytest.raises(AssertionError):
        assert_same_outcomes(decode_exported(pair, prompts, family=family), expected)


def test_padding_instead_of_stretching_changes_the_embedding(pair: Sam2Pair) -> None:
    expected = pair.reference_embedding(pair.placed(families.SAM2)["image"])

    with pytest.raises(AssertionError):
        assert_same_embeddings(pair, pair.embed(PaddedFamily()), expected)


@pytest.mark.parametrize("thresh", [0.95, 0.995])
def test_another_stability_threshold_is_noticed(pair: Sam2Pair, thresh: float) -> None:
    prompts = prompts_of("points1", pair, images=2, count=5)
    rule = replace(pair.dynamic, thresh=thresh)

    with pytest.raises(AssertionError):
        assert_same_outcomes(
            decode_exported(pair, prompts, dynamic=rule), decode_reference(pair, prompts)
        )


def test_a_decoder_without_the_sigmoid_is_noticed(
    pair: Sam2Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = prompts_of("points1", pair, images=1, count=3)
    expected = decode_reference(pair, prompts)
    assert_same_outcomes(decode_exported(pair, prompts, decoder=in_torch(pair)), expected)
    head = pair.network.model.mask_decoder.iou_prediction_head  # type: ignore[attr-defined]
    monkeypatch.setattr(head, "sigmoid_output", False)

    found = decode_exported(pair, prompts, decoder=in_torch(pair))

    with pytest.raises(AssertionError):
        assert_same_outcomes(found, expected)


def encoded_in_torch(pair: Sam2Pair, graph: torch.nn.Module) -> Arrays:
    """Embed with a graph before its export, for alterations."""
    outputs = graph.eval()(torch.from_numpy(pair.placed(families.SAM2)["image"]))
    names = [*TENSORS, *(name + UNCAST for name in TENSORS)]
    return {name: output.numpy() for name, output in zip(names, outputs, strict=True)}


def without_no_memory(graph: EncoderGraph) -> None:
    graph.no_memory = torch.zeros_like(graph.no_memory)


def without_positions(graph: EncoderGraph) -> None:
    graph.trunk.positions = torch.zeros_like(graph.trunk.positions)


def with_swapped_levels(graph: EncoderGraph) -> None:
    """Swap the two finer maps, resized so that shapes remain."""
    neck = graph.neck

    def swapped(stages: list[Tensor]) -> tuple[tuple[Tensor, ...], None]:
        coarsest, coarse, middle, fine = neck(stages)[0]
        larger = functional.interpolate(middle, scale_factor=2.0)
        smaller = functional.interpolate(fine, scale_factor=0.5)
        return (coarsest, coarse, smaller, larger), None

    del graph.neck
    graph.neck = swapped  # type: ignore[assignment]


@pytest.mark.parametrize("alter", [without_no_memory, without_positions, with_swapped_levels])
def test_an_altered_encoder_is_noticed(
    pair: Sam2Pair, alter: Callable[[EncoderGraph], None]
) -> None:
    expected = pair.reference_embedding(pair.placed(families.SAM2)["image"])
    graph = copy.deepcopy(pair.network.encoder_graph())
    assert_same_embeddings(pair, encoded_in_torch(pair, graph), expected)

    alter(graph)

    with pytest.raises(AssertionError):
        assert_same_embeddings(pair, encoded_in_torch(pair, graph), expected)


def test_half_precision_stays_within_its_bounds(pair: Sam2Pair) -> None:
    network, _ = open_network(pair.checkpoint)
    for module in network.encoder_modules():
        halve(module)
    half = Sam2Pair(pair.model, network, pair.checkpoint)

    error = max(
        relative_l2(half.stored[name], pair.stored[name].astype(np.float32)) for name in TENSORS
    )

    # As `Bounds`, and more than from rounding the embedding only.
    assert 5e-4 < error < BOUNDS["fp16"].embedding
    graph = half.encoder_model.graph
    norms = [node for node in graph.node if node.op_type == "LayerNormalization"]
    weights = {each.name: each.data_type for each in graph.initializer}
    assert norms
    assert {weights[node.input[1]] for node in norms} == {TensorProto.FLOAT}
    assert TensorProto.FLOAT16 in weights.values()
