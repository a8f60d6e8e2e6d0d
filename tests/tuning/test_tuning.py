"""Tuning a SAM 1 and a SAM 2.1: only the decoder changes, and only a better model is written."""

from __future__ import annotations

import copy
import itertools
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file
from samserve.export.parity import ExportedModel
from samserve.models import families
from samserve.models.digest import graph_digest
from samserve.models.repository import Bundle, discover
from samserve.tuning.batches import Batches, Sampling
from samserve.tuning.decoders import TUNED_FILE, NetworkDecoder
from samserve.tuning.embeddings import Embeddings
from samserve.tuning.errors import NotBetter, TuningError
from samserve.tuning.examples import Parts
from samserve.tuning.loop import LAST
from samserve.tuning.pipeline import CURVE, REPORT, tune
from samserve.tuning.tunable import open_tunable
from samserve.tuning.tuner import Plan, Tuner, read_losses

from tests.tuning import toys
from tests.tuning.toys import ANY, Toy


@pytest.fixture(scope="module", params=list(toys.MAKERS))
def toy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """A small model of a family."""
    return toys.MAKERS[request.param](tmp_path_factory.mktemp(request.param))


@pytest.mark.slow
def test_losses_fall_and_only_the_decoder_changes(toy: Toy, tmp_path: Path) -> None:
    parts = toys.parts(tmp_path / "data")
    options = toy.options(tmp_path, steps=20, rate=1e-4, max_objects=2, demands=ANY)

    outcome = tune(toy.base, parts, options)

    losses = [row["first loss"] for row in read_losses(tmp_path / "run")]
    assert losses[-1] < 0.7 * losses[0]
    (new,) = discover(tmp_path / "models")
    assert new.info.digest != toy.base.info.digest
    assert new.info.encoder_digest == toy.base.info.encoder_digest
    assert graph_digest(new.graphs["encoder"]) == graph_digest(toy.base.graphs["encoder"])
    _check_embeddings(toy.base, new)
    _check_weights(toy.base, new)
    _check_average(tmp_path / "run", new)
    assert (outcome.before.images, outcome.before.objects) == (2, 4)
    assert new.info.dynamic_multimask == toy.base.info.dynamic_multimask
    assert new.info.card.parity is not None
    assert f"one click {outcome.before.click_iou:.3f} to" in new.info.description
    assert (tmp_path / "run" / REPORT).is_file()
    assert (tmp_path / "run" / CURVE).is_file()


def _check_embeddings(base: Bundle[Path], new: Bundle[Path]) -> None:
    side = base.info.image_size
    image = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), np.uint8)
    inputs = {"image": image}
    if not families.of(base.info).fills_frame:
        inputs["image_size"] = np.array([[side, side - 40]], np.int32)
    before, after = (ExportedModel(bundle.graphs).embed(inputs) for bundle in (base, new))
    assert all(np.array_equal(before[name], after[name]) for name in before)


def _check_weights(base: Bundle[Path], new: Bundle[Path]) -> None:
    """Check that the decoders differ in weights of the mask decoder only, and in most of them."""
    before, after = (
        {each.name: each for each in onnx.load(bundle.graphs["decoder"]).graph.initializer}
        for bundle in (base, new)
    )
    assert before.keys() == after.keys()
    changed = {name for name in before if before[name] != after[name]}
    prompts = {name for name in before if name.startswith(("prompt_encoder.", "prompts."))}
    assert prompts
    assert not prompts & changed
    assert len(changed) > 0.5 * len(before.keys() - prompts)
    # The token of SAM-HQ and its head, which other families do not have.
    additional = {name for name in before if re.search(r"hf_(token|mlp)", name)}
    assert additional <= changed
    assert bool(additional) == (families.of(base.info) is families.SAM_HQ)


def _check_average(run: Path, new: Bundle[Path]) -> None:
    """Check that the average of the weights over the steps was exported, not the last ones."""
    exported = load_file(new.graphs["decoder"].with_name(TUNED_FILE))
    saved = torch.load(run / LAST, weights_only=True)
    assert all(
        torch.equal(saved["average"][f"decoder.{name}"], each) for name, each in exported.items()
    )
    assert not all(
        torch.equal(saved["module"][f"decoder.{name}"], each) for name, each in exported.items()
    )


