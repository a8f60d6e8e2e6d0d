"""Identification of checkpoints by the names of their tensors, and the prefixes of these."""

from __future__ import annotations

import importlib
from functools import cache

import pytest
import torch
from samserve.export.errors import ExportError
from samserve.export.families import _LOADERS
from samserve.export.sources.identification import KINDS, of_names, of_type, training_prefix

from tests.oracle import huggingface, sam2
from tests.oracle.sam import MOBILE, TINY, Size, original

SUPPORTED = "supported are SAM, MobileSAM, SAM-HQ, SAM 2, SAM 2.1 and EdgeTAM"

META_SAM2 = (
    *("image_encoder.trunk.pos_embed_window", "image_encoder.trunk.blocks.0.attn.qkv.weight"),
    *("sam_mask_decoder.conv_s0.weight", "sam_prompt_encoder.no_mask_embed.weight"),
    *("memory_attention.layers.0.norm1.bias", "no_mem_embed"),
)
META_EDGETAM = (
    *("image_encoder.trunk.body.stem.conv1.c.weight", "sam_mask_decoder.conv_s0.weight"),
    "spatial_perceiver.latents",
)


@cache
def names_of(size: Size) -> tuple[str, ...]:
    return tuple(original(size).state_dict())


@cache
def library_names(name: str) -> tuple[str, ...]:
    """Return the names of a model of the transformers library of the default size."""
    library = importlib.import_module("transformers")
    with torch.device("meta"):
        model = getattr(library, f"{name}Model")(getattr(library, f"{name}Config")())
    return tuple(model.state_dict())


@cache
def library_sam_names() -> tuple[str, ...]:
    with torch.device("meta"):
        return tuple(huggingface.model(TINY, 256).state_dict())


@cache
def library_sam2_names() -> tuple[str, ...]:
    with torch.device("meta"):
        library = importlib.import_module("transformers")
        return tuple(library.Sam2Model(sam2.config(sam2.TOY)).state_dict())


def error_of(names: tuple[str, ...]) -> str:
    with pytest.raises(ExportError) as error:
        of_names(names)
    text = str(error.value)
    assert text.isprintable()
    return text


def prefix_error(names: tuple[str, ...]) -> str:
    with pytest.raises(ExportError) as error:
        training_prefix(names)
    text = str(error.value)
    assert text.isprintable()
    return text


def test_every_supported_kind_is_identified_by_its_names() -> None:
    hq = "mask_decoder.hf_token.weight"
    expected = [
        ("sam", names_of(TINY)),
        ("sam", names_of(MOBILE)),
        ("sam", library_sam_names()),
        ("sam2", META_SAM2),
        ("sam2", library_sam2_names()),
        # A checkpoint without one tensor is still that of a SAM 2.
        *(("sam2", tuple({*META_SAM2} - {name})) for name in META_SAM2),
        ("edgetam", META_EDGETAM),
        *(("edgetam", tuple({*META_EDGETAM} - {name})) for name in META_EDGETAM[1:]),
        (
            "edgetam",
            ("vision_encoder.backbone.timm_model.stem_0.conv.weight", "no_memory_embedding"),
        ),
        ("sam_hq", (*names_of(TINY), hq)),
        ("sam_hq", (*names_of(MOBILE), hq)),
        ("sam_hq", library_names("SamHQ")),
    ]

    for loader, names in expected:
        assert of_names(names).loader == loader
        # The order of names has no meaning, and training may have added a prefix.
        assert of_names(names[::-1]).loader == loader
        assert of_names(tuple(f"net.sam.{name}" for name in names)).loader == loader


def test_every_supported_kind_has_a_loader() -> None:
    supported = {kind.loader for kind in KINDS if kind.loader}

    assert supported == _LOADERS.keys()
    assert [kind.loader for kind in KINDS if kind.types and kind.loader] == [
        kind.types[0] for kind in KINDS if kind.types and kind.loader
    ]


