"""EdgeTAM against the class of transformers, at toy size."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import pytest
from samserve.export.checkpoint import open_network
from samserve.export.errors import ExportError
from samserve.export.half import halve
from samserve.export.parity import BOUNDS
from samserve.models import families

from tests.export.equality import relative_l2
from tests.export.sam2_pair import (
    TENSORS,
    Sam2Pair,
    assert_same_embeddings,
    assert_same_outcomes,
    decode_exported,
    decode_reference,
    prompts_of,
    refined,
)
from tests.oracle import edgetam

SEED = 0
KINDS = ("points1", "points4", "box", "points2+box", "mask", "box+mask")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Sam2Pair:
    folder = tmp_path_factory.mktemp("edgetam")
    # By this rule, some masks are stable and some are not.
    model = edgetam.model(grid=8, channels=32, seed=SEED, delta=0.003)
    network, _ = open_network(edgetam.save(model, folder))
    return Sam2Pair(model, network, folder)


def test_embeddings_are_those_of_the_library(pair: Sam2Pair) -> None:
    expected = pair.reference_embedding(pair.placed(families.SAM2)["image"])

    assert_same_embeddings(pair, pair.embed(families.SAM2), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_those_of_the_library(pair: Sam2Pair, kind: str) -> None:
    for images, count in ((1, 1), (2, 3), (1, 5)):
        prompts = prompts_of(kind, pair, images=images, count=count)
        assert_same_outcomes(decode_exported(pair, prompts), decode_reference(pair, prompts))


def test_refinement_gives_the_masks_of_the_library(pair: Sam2Pair) -> None:
    prompts = prompts_of("points1", pair, images=2, count=3)
    first, expected = decode_exported(pair, prompts), decode_reference(pair, prompts)

    second = decode_exported(pair, refined(prompts, first))

    assert_same_outcomes(second, decode_reference(pair, refined(prompts, expected)))
    assert {outcome.auto for row in first for outcome in row} > {0}


def test_half_precision_stays_within_its_bounds(pair: Sam2Pair) -> None:
    network, _ = open_network(pair.checkpoint)
    for module in network.encoder_modules():
        halve(module)
    half = Sam2Pair(pair.model, network, pair.checkpoint)

    error = max(
        relative_l2(half.stored[name], pair.stored[name].astype(np.float32)) for name in TENSORS
    )

    assert 5e-4 < error < BOUNDS["fp16"].embedding


def test_the_graph_has_no_batch_norms_left(pair: Sam2Pair) -> None:
    operators: Sequence[str] = [node.op_type for node in pair.encoder_model.graph.node]

    assert "BatchNormalization" not in operators
    # One for each pair of parallel branches and norms of the checkpoint, and the neck's.
    assert operators.count("Conv") < 110


@pytest.mark.parametrize(
    "failure", [ImportError("No module named 'timm'"), RuntimeError("operator does not exist")]
)
def test_without_timm_the_error_says_what_to_install(
    pair: Sam2Pair, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    class Finder:
        def find_spec(self, name: str, *_args: object) -> None:
            if name.startswith("timm"):
                raise failure

    for name in [name for name in sys.modules if name.split(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])

    with pytest.raises(ExportError, match=f"install timm, and torchvision .*{failure}") as caught:
        open_network(pair.checkpoint)

    assert "\n" not in str(caught.value)
