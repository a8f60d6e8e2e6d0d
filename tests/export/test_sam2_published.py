"""SAM 2.1 tiny and EdgeTAM at their published sizes, from checkpoints with the original names.

The weights are seeded, see `sam2_local`: their masks are regions with sharp edges.  With masks of
noise, as the other tests have them, the references differ from each other at this size.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from samserve.export.checkpoint import open_network
from samserve.models import families

from tests.export.sam2_original import decode_original, load_weights, original_embedding
from tests.export.sam2_pair import (
    Arrays,
    Outcome,
    Sam2Pair,
    assert_same_embeddings,
    assert_same_outcomes,
    decode_exported,
    decode_reference,
    prompts_of,
    refined,
)
from tests.oracle import edgetam, meta_sam2, photos, sam2
from tests.oracle.sam2_local import localise

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

FOREGROUND = (0.45, 0.45, 0.45, 0.45)
"""Fraction of the calibration images that each token's mask covers."""

COVERED = (0.06, 0.94)
"""Bounds of the fraction of an image that every mask of a compared prompt covers."""

RADIUS = 0.6
"""Of mask prompts, which are partly outside of the frame; their masks are smaller."""

FLATTER = 0.3
"""Factor of the logits of the single mask: with it, some single masks are not stable."""

CASES = [
    ("points1", 1, 1),
    ("points1", 2, 5),
    ("points2", 1, 3),
    ("points2", 2, 5),
    ("points4", 1, 5),
    ("points4", 2, 1),
    ("box", 1, 5),
    ("box", 2, 3),
    ("points1+box", 2, 3),
    ("points2+box", 2, 1),
    ("points4+box", 1, 3),
    ("mask", 1, 1),
    ("mask", 2, 3),
    ("points1+mask", 1, 5),
    ("points4+mask", 2, 1),
    ("box+mask", 1, 3),
    ("points2+box+mask", 2, 1),
]
"""Kinds of prompts, numbers of images, and of prompts on each."""


@dataclass(frozen=True)
class Published:
    """A model of the transformers library, that of the original, and the export of the latter."""

    pair: Sam2Pair
    original: Any
    embedded: Mapping[int, Arrays]
    """By the number of images of a call."""

    def prompts(self, kind: str, *, images: int, count: int) -> list[Any]:
        """Return seeded prompts, without those with a mask that is nearly empty or nearly full."""
        rows: list[list[Any]] = [[] for _ in range(images)]
        for seed in range(10):
            drawn = prompts_of(kind, self.pair, images=images, count=5, seed=seed, radius=RADIUS)
            found = decode_exported(self.pair, drawn)
            for row, prompts, outcomes in zip(rows, drawn, found, strict=True):
                row += [p for p, one in zip(prompts, outcomes, strict=True) if is_informative(one)]
            if min(map(len, rows)) >= count:
                return [row[:count] for row in rows]
        raise AssertionError("too few prompts with masks of a medium size")


def is_informative(outcome: Outcome) -> bool:
    covered = outcome.masks.mean((1, 2))
    return bool(covered.min() >= COVERED[0] and covered.max() <= COVERED[1])


def tiny() -> tuple[Any, Any]:
    return sam2.model(sam2.HIERA_TINY, seed=1), meta_sam2.unseeded(sam2.HIERA_TINY)


def edgetam_() -> tuple[Any, Any]:
    trunk = edgetam.Trunk()
    return edgetam.model(), meta_sam2.unseeded(sam2.HIERA_TINY, version="2", trunk=trunk)


MAKERS = {"sam2.1_hiera_tiny": tiny, "edgetam": edgetam_}


@pytest.fixture(scope="module", params=MAKERS)
def published(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Published]:
    """One model; only one is in memory."""
    model, original = MAKERS[request.param]()
    localise(model, photos.calibration(), foreground=FOREGROUND)
    flatten(model)
    load_weights(original.eval().requires_grad_(False), model.state_dict())
    path = meta_sam2.save(original, tmp_path_factory.mktemp("published") / "model.pt")
    network, _ = open_network(path)
    assert network.name == request.param
    pair = Sam2Pair(model, network, path)
    embedded = {1: pair.embed(families.SAM2, 1), 2: pair.embedded}
    # Sessions keep the memory of their largest run.
    del vars(pair)["encoder"], vars(pair)["encoder_model"]
    yield Published(pair, original, embedded)
    gc.collect()


def flatten(model: Any) -> None:
    """Scale the logits of the single mask, which its edge does not depend on."""
    last = model.mask_decoder.output_hypernetworks_mlps[0].proj_out
    last.weight.mul_(FLATTER)
    last.bias.mul_(FLATTER)


@pytest.mark.parametrize("images", [1, 2])
def test_embeddings_are_those_of_both_references(published: Published, images: int) -> None:
    pair = published.pair
    pixels = pair.placed(families.SAM2)["image"][:images]

    found = published.embedded[images]

    assert_same_embeddings(pair, found, pair.reference_embedding(pixels))
    assert_same_embeddings(pair, found, original_embedding(published.original, pixels))


@pytest.mark.parametrize(("kind", "images", "count"), CASES)
def test_masks_are_those_of_both_references(
    published: Published, kind: str, images: int, count: int
) -> None:
    prompts = published.prompts(kind, images=images, count=count)

    found = decode_exported(published.pair, prompts)

    assert_same_outcomes(found, decode_reference(published.pair, prompts))
    # The original decodes one by one, which is slow.
    alone = decode_original(published.pair, published.original, first_of(prompts))
    assert_same_outcomes(first_of(found), alone)


@pytest.mark.parametrize(("kind", "images", "count"), [("points1", 2, 3), ("points2+box", 1, 5)])
def test_refinement_gives_the_masks_of_both_references(
    published: Published, kind: str, images: int, count: int
) -> None:
    pair, original = published.pair, published.original
    prompts = published.prompts(kind, images=images, count=count)
    first = decode_exported(pair, prompts)

    second = decode_exported(pair, refined(prompts, first))

    more = refined(prompts, decode_reference(pair, prompts))
    assert_same_outcomes(second, decode_reference(pair, more))
    more = refined(first_of(prompts), decode_original(pair, original, first_of(prompts)))
    assert_same_outcomes(first_of(second), decode_original(pair, original, more))


def first_of(rows: list[list[Any]]) -> list[list[Any]]:
    """Return the first of the prompts or outcomes of every image."""
    return [row[:1] for row in rows]


def test_some_single_masks_are_stable_and_some_are_not(published: Published) -> None:
    prompts = published.prompts("points1", images=2, count=5)

    found = decode_exported(published.pair, prompts)

    assert {outcome.auto for row in found for outcome in row} > {0}


def test_a_directory_of_the_library_gives_the_same_network(
    published: Published, tmp_path: Path
) -> None:
    network, _ = open_network(sam2.save(published.pair.model, tmp_path))

    state, other = (each.model.state_dict() for each in (published.pair.network, network))
    assert state.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in state.items())
