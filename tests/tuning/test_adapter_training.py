"""Training with adapters: gradients, runs that are resumed, and models that are tuned again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from samserve.models import families
from samserve.models.digest import TUNED_FILE
from samserve.models.repository import discover
from samserve.tuning.batches import Batches, Sampling
from samserve.tuning.errors import TuningError
from samserve.tuning.pipeline import tune
from samserve.tuning.tunable import open_tunable
from samserve.tuning.tuner import Plan, Tuner
from torch import Tensor

from tests.tuning import toys
from tests.tuning.toys import ANY, Toy


@pytest.mark.slow
def test_gradients_of_all_rounds_reach_the_adapters(one_toy: Toy, tmp_path: Path) -> None:
    tuner = _tuner(one_toy, tmp_path)
    toys.redraw_adapters(tuner.module.encoder)
    (micro,) = _batches(one_toy, tmp_path).of_step(0)
    losses: tuple[Callable[[Tensor], Tensor], ...] = (torch.sin, torch.square)
    tensors = tuner.module.encoder(*micro.inputs)
    sum(loss(each).sum() for each in tensors for loss in losses).backward()
    weights = [each for each in tuner.module.encoder.parameters() if each.requires_grad]
    expected = [each.grad.clone() for each in weights if each.grad is not None]
    tuner.optimiser.zero_grad()

    with tuner._embedding(micro) as embedding:
        for loss in losses:
            sum(loss(each).sum() for each in embedding).backward()

    assert len(expected) == len(weights) > 0
    for each, right in zip(weights, expected, strict=True):
        assert each.grad is not None
        assert torch.allclose(each.grad, right, rtol=1e-3, atol=1e-4 * float(right.abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize("killed_at", [1, 3])
def test_resumed_run_ends_with_the_same_weights(
    one_toy: Toy, tmp_path: Path, killed_at: int
) -> None:
    whole = _tuner(one_toy, tmp_path / "whole")
    first = {name: each.clone() for name, each in whole.module.state_dict().items()}
    whole.tune(_batches(one_toy, tmp_path))
    killed = _tuner(one_toy, tmp_path / "killed")
    with pytest.raises(KeyboardInterrupt):
        killed.tune(toys.Killing(_batches(one_toy, tmp_path), killed_at))

    resumed = _tuner(one_toy, tmp_path / "killed")
    resumed.continue_run()
    assert resumed.step == killed_at
    resumed.tune(_batches(one_toy, tmp_path))

    for one, other in ((whole.module, resumed.module), (whole.average, resumed.average)):
        pairs = zip(one.state_dict().items(), other.state_dict().values(), strict=True)
        assert [name for (name, value), same in pairs if not torch.equal(value, same)] == []
    trained = {name for name, each in whole.module.named_parameters() if each.requires_grad}
    changed = {
        name
        for name, each in whole.module.state_dict().items()
        if not torch.equal(each, first[name])
    }
    assert {name for name in trained if ".lora_" in name}
    # Only in the last layers of tokens that no loss depends on, weights may stay.
    assert changed <= trained
    assert {name for name in trained if ".lora_" in name} <= changed


def _tuner(toy: Toy, out: Path) -> Tuner:
    out.mkdir(exist_ok=True)
    plan = Plan(4, None, 3, 1e-4, adapter_rank=toys.RANK)
    return Tuner(open_tunable(toy.base, toy.checkpoint, toys.RANK, 3), plan, out, save_s=0.0)


def _batches(toy: Toy, folder: Path) -> Batches:
    tunable = open_tunable(toy.base, toy.checkpoint, toys.RANK)
    source = tunable.encoder.source(toys.embeddings(toy, folder))
    parts = toys.parts(folder / "data")
    sampling = Sampling(images=1, prompts=2)
    family = families.of(toy.base.info)
    return Batches((parts.trained, parts.held_out), source, family, sampling, seed=3)


@pytest.mark.slow
def test_adapted_model_can_be_tuned_again_with_and_without_adapters(
    one_toy: Toy, tmp_path: Path
) -> None:
    base, digests = one_toy.base, [one_toy.base.info.encoder_digest]
    parts = toys.parts(tmp_path / "data")
    for rank, rate, name in (
        (toys.RANK, 1e-2, "first"),
        (0, 1e-2, "second"),
        (toys.RANK, toys.TINY_RATE, "third"),
    ):
        options = one_toy.options(tmp_path / name, steps=2, rate=rate, adapter_rank=rank)
        tune(base, parts, replace(options, demands=ANY, max_objects=1))
        (base,) = discover(tmp_path / name / "models")
        digests.append(base.info.encoder_digest)

    assert digests[0] != digests[1]
    # Neither a decoder of its own nor adapters that learn nothing change the encoder.
    assert digests[1] == digests[2] == digests[3]
    for role in ("encoder", "decoder"):
        lost = discover(tmp_path / "first" / "models")[0]
        kept = lost.graphs[role].with_name(TUNED_FILE)
        content = kept.read_bytes()
        kept.unlink()
        again = one_toy.options(tmp_path / f"without-{role}", adapter_rank=toys.RANK)
        with pytest.raises(TuningError, match="has other weights than its checkpoint"):
            tune(lost, parts, again)
        kept.write_bytes(content)


@pytest.mark.slow
def test_run_of_another_rank_is_not_continued(one_toy: Toy, tmp_path: Path) -> None:
    parts = toys.parts(tmp_path / "data")
    options = one_toy.options(tmp_path, steps=1, max_objects=1, demands=ANY, adapter_rank=toys.RANK)
    tune(one_toy.base, parts, options)

    with pytest.raises(TuningError, match="has a run with another plan"):
        tune(one_toy.base, parts, replace(options, resume=True, adapter_rank=2))
