"""Reading checkpoints of every size of SAM 1, and rejecting others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from samserve.export.checkpoint import open_network
from samserve.export.errors import ExportError
from samserve.export.families.sam1 import Sam1Network
from samserve.export.sam.config import config_from_state
from samserve.export.sam.model import Sam
from samserve.models.repository import discover

from tests.export.config_check import actual, declared, read_config, read_graph
from tests.export.conftest import Pair, every_encoder
from tests.oracle.sam import SMALL, VIT_B, VIT_H, VIT_L, SamSize, original

State = dict[str, Any]


@pytest.fixture(scope="module")
def state() -> State:
    """A complete state dict of the smallest size."""
    return dict(original(SMALL).state_dict())


def saved(folder: Path, content: object) -> Path:
    path = folder / "sam.pth"
    torch.save(content, path)
    return path


def sam_of(path: Path) -> Sam:
    network, _ = open_network(path)
    assert isinstance(network, Sam1Network)
    return network.sam


@pytest.mark.parametrize(
    ("size", "windows"),
    [
        pytest.param(VIT_B, [14, 14, 64] * 4, id="vit_b"),
        pytest.param(VIT_L, [14, 14, 14, 14, 14, 64] * 4, id="vit_l"),
        pytest.param(VIT_H, [14, 14, 14, 14, 14, 14, 14, 64] * 4, id="vit_h"),
    ],
)
def test_sizes_are_derived_from_the_shapes(size: SamSize, windows: list[int]) -> None:
    with torch.device("meta"):
        expected = original(size).state_dict()
        config = config_from_state(expected)
        found = Sam(config).state_dict()

    assert list(config.encoder.windows) == windows
    assert (config.encoder.embed_dim, config.encoder.heads) == (size.width, size.heads)
    assert (config.image_size, config.mask_size) == (1024, 256)
    assert {key: value.shape for key, value in found.items()} == {
        key: value.shape for key, value in expected.items()
    }


def test_values_equal_those_of_the_checkpoint(tmp_path: Path, state: State) -> None:
    sam = sam_of(saved(tmp_path, state))

    found = sam.state_dict()
    assert set(found) == set(state)
    assert all(torch.equal(found[key], state[key]) for key in state)
    assert not sam.training


def test_half_precision_weights_are_converted_to_float32(tmp_path: Path, state: State) -> None:
    halves = {key: value.half() for key, value in state.items()}

    sam = sam_of(saved(tmp_path, halves))

    assert {parameter.dtype for parameter in sam.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("mask_decoder.iou_token.weight", torch.zeros(1, 128), "has shape (1, 128), not (1, 256)"),
        ("image_encoder.pos_embed", None, "'image_encoder.pos_embed' is missing"),
        ("mask_decoder.mask_tokens.weight", None, "missing mask_decoder.mask_tokens.weight"),
        ("mask_decoder.extra", torch.ones(1), "unexpected mask_decoder.extra"),
    ],
    ids=["shape", "missing, determines a size", "missing", "unexpected"],
)
def test_an_invalid_tensor_is_named(
    tmp_path: Path, state: State, name: str, value: torch.Tensor | None, message: str
) -> None:
    changed = {**state, name: value}
    fitting = {key: tensor for key, tensor in changed.items() if tensor is not None}

    with pytest.raises(ExportError) as refused:
        open_network(saved(tmp_path, fitting))
    assert message in str(refused.value)
    assert name in str(refused.value)


@every_encoder
@pytest.mark.parametrize("role", ["encoder", "decoder"])
def test_the_config_of_an_exported_checkpoint_matches_its_graph(pair: Pair, role: str) -> None:
    folder = pair.repository / f"pair_{role}"
    config, graph = read_config(folder), read_graph(folder)

    assert declared(config.input) == actual(graph.graph.input)
    assert declared(config.output) == actual(graph.graph.output)
    assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", 17)]
    assert all(value.type.tensor_type.shape.dim[0].dim_param == "B" for value in graph.graph.input)
    onnx.checker.check_model(graph, full_check=True)


@every_encoder
def test_an_exported_checkpoint_is_discovered(pair: Pair) -> None:
    (files,) = discover(pair.repository)
    grid = pair.grid

    assert files.info.name == "pair"
    assert (files.info.image_size, files.info.mask_size) == (16 * grid, 4 * grid)
    assert [(spec.name, spec.dtype, spec.shape) for spec in files.info.embedding] == [
        ("image_embedding", "float16", (256, grid, grid))
    ]
