"""Checkpoints of facebookresearch/sam2 and EdgeTAM, against their own modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from samserve.export.checkpoint import open_network
from samserve.export.errors import ExportError
from samserve.export.families import sam2_sizes
from samserve.export.families.base import Naming
from samserve.export.families.sam2_names import library_tensors, trunk_of
from samserve.export.families.sam2_sizes import PUBLISHED, Hiera, Size, library_config
from samserve.export.onnx_export import UNCAST
from samserve.models import families
from transformers import Sam2Model

from tests.export.equality import relative_l2
from tests.export.sam2_original import corners_first, original_embedding
from tests.export.sam2_pair import TENSORS, Sam2Pair, decode_exported, prompts_of
from tests.oracle import edgetam, meta_sam2, sam2

TOY = Size(
    Hiera((16, 32, 64, 128), (1, 2, 3, 2), (1, 2, 4, 8), (4, 4, 7, 4), (4,), 7),
    grid=8,
    channels=32,
    mlp_dim=64,
    iou_dim=32,
)


@pytest.fixture(autouse=True)
def _toy_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PUBLISHED, "hiera_toy", TOY)
    monkeypatch.setattr("samserve.export.families.sam2.EDGETAM", TOY_EDGETAM)


TOY_EDGETAM = Size(None, grid=8, channels=32, mlp_dim=64, iou_dim=32)


def assert_same_as_original(original: Any, pair: Sam2Pair, kinds: tuple[str, ...]) -> None:
    embedding = original_embedding(original, pair.placed(families.SAM2)["image"])
    found = pair.embed(families.SAM2)
    for name in TENSORS:
        assert relative_l2(found[name + UNCAST], embedding[name]) <= 1e-4
    stored = {name: torch.from_numpy(found[name]).float() for name in TENSORS}
    for kind in kinds:
        prompts = prompts_of(kind, pair, images=2, count=3)
        for image, row in enumerate(decode_exported(pair, prompts)):
            one = {name: value[image : image + 1] for name, value in stored.items()}
            arranged = [corners_first(prompt, pair, image) for prompt in prompts[image]]
            coords, labels = (torch.stack(parts) for parts in zip(*arranged, strict=True))
            masks = [torch.from_numpy(p.mask)[None] for p in prompts[image] if p.mask is not None]
            logits, iou, score = meta_sam2.decode(
                original, one, coords, labels, torch.stack(masks) if masks else None
            )
            for index, outcome in enumerate(row):
                right = logits[index].numpy()
                assert np.abs(outcome.logits - right).max() <= 1e-3 * np.abs(right).max()
                assert ((outcome.logits > 0) == (right > 0)).mean() >= 0.999
                assert np.abs(outcome.iou - iou[index].numpy()).max() <= 1e-4
                assert abs(outcome.score - float(score[index])) <= 1e-3


@pytest.fixture(scope="module")
def original() -> Any:
    return meta_sam2.build(sam2.TOY, seed=3)


@pytest.fixture
def checkpoint(original: Any, tmp_path: Path) -> Path:
    return meta_sam2.save(original, tmp_path / "toy.pt")


def test_a_checkpoint_of_meta_gives_the_outputs_of_its_modules(
    original: Any, checkpoint: Path
) -> None:
    network, source = open_network(checkpoint)

    assert (network.title, network.variant, network.name) == (
        "SAM 2.1",
        "sam2.1_hiera_toy",
        "sam2.1_hiera_toy",
    )
    assert network.naming is Naming.ORIGINAL
    assert source.dtype == "float32"
    assert network.parameters == {
        "multimask_stability_delta": "0.05",
        "multimask_stability_thresh": "0.98",
    }
    pair = Sam2Pair(None, network, checkpoint)
    kinds = ("points1", "points4", "box", "points2+box", "points1+mask", "box+mask")
    assert_same_as_original(original, pair, kinds)


def test_sam_2_and_2_1_are_distinguished(tmp_path: Path) -> None:
    path = meta_sam2.save(meta_sam2.build(sam2.TOY, version="2"), tmp_path / "old.pt")

    network, _ = open_network(path)

    assert (network.title, network.variant) == ("SAM 2", "sam2_hiera_toy")


@pytest.mark.parametrize("version", ["2", "2.1"])
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("hiera_tiny", sam2.HIERA_TINY),
        ("hiera_small", sam2.HIERA_SMALL),
        ("hiera_base_plus", sam2.HIERA_BASE_PLUS),
        ("hiera_large", sam2.HIERA_LARGE),
    ],
)
def test_every_published_size_is_recognised_and_complete(
    version: str, name: str, size: sam2.Sam2Size
) -> None:
    with torch.device("meta"):
        tensors = meta_sam2.unseeded(size, version=version).state_dict()
        found = sam2_sizes.published_size(trunk_of(tensors))
        model = Sam2Model(library_config(found))

    assert found == PUBLISHED[name]
    converted = library_tensors(tensors, model, "SAM 2")
    assert {key: value.shape for key, value in converted.items()} == {
        key: value.shape for key, value in model.state_dict().items()
    }


BLOCK = "image_encoder.trunk.blocks.3.mlp.layers.1.weight"
POINT = "sam_prompt_encoder.point_embeddings.2.weight"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({BLOCK: None}, f"not a SAM 2.1 checkpoint: missing {BLOCK}"),
        ({POINT: None}, f"not a SAM 2.1 checkpoint: missing {POINT}"),
        ({"no_mem_embed": None}, "not a SAM 2.1 checkpoint: missing no_mem_embed"),
        (
            {"image_encoder.trunk.blocks.0.attn.proj.bias": None},
            "missing image_encoder.trunk.blocks.0.attn.proj.bias",
        ),
        ({"sam_mask_decoder.extra": (1,)}, "unexpected sam_mask_decoder.extra"),
        ({"memory_bank.weight": (1,)}, "unexpected memory_bank.weight"),
        ({POINT: (2, 32)}, rf"{POINT} has shape \(2, 32\), not \(1, 32\)"),
        (
            {"image_encoder.trunk.pos_embed": (1, 16, 9, 9)},
            "not one of the published sizes of SAM 2 .* export a directory",
        ),
        (
            {"image_encoder.trunk.blocks.8.attn.proj.bias": (128,)},
            "not one of the published sizes of SAM 2 .* export a directory",
        ),
    ],
)
def test_an_incomplete_or_other_checkpoint_is_one_error_that_names_the_tensor(
    original: Any, tmp_path: Path, changes: dict[str, tuple[int, ...] | None], text: str
) -> None:
    state = dict(original.state_dict())
    for name, shape in changes.items():
        state.pop(name, None)
        if shape is not None:
            state[name] = torch.zeros(shape)
    torch.save({"model": state}, tmp_path / "other.pt")

    with pytest.raises(ExportError, match=text) as caught:
        open_network(tmp_path / "other.pt")

    assert "\n" not in str(caught.value)


def test_a_file_with_names_of_the_library_needs_no_configuration(tmp_path: Path) -> None:
    model = sam2.model()
    torch.save(model.state_dict(), tmp_path / "weights.bin")

    network, _ = open_network(tmp_path / "weights.bin")

    # Without the tensors for videos, SAM 2 and 2.1 are the same.
    assert (network.title, network.variant) == ("SAM 2", "hiera_toy")
    assert network.naming is Naming.TRANSFORMERS


def test_edgetam_of_meta_gives_the_outputs_of_its_modules(tmp_path: Path) -> None:
    original = edgetam.original(sam2.TOY)
    of_videos = {"spatial_perceiver.latents": torch.zeros(1), "no_obj_ptr": torch.zeros(1, 32)}
    torch.save({"model": {**original.state_dict(), **of_videos}}, tmp_path / "edgetam.pt")

    network, _ = open_network(tmp_path / "edgetam.pt")

    assert (network.title, network.naming) == ("EdgeTAM", Naming.ORIGINAL)
    pair = Sam2Pair(None, network, tmp_path)
    assert_same_as_original(original, pair, ("points1", "points2+box"))
