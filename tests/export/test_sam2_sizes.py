"""Sizes of SAM 2: the published ones, and those of untrusted configurations."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from samserve.export.checkpoint import open_network
from samserve.export.errors import ExportError
from samserve.export.families.sam2_names import version_of
from samserve.export.families.sam2_sizes import (
    EDGETAM,
    PUBLISHED,
    Hiera,
    Size,
    configured_size,
    library_config,
    name_of,
)

from tests.oracle import edgetam, meta_sam2, sam2

SIZES = {
    "hiera_tiny": ("t", sam2.HIERA_TINY),
    "hiera_small": ("s", sam2.HIERA_SMALL),
    "hiera_base_plus": ("b+", sam2.HIERA_BASE_PLUS),
    "hiera_large": ("l", sam2.HIERA_LARGE),
}


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("version", ["2", "2.1"])
def test_published_sizes_are_those_of_meta(name: str, version: str) -> None:
    trunk = meta_sam2.configured_trunk(version, SIZES[name][0])
    width, heads = trunk["embed_dim"], trunk["num_heads"]

    assert PUBLISHED[name].hiera == Hiera(
        widths=tuple(width << stage for stage in range(4)),
        blocks=tuple(trunk["stages"]),
        heads=tuple(heads << stage for stage in range(4)),
        windows=tuple(trunk["window_spec"]),
        global_blocks=tuple(trunk["global_att_blocks"]),
        background=trunk["window_pos_embed_bkg_spatial_size"][0],
    )


@pytest.mark.parametrize("name", SIZES)
def test_a_configuration_of_the_library_gives_its_size(name: str) -> None:
    config = sam2.config(SIZES[name][1]).to_dict()

    size = configured_size(config, is_edgetam=False)

    assert size == PUBLISHED[name]
    assert name_of(size) == name
    assert configured_size(library_config(size).to_dict(), is_edgetam=False) == size


def test_the_default_configuration_is_that_of_tiny() -> None:
    assert configured_size({}, is_edgetam=False) == PUBLISHED["hiera_tiny"]


def test_another_rule_for_stability_is_of_the_same_size() -> None:
    config = {"mask_decoder_config": {"dynamic_multimask_stability_thresh": 0.9}}
    without = {"mask_decoder_config": {"dynamic_multimask_via_stability": False}}

    size = configured_size(config, is_edgetam=False)

    assert name_of(size) == "hiera_tiny"
    assert size.dynamic is not None
    assert size.dynamic.thresh == 0.9
    assert configured_size(without, is_edgetam=False).dynamic is None


def test_a_few_weights_cannot_ask_for_any_amount_of_memory() -> None:
    def size(side: int, **backbone: object) -> Size:
        vision = {
            "backbone_config": backbone,
            "backbone_feature_sizes": [[side // patch] * 2 for patch in (4, 8, 16)],
        }
        prompts = {"image_size": side}
        config = {"vision_config": vision, "prompt_encoder_config": prompts}
        return configured_size(config, is_edgetam=False)

    for published in PUBLISHED.values():
        assert published.hiera is not None
        assert size(2048, num_attention_heads_per_stage=published.hiera.heads).grid == 128
    for absurd in (
        {"global_attention_blocks": [0]},
        {"global_attention_blocks": [1]},
        {"window_size_per_stage": [512, 4, 14, 7]},
        {"window_size_per_stage": [8, 4, 14, 512]},
    ):
        with pytest.raises(ExportError, match="more than 16 GiB for the attention of one block"):
            size(2048, **absurd)


def test_edgetam_has_one_image_encoder() -> None:
    config = edgetam.config().to_dict()

    assert configured_size(config, is_edgetam=True) == EDGETAM
    backbone = config["vision_config"]["backbone_config"]
    for change in (
        {"architecture": "resnet50"},
        {"model_args": {"checkpoint_path": "/etc/passwd", "in_chans": 4}},
        {"model_type": "vit"},
    ):
        other = copy.deepcopy(config)
        other["vision_config"]["backbone_config"] = {**backbone, **change}
        with pytest.raises(ExportError, match=r"vision_config\.backbone_config\."):
            configured_size(other, is_edgetam=True)


ABSURD = [
    ("mask_decoder_config.mlp_dim", 10**12, "a whole number from 1 to 16384"),
    ("mask_decoder_config.hidden_size", "256", "a whole number from 16 to 4096"),
    ("mask_decoder_config.hidden_size", 24, "not a multiple of 16"),
    ("mask_decoder_config.num_hidden_layers", 10**6, "2, the only one"),
    ("mask_decoder_config.dynamic_multimask_stability_delta", math.nan, "a number from 0"),
    ("mask_decoder_config.dynamic_multimask_via_stability", "yes", "true or false"),
    ("prompt_encoder_config.image_size", 1 << 40, "the side of a square"),
    ("prompt_encoder_config.image_size", [1024, 512], "the side of a square"),
    ("prompt_encoder_config.image_size", 1000, "not a multiple of 32"),
    ("vision_config", [], "is not an object"),
    ("vision_config.fpn_top_down_levels", [0, 1, 2, 3], r"\[2, 3\], the only one"),
    ("vision_config.backbone_channel_list", [96], "the only one"),
    ("vision_config.backbone_config.model_type", "llama", "the only one"),
    ("vision_config.backbone_config.hidden_act", "__import__('os')", "the only one"),
    ("vision_config.backbone_config.blocks_per_stage", [1, 2, 10**9, 2], "4 whole numbers"),
    ("vision_config.backbone_config.blocks_per_stage", [1] * 10**6, "4 whole numbers"),
    ("vision_config.backbone_config.num_attention_heads_per_stage", [0, 2, 4, 8], "4 whole"),
    ("vision_config.backbone_config.num_attention_heads_per_stage", [5, 2, 4, 8], "divide"),
    ("vision_config.backbone_config.window_size_per_stage", [7, 4, 14, 7], "divide"),
    ("vision_config.backbone_config.global_attention_blocks", [9, 5], "increasing"),
    ("vision_config.backbone_config.global_attention_blocks", [12], "from 0 to 11"),
]


@pytest.mark.parametrize(("path", "value", "text"), ABSURD)
def test_an_absurd_configuration_is_one_short_error(path: str, value: object, text: str) -> None:
    config = changed(sam2.config(sam2.HIERA_TINY).to_dict(), path.split("."), value)

    with pytest.raises(ExportError, match=f"config.json: .*{text}") as caught:
        configured_size(config, is_edgetam=False)

    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


JUNK: list[object] = [
    *(0, -1, 3, 10**30, 0.5, math.inf, math.nan, True, "x", "\x1b[2J"),
    *([], [1, 2, 3, 4], [[]], [None] * 4, {}, {"a": [{}]}),
]


def test_no_value_of_a_configuration_is_an_unexpected_error() -> None:
    for is_edgetam, base in (
        (False, sam2.config(sam2.TOY).to_dict()),
        (True, edgetam.config().to_dict()),
    ):
        for path in paths(base):
            for value in JUNK:
                config = changed(base, path, value)
                try:
                    size = configured_size(config, is_edgetam=is_edgetam)
                except ExportError:
                    continue
                assert size.image_size <= 2048


def test_a_custom_size_has_no_published_name(tmp_path: Path) -> None:
    network, _ = open_network(sam2.save(sam2.model(), tmp_path))

    assert (network.title, network.variant, network.name) == ("SAM 2", "custom", "")


@pytest.mark.parametrize(
    ("tensors", "title"),
    [
        (("memory_encoder.a", "occlusion_spatial_embedding_parameter"), "SAM 2.1"),
        (("memory_encoder.a", "memory_attention.b"), "SAM 2"),
    ],
)
def test_a_model_for_videos_gives_its_networks_for_images(
    tmp_path: Path, tensors: tuple[str, ...], title: str
) -> None:
    sam2.save(sam2.model(), tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    save_file({**load_file(weights), **{name: torch.zeros(1) for name in tensors}}, weights)
    content = changed(json.loads(config.read_text()), ["model_type"], "sam2_video")
    config.write_text(json.dumps(content))

    network, _ = open_network(tmp_path)

    assert network.title == title


def test_the_version_of_a_model_for_images_is_in_its_configuration() -> None:
    tensors = {"mask_decoder.conv_s0.weight": torch.zeros(1)}

    assert version_of(tensors, {"enable_occlusion_spatial_embedding": True}) == "2.1"
    assert version_of(tensors, {"enable_occlusion_spatial_embedding": False}) == "2"
    assert version_of(tensors, {"enable_occlusion_spatial_embedding": []}) == ""
    assert version_of(tensors, None) == ""


def test_a_configuration_of_another_size_is_an_error_that_names_a_tensor(tmp_path: Path) -> None:
    sam2.save(sam2.model(), tmp_path)
    config = tmp_path / "config.json"
    config.write_text(
        json.dumps(changed(json.loads(config.read_text()), ["mask_decoder_config", "mlp_dim"], 65))
    )

    with pytest.raises(ExportError, match=r"mask_decoder\.transformer\.layers\.0\.mlp.* has shape"):
        open_network(tmp_path)


def changed(config: dict[str, Any], path: list[str], value: object) -> dict[str, Any]:
    """Return a copy of a configuration with one value changed."""
    first, *rest = path
    inner = changed(config[first], rest, value) if rest else value
    return {**config, first: inner}


def paths(config: dict[str, Any]) -> Iterator[list[str]]:
    for key, value in config.items():
        yield [key]
        if isinstance(value, dict):
            yield from ([key, *path] for path in paths(value))
