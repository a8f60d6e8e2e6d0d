"""Adapters in the image encoder: they alone change it, and are merged into what is exported."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from samserve import app
from samserve.cli.errors import CommandError
from samserve.cli.tune import _errors as errors
from samserve.export.checkpoint import open_network
from samserve.export.families.base import Naming, Network
from samserve.export.families.sam1 import Sam1Network
from samserve.export.parity import ExportedModel
from samserve.export.sam.config import SamConfig, TinyVitConfig
from samserve.export.sam.model import Sam
from samserve.models.digest import DIGEST_OUTPUT
from samserve.models.repository import Bundle, discover
from samserve.tuning import adapters
from samserve.tuning.errors import TuningError
from samserve.tuning.pipeline import EMBEDDINGS, REPORT, tune
from samserve.tuning.tunable import open_tunable
from samserve.tuning.tuner import read_losses
from torch import Tensor, nn

from tests.oracle import sam_hq
from tests.oracle.sam import SMALL
from tests.tuning import toys
from tests.tuning.toys import ANY, Toy


@pytest.fixture(scope="module", params=toys.ADAPTED)
def toy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """A small model of a family."""
    return toys.MAKERS[request.param](tmp_path_factory.mktemp(request.param))


@pytest.mark.slow
def test_losses_fall_and_both_networks_change(toy: Toy, tmp_path: Path) -> None:
    parts = toys.parts(tmp_path / "data")
    options = toy.options(
        tmp_path, steps=40, rate=1e-4, max_objects=2, demands=ANY, adapter_rank=toys.RANK
    )

    tune(toy.base, parts, options)

    losses = [row["first loss"] for row in read_losses(tmp_path / "run")]
    assert losses[-1] < 0.7 * losses[0]
    (new,) = discover(tmp_path / "models")
    assert new.info.encoder_digest != toy.base.info.encoder_digest
    assert _changed(toy.base, new, "decoder")
    _check_changed_projections(toy, new)
    assert f"adapters of rank {toys.RANK} in the image encoder" in new.info.description
    assert json.loads((tmp_path / "run" / REPORT).read_text())["adapter_rank"] == toys.RANK
    # Rounding to float16 causes 2e-4 and another order of sums less; a wrong encoder about 1.
    assert new.info.card.parity is not None
    assert 0 < new.info.card.parity.embedding_error < 3e-4
    # Each part was measured with the embeddings of the encoder that was measured.
    held_out = {f"{example.key}.safetensors" for example in parts.held_out}
    for digest in (toy.base.info.encoder_digest, new.info.encoder_digest):
        folder = tmp_path / "run" / EMBEDDINGS / digest
        assert {path.name for path in folder.iterdir()} == held_out


def _changed(base: Bundle[Path], new: Bundle[Path], role: str) -> dict[str, np.ndarray]:
    """Return the weights of a graph that differ from those of the base, by name."""
    before, after = (
        {each.name: numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer}
        for path in (base.graphs[role], new.graphs[role])
    )
    assert before.keys() == after.keys()
    return {
        name: after[name]
        for name in before
        if not np.array_equal(before[name], after[name]) and not name.startswith(DIGEST_OUTPUT)
    }


def _check_changed_projections(toy: Toy, new: Bundle[Path]) -> None:
    """Check that the weights that differ are those of the projections of attention, and all."""
    network, _ = open_network(toy.checkpoint)
    projections = _projections(network)
    changed = list(_changed(toy.base, new, "encoder").values())
    assert len(changed) == len(projections)
    # The graph has them transposed, in the order of the computation.
    for weight, value in zip(projections.values(), changed, strict=True):
        difference = value.T - weight.numpy()
        assert 0 < np.abs(difference).max() < 0.1
        # Of the rank of an adapter, but for the rounding of its sum with the weight.
        singular = np.linalg.svd(difference, compute_uv=False)
        assert singular[toys.RANK :].max(initial=0) < 1e-2 * singular[0]


def _projections(network: Network) -> dict[str, Tensor]:
    return {
        name: weight
        for name, weight in network.encoder_graph().named_parameters()
        if name.endswith((".attn.qkv.weight", ".attn.proj.weight"))
    }


@pytest.mark.slow
def test_exported_encoder_equals_the_adapted_one(toy: Toy, tmp_path: Path) -> None:
    tunable = open_tunable(toy.base, toy.checkpoint, toys.RANK, seed=1)
    module = tunable.networks.encoder
    toys.redraw_adapters(module)
    example = toys.discs(tmp_path, 3, 1)[0]
    inputs = tunable.encoder.source(toys.embeddings(toy, tmp_path)).of(example)
    with torch.no_grad():
        expected = module(*inputs.values())

    onnx.save(tunable.encoder.graph(module), tmp_path / "encoder.onnx")

    # The adapted encoder is the reference of the parity check after the export.
    with torch.no_grad():
        again = module(*inputs.values())
    assert all(torch.equal(one, other) for one, other in zip(again, expected, strict=True))
    graphs = {**toy.base.graphs, "encoder": tmp_path / "encoder.onnx"}
    arrays = {name: each.numpy() for name, each in inputs.items()}
    before = ExportedModel(toy.base.graphs).embed(arrays)
    after = ExportedModel(graphs).embed(arrays)
    for right, name in zip(expected, after, strict=True):
        assert _distance(after[name], right.numpy()) < 3e-4
        assert _distance(before[name], right.numpy()) > 1e-2


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


@pytest.mark.slow
def test_half_precision_of_the_base_is_kept(tmp_path: Path) -> None:
    toy = toys.sam1(tmp_path, precision="fp16")
    parts = toys.parts(tmp_path / "data")
    options = toy.options(tmp_path, steps=2, max_objects=1, demands=ANY, adapter_rank=toys.RANK)

    tune(toy.base, parts, options)

    (new,) = discover(tmp_path / "models")
    assert new.info.encoder_digest != toy.base.info.encoder_digest
    assert new.info.card.precision == "fp16"
    assert new.info.card.parity is not None
    sizes = [bundle.graphs["encoder"].stat().st_size for bundle in (toy.base, new)]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.01)


def test_new_adapters_change_nothing_in_any_family(tmp_path: Path) -> None:
    for network in (_mobile(), _sam_hq(tmp_path)):
        graph = network.encoder_graph().eval()
        side = network.shapes.image_size
        image = torch.randint(0, 256, (1, side, side, 3), dtype=torch.uint8)
        inputs = (image, torch.tensor([[side, side - 16]], dtype=torch.int32))
        projections = _projections(network)
        with torch.no_grad():
            before = graph(*inputs)
            adapters.add_adapters(graph, toys.RANK, seed=0)
            after = graph(*inputs)

        assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
        trained = [name for name, each in graph.named_parameters() if each.requires_grad]
        assert len(trained) == 2 * len(projections) > 0
        merged = adapters.merged_weights(graph)
        assert merged.keys() == projections.keys()
        assert all(torch.equal(merged[name], each) for name, each in projections.items())


def _mobile() -> Network:
    """A MobileSAM of few channels."""
    torch.manual_seed(0)
    encoder = TinyVitConfig((16, 16, 32, 32), (1, 1, 1, 1), (1, 2, 2), (7, 14, 7))
    sam = Sam(SamConfig(encoder, grid=16)).eval().requires_grad_(False)
    return Sam1Network(sam, Naming.ORIGINAL)


def _sam_hq(folder: Path) -> Network:
    torch.save(sam_hq.original(SMALL).state_dict(), folder / "sam_hq.pth")
    return open_network(folder / "sam_hq.pth")[0]


def test_copies_share_the_memory_of_frozen_weights_only() -> None:
    graph = _mobile().encoder_graph()
    adapters.add_adapters(graph, toys.RANK, seed=0)

    copied = adapters.copy_sharing_frozen(graph)

    pairs = zip(graph.named_parameters(), copied.named_parameters(), strict=True)
    for (name, one), (same_name, other) in pairs:
        assert name == same_name
        assert one is not other
        assert one.requires_grad == other.requires_grad == (".lora_" in name)
        assert (one.data_ptr() == other.data_ptr()) == (not one.requires_grad)
        assert torch.equal(one, other)


def test_encoder_without_attention_is_refused() -> None:
    with pytest.raises(TuningError, match="has no attention to add adapters to"):
        adapters.add_adapters(nn.Sequential(nn.Conv2d(3, 3, 1)), toys.RANK, seed=0)


def test_default_model_has_no_adapters(tmp_path: Path) -> None:
    (tiny,) = discover(app.default_repository())

    with pytest.raises(TuningError, match="'sam_tiny' is a graph without a checkpoint"):
        open_tunable(tiny, None, toys.RANK)


def test_negative_rank_is_refused(one_toy: Toy, tmp_path: Path) -> None:
    with pytest.raises(TuningError, match="must be at least 0, not -1"):
        one_toy.options(tmp_path, adapter_rank=-1)


def test_missing_library_is_named(one_toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)

    with pytest.raises(CommandError, match=r"requires peft.*\[tune\]"), errors():
        open_tunable(one_toy.base, one_toy.checkpoint, toys.RANK)
    # Not needed without adapters.
    open_tunable(one_toy.base, one_toy.checkpoint)
