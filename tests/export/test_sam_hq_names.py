"""Checkpoints of SAM-HQ under both naming schemes, and what is rejected."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from samserve.export.checkpoint import open_network
from samserve.export.errors import ExportError
from samserve.export.families.base import Naming
from samserve.export.families.sam_hq import SamHqNetwork
from samserve.export.onnx_export import export_decoder, export_encoder
from samserve.export.sam.config import config_from_state
from samserve.export.sam.hq import SamHq
from torch import Tensor

from tests.oracle import sam_hq
from tests.oracle.redraw import redraw
from tests.oracle.sam import MOBILE, VIT_B, VIT_H, VIT_L, Size
from tests.oracle.sam_hq import TOY

State = dict[str, Tensor]


@cache
def toy() -> State:
    """The tensors of a toy, all of which differ."""
    sam = sam_hq.original(TOY)
    redraw(sam)
    return dict(sam.state_dict())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return saved(toy(), tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory of the transformers library."""
    return sam_hq.save(sam_hq.library(TOY, toy()), tmp_path / "library")


def saved(state: State, folder: Path) -> Path:
    torch.save(state, folder / "sam_hq.pth")
    return folder / "sam_hq.pth"


def network_of(path: Path) -> SamHqNetwork:
    network, _ = open_network(path)
    assert isinstance(network, SamHqNetwork)
    return network


def test_both_naming_schemes_give_the_tensors_of_the_checkpoint(file: Path, folder: Path) -> None:
    networks = [network_of(file), network_of(folder)]

    assert [network.naming for network in networks] == [Naming.ORIGINAL, Naming.TRANSFORMERS]
    for network in networks:
        found = network.sam.state_dict()
        assert found.keys() == toy().keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in toy().items())
        assert not network.sam.training


@pytest.mark.slow
def test_both_naming_schemes_give_the_same_graphs(file: Path, folder: Path) -> None:
    original, library = network_of(file), network_of(folder)

    for trace in (export_encoder, export_decoder):
        assert trace(original) == trace(library)


@pytest.mark.parametrize(
    ("size", "variant", "width"),
    [
        pytest.param(VIT_B, "vit_b", 768, id="vit_b"),
        pytest.param(VIT_L, "vit_l", 1024, id="vit_l"),
        pytest.param(VIT_H, "vit_h", 1280, id="vit_h"),
        pytest.param(MOBILE, "vit_tiny", 160, id="vit_tiny"),
    ],
)
def test_published_sizes_are_derived_from_the_shapes(size: Size, variant: str, width: int) -> None:
    # TinyViT cannot be built on the meta device, but is small.
    with torch.device("cpu" if size is MOBILE else "meta"):
        expected = sam_hq.original(size).state_dict()
    with torch.device("meta"):
        network = SamHqNetwork(SamHq(config_from_state(expected)), Naming.ORIGINAL)
    # The classifier of TinyViT is not used.
    shapes = {
        name: value.shape
        for name, value in expected.items()
        if not re.match(r"image_encoder\.(norm_)?head\.", name)
    }

    assert (network.variant, network.name) == (variant, f"sam_hq_{variant}")
    assert {name: value.shape for name, value in network.sam.state_dict().items()} == shapes
    assert shapes["mask_decoder.compress_vit_feat.0.weight"][0] == width
    assert network.shapes.embedding == {
        "image_embedding": (256, 64, 64),
        "hq_features": (32, 256, 256),
    }
    assert (network.shapes.image_size, network.shapes.mask_size) == (1024, 256)


def test_the_prefix_of_data_parallel_training_is_removed(tmp_path: Path) -> None:
    path = saved({f"module.{name}": tensor for name, tensor in toy().items()}, tmp_path)

    assert network_of(path).sam.state_dict().keys() == toy().keys()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        pytest.param({"mask_decoder.hf_mlp.layers.1.bias": None}, "missing {}", id="missing"),
        pytest.param(
            {"mask_decoder.compress_vit_feat.9.bias": torch.zeros(1)}, "unexpected {}", id="extra"
        ),
        pytest.param({"mask_decoder.hq_token.weight": torch.zeros(1, 256)}, "unexpected {}"),
        pytest.param(
            {"mask_decoder.compress_vit_feat.0.weight": torch.zeros(32, 256, 2, 2)},
            r"{} has shape \(32, 256, 2, 2\), not \(64, 256, 2, 2\)",
            id="shape",
        ),
    ],
)
def test_other_tensors_are_rejected_by_name(
    change: dict[str, Tensor | None], text: str, tmp_path: Path
) -> None:
    state = {**toy(), **change}
    path = saved({name: value for name, value in state.items() if value is not None}, tmp_path)
    (name,) = change

    with pytest.raises(ExportError, match=text.format(re.escape(name))) as raised:
        open_network(path)

    assert "\n" not in str(raised.value)


def test_an_unknown_tensor_of_the_transformers_library_is_rejected(folder: Path) -> None:
    with pytest.raises(ExportError, match=r"unexpected mask_decoder\.mask_conv2\.extra"):
        open_network(_with_tensor(folder, "mask_decoder.mask_conv2.extra.weight"))


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("vision_config", "hidden_act", "relu"),
        ("vision_config", "layer_norm_eps", 0.1),
        ("mask_decoder_config", "num_attention_heads", 4),
        ("mask_decoder_config", "vit_dim", 32),
        ("mask_decoder_config", "vit_dim", "\n"),
    ],
)
def test_a_configuration_of_another_model_is_rejected(
    part: str, key: str, value: object, folder: Path
) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config[part][key] = value
    path.write_text(json.dumps(config))

    with pytest.raises(ExportError, match=key) as raised:
        open_network(folder)

    assert "\n" not in str(raised.value)


def test_sam_hq_of_sam_2_is_rejected(tmp_path: Path) -> None:
    names = ("sam_mask_decoder.hf_token.weight", "image_encoder.trunk.pos_embed")
    path = saved({name: torch.zeros(1) for name in names}, tmp_path)

    with pytest.raises(ExportError, match=r"HQ-SAM 2 \(sam_mask_decoder\.hf_token\.weight\)"):
        open_network(path)


def test_a_vit_without_global_attention_is_rejected(tmp_path: Path) -> None:
    state = toy() | {
        f"image_encoder.blocks.{block}.attn.rel_pos_{axis}": torch.zeros(27, 32)
        for block in (1, 2)
        for axis in "hw"
    }

    with pytest.raises(ExportError, match="none of its blocks has global attention"):
        open_network(saved(state, tmp_path))


def _with_tensor(folder: Path, name: str) -> Path:
    from safetensors.torch import load_file, save_file  # noqa: PLC0415

    path = folder / "model.safetensors"
    state = load_file(path)
    save_file({**state, name: torch.zeros(1)}, path)
    return folder