@pytest.mark.slow
def test_graph_that_differs_from_the_tuned_module_is_not_written(
    one_toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = NetworkDecoder.graph

    def altered(decoder: NetworkDecoder, module: torch.nn.Module) -> onnx.ModelProto:
        module = copy.deepcopy(module)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(1.5)
        return graph(decoder, module)

    monkeypatch.setattr(NetworkDecoder, "graph", altered)
    options = one_toy.options(tmp_path, steps=1, max_objects=1, demands=ANY)

    with pytest.raises(TuningError, match="parity check failed"):
        tune(one_toy.base, toys.parts(tmp_path / "data"), options)
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.slow
def test_tuned_model_can_be_tuned_again(one_toy: Toy, tmp_path: Path) -> None:
    parts = toys.parts(tmp_path / "data")
    tune(one_toy.base, parts, one_toy.options(tmp_path, steps=1, max_objects=1, demands=ANY))
    (first,) = discover(tmp_path / "models")

    again = replace(one_toy, base=first)
    second = tmp_path / "second"
    tune(
        first,
        parts,
        again.options(second, steps=1, rate=toys.TINY_RATE, max_objects=1, demands=ANY),
    )

    (unchanged,) = discover(second / "models")
    assert unchanged.info.digest == first.info.digest


@pytest.mark.slow
@pytest.mark.parametrize("killed_at", [1, 3])
def test_resumed_run_ends_with_the_same_weights(
    one_toy: Toy, tmp_path: Path, killed_at: int
) -> None:
    whole = _tuner(one_toy, tmp_path / "whole")
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


@pytest.mark.slow
def test_minutes_decide_the_number_of_steps_once(tmp_path: Path, one_toy: Toy) -> None:
    tuner = Tuner(
        open_tunable(one_toy.base, one_toy.checkpoint), Plan(None, 2.0, 0, 1e-4), tmp_path
    )
    tuner.step, tuner.seconds = 10, 30.0

    tuner.after_step()

    assert tuner.steps == 40
    tuner.seconds = 300.0
    tuner.after_step()
    assert tuner.steps == 40


def _tuner(toy: Toy, out: Path) -> Tuner:
    out.mkdir(exist_ok=True)
    plan = Plan(4, None, 3, 1e-4)
    return Tuner(open_tunable(toy.base, toy.checkpoint), plan, out, save_s=0.0)


def _batches(toy: Toy, folder: Path) -> Batches:
    family = families.of(toy.base.info)
    embeddings = Embeddings(ExportedModel(toy.base.graphs), toy.base.info, folder / "embeddings")
    parts = toys.parts(folder / "data")
    sampling = Sampling(images=1, prompts=2)
    return Batches((parts.trained, parts.held_out), embeddings, family, sampling, seed=3)


@pytest.mark.slow
def test_model_that_is_worse_is_not_written(one_toy: Toy, tmp_path: Path) -> None:
    parts = toys.parts(tmp_path / "data")

    with pytest.raises(NotBetter, match="is not better and was not written: the mean IoU"):
        tune(one_toy.base, parts, one_toy.options(tmp_path, rate=1e-2, max_objects=2))

    assert list((tmp_path / "models").iterdir()) == []


def test_another_checkpoint_is_refused(one_toy: Toy, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    state = torch.load(one_toy.checkpoint, weights_only=True)
    state["mask_decoder.iou_token.weight"] += 1
    torch.save(state, other / "sam.pth")
    options = one_toy.options(tmp_path, checkpoint=other / "sam.pth")

    with pytest.raises(TuningError, match="was not exported from this checkpoint"):
        tune(one_toy.base, toys.parts(tmp_path / "data"), options)


def test_missing_checkpoint_is_named(one_toy: Toy, tmp_path: Path) -> None:
    options = one_toy.options(tmp_path, checkpoint=None)

    with pytest.raises(TuningError, match=r"sam.pth: name it with --checkpoint"):
        tune(one_toy.base, toys.parts(tmp_path / "data"), options)


def test_too_few_objects_and_shared_images_are_refused(one_toy: Toy, tmp_path: Path) -> None:
    images = toys.discs(tmp_path / "data", 1, 3)
    cases = {
        "the training part is too small: 4 objects on 1 images": Parts(images[:1], images[1:]),
        "the held-out part is too small: 0 objects on 0 images": Parts(images, ()),
        "1 images of the held-out part are also among those that": Parts(images, images[:1]),
    }
    for (message, parts), number in zip(cases.items(), itertools.count(), strict=False):
        folder = tmp_path / str(number)
        with pytest.raises(TuningError, match=message):
            tune(one_toy.base, parts, one_toy.options(folder))
        assert not folder.exists()


@pytest.mark.slow
def test_old_data_is_measured_and_run_folder_of_another_run_is_refused(
    one_toy: Toy, tmp_path: Path
) -> None:
    old = toys.discs(tmp_path / "old", 3, 3)
    parts = replace(toys.parts(tmp_path / "data"), replay=old[:2], replay_held_out=old[2:])
    options = one_toy.options(tmp_path, steps=1, max_objects=1, demands=ANY)

    outcome = tune(one_toy.base, parts, options)

    assert (outcome.before.images, outcome.after.images) == (2, 2)
    assert outcome.old is not None
    assert [(each.images, each.objects) for each in outcome.old] == [(1, 1)] * 2

    with pytest.raises(TuningError, match="has a run already: continue it with --resume"):
        tune(one_toy.base, parts, options)
    with pytest.raises(TuningError, match="has a run with another plan"):
        tune(one_toy.base, parts, replace(options, resume=True, seed=5))
    other = replace(parts, trained=parts.trained[:3])
    with pytest.raises(TuningError, match="has a run with another data"):
        tune(one_toy.base, other, replace(options, resume=True))
    with pytest.raises(TuningError, match="has a model 'tuned' already"):
        tune(one_toy.base, parts, replace(options, resume=True))