@pytest.mark.parametrize(
    ("tensor", "family"),
    [
        ("prompt_encoder.invalid_points.weight", "EfficientSAM"),
        ("mask_decoder.final_output_upscaling_layers.0.0.weight", "EfficientSAM"),
        ("image_encoder.backbone.input_stem.op_list.0.conv.weight", "EfficientViT-SAM"),
        ("image_encoder.features.0.0.c.weight", "EdgeSAM or RepViT-SAM"),
        ("image_encoder.blocks.0.Adapter.channel.0.weight", "a model with adapters"),
        ("image_encoder.blocks.0.MLP_Adapter.D_fc1.weight", "a model with adapters"),
        ("base_model.model.image_encoder.blocks.0.lora_A.default.weight", "a model with adapters"),
    ],
)
def test_a_relative_of_sam_is_named(tensor: str, family: str) -> None:
    """One tensor identifies it: the others have the names of a SAM's."""
    for prefix in ("", "module."):
        text = error_of((*names_of(TINY), f"{prefix}{tensor}"))

        assert text.startswith(f"this looks like {family}")
        assert f"({prefix}{tensor}); {SUPPORTED}" in text


@pytest.mark.parametrize(
    ("names", "family"),
    [
        (("detector.backbone.vision_backbone.trunk.pos_embed",), "SAM 3 or SAM 3.1"),
        (("tracker.sam_mask_decoder.iou_token.weight",), "SAM 3 or SAM 3.1"),
        (("tracker_model.mask_decoder.iou_token.weight",), "SAM 3 or SAM 3.1"),
        (("maskmem_backbone.fuser.layers.0.gamma", *META_SAM2[2:4]), "SAM 3 or SAM 3.1"),
        (("tracker.model.interactive_mask_decoder.iou_token.weight",), "SAM 3.1"),
        (("detector.backbone.vision_backbone.interactive_convs.0.conv.weight",), "SAM 3.1"),
        ((*META_SAM2, "sam_mask_decoder.hf_token.weight"), "HQ-SAM 2"),
        (("image_encoder.trunk.pos_embed", "sam_mask_decoder.iou_token.weight"), "EfficientTAM"),
        (META_SAM2[2:], "SAM 2 or SAM 3 without its image encoder"),
    ],
)
def test_a_relative_of_sam_2_is_named(names: tuple[str, ...], family: str) -> None:
    assert error_of(names).startswith(f"this looks like {family} (")


def test_the_tracker_of_sam_3_is_not_taken_for_sam_2() -> None:
    """In the transformers library it has the same prompt encoder and mask decoder."""
    text = error_of(library_names("Sam3Tracker"))

    assert text.startswith("this looks like SAM 3 or SAM 3.1 (vision_encoder.")


def test_a_checkpoint_that_is_not_a_sam_is_reported_with_some_names() -> None:
    text = error_of(("conv1.weight", "bn1.weight", "layer1.0\n\x1b[31m.weight", "fc.bias"))

    assert text == (
        "this is not a SAM: its 4 tensors are named conv1.weight, bn1.weight, "
        f"layer1.0??[31m.weight ...; {SUPPORTED}"
    )


def test_types_of_configurations_are_identified() -> None:
    loaders = {"sam": "sam", "sam2_video": "sam2", "edgetam_video": "edgetam", "sam_hq": "sam_hq"}

    assert {name: getattr(of_type(name), "loader", None) for name in loaders} == loaders
    assert getattr(of_type("sam3_tracker"), "title", None) == "SAM 3 or SAM 3.1"
    assert of_type("resnet") is of_type(None) is of_type([]) is None


@pytest.mark.parametrize("prefix", ["module.", "model.", "module.model.sam.", "_orig_mod."])
def test_a_prefix_of_training_that_all_names_have_is_found(prefix: str) -> None:
    for names in (names_of(TINY), META_SAM2, library_sam2_names()):
        assert training_prefix(names) == ""
        assert training_prefix(tuple(f"{prefix}{name}" for name in names)) == prefix


def test_another_prefix_is_reported_with_the_option_that_removes_it() -> None:
    text = prefix_error(tuple(f"teacher.sam.{name}" for name in META_SAM2))

    assert text == "all names begin with 'teacher.sam.': add --prefix teacher.sam."


def test_a_prefix_of_most_names_is_reported_with_the_first_other_name() -> None:
    names = (*(f"model.{name}" for name in META_SAM2), "criterion.w", "criterion.b")

    assert prefix_error(names) == (
        "2 of 8 names lack 'model.', such as criterion.w: add --prefix model. to leave them out"
    )


def test_several_prefixes_are_reported() -> None:
    names = tuple(f"{prefix}.{name}" for prefix in ("ema", "model") for name in META_SAM2)

    assert prefix_error(names) == (
        "there are networks under 'ema.', 'model.': choose one with --prefix"
    )
