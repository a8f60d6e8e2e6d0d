"""Which images and objects the steps are trained on, and how much each counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from samserve.core import run_lengths
from samserve.models import families
from samserve.models.repository import discover
from samserve.tuning.batches import Batches, Micro, Sampling
from samserve.tuning.errors import TuningError
from samserve.tuning.examples import Example, Target

from tests.tuning import toys
from tests.tuning.fakes import FakeEmbeddings

STEPS = 40


def _micros(trained: Sequence[Example], old: Sequence[Example], replay: float) -> list[Micro]:
    (base,) = discover(toys.SAM_TINY)
    sampling = Sampling(images=1, prompts=4, replay=replay)
    family = families.of(base.info)
    batches = Batches((trained, old), FakeEmbeddings(base.info), family, sampling, seed=1)
    return [micro for step in range(STEPS) for micro in batches.of_step(step)]


def _keys(micros: Sequence[Micro]) -> set[str]:
    return {f"{int(micro.inputs[0].item()):04x}" for micro in micros}


def _weighed(example: Example, *weights: float) -> Example:
    targets = [replace(each, weight=weight) for each, weight in zip(example.targets, weights)]  # noqa: B905
    return replace(example, targets=tuple(targets))


@pytest.mark.parametrize(("replay", "least", "most"), [(0, 0, 0), (0.3, 4, 20), (0.7, 20, 37)])
def test_part_of_the_images_is_from_old_data(
    tmp_path: Path, replay: float, least: int, most: int
) -> None:
    images = toys.discs(tmp_path, 1, 4)

    micros = _micros(images[:2], images[2:], replay)

    old = {example.key[:4] for example in images[2:]}
    assert least <= sum(_keys([micro]) <= old for micro in micros) <= most
    assert _keys(micros) == {example.key[:4] for example in (images if replay else images[:2])}


def test_objects_weigh_relative_to_the_mean_and_those_of_old_data_by_their_own(
    tmp_path: Path,
) -> None:
    new, old = toys.discs(tmp_path, 1, 2)

    micros = _micros([_weighed(new, 2.0, 2.0, 0.25, 0.25)], [_weighed(old, 1.0, 1.0)], 0.5)

    weights: dict[str, set[float]] = {}
    for micro in micros:
        (key,) = _keys([micro])
        assert micro.prompts.weight is not None
        weights.setdefault(key, set()).update(micro.prompts.weight.flatten().tolist())
    assert sorted(weights[new.key[:4]]) == pytest.approx([0.25 / 1.125, 2.0 / 1.125])
    assert weights[old.key[:4]] == {1.0}


def test_images_with_nothing_but_tiny_objects_are_not_trained_on(tmp_path: Path) -> None:
    usual, tiny = toys.discs(tmp_path, 1, 2)
    thin = np.zeros((1024, 1024), bool)
    thin[:, 3] = True
    tiny = replace(tiny, size=replace(tiny.size, height=1024, width=1024))
    tiny = replace(tiny, targets=(Target(run_lengths.encode(thin)),))

    assert _keys(_micros([usual, tiny], (), 0)) == {usual.key[:4]}
    with pytest.raises(TuningError, match="the objects of 100 images are too small"):
        _micros([tiny], (), 0)
