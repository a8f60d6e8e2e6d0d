"""Names of a SAM's tensors: original ones and those of the transformers library."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from samserve.export.errors import ExportError
from samserve.export.families.base import Naming
from samserve.export.families.sam1_names import original_names
from samserve.export.sam.config import config_from_state
from samserve.export.sam.model import Sam
from torch import Tensor

from tests.oracle import huggingface
from tests.oracle.sam import MOBILE, TINY, Size, original

SHARED = "shared_image_embedding.positional_embedding"
TIED = "prompt_encoder.shared_embedding.positional_embedding"

State = dict[str, Tensor]


def numbered(names: list[str]) -> State:
    """Return tensors that are all different."""
    return {name: torch.tensor([float(number)]) for number, name in enumerate(names)}


@cache
def names_of(size: Size) -> list[str]:
    return list(original(size).state_dict())


@pytest.fixture(scope="module")
def library() -> State:
    """Every tensor of a SamModel under its own name."""
    with torch.device("meta"):
        names = list(huggingface.model(TINY, 256).state_dict())
    state = numbered(names)
    assert {SHARED, TIED} <= state.keys()
    return {**state, TIED: state[SHARED]}


def error_of(state: State) -> str:
    with pytest.raises(ExportError) as error:
        original_names(state)
    text = str(error.value)
    assert text.isprintable()
    return text


def assert_same(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] is value, name


def test_every_name_of_the_library_is_converted(library: State) -> None:
    expected = {
        huggingface.original_name(name): value for name, value in library.items() if name != TIED
    }

    naming, found = original_names(library)

    assert naming is Naming.TRANSFORMERS
    assert_same(found, expected)
    assert sorted(found) == sorted(names_of(TINY))


def test_layers_with_two_digits_are_renamed() -> None:
    """ViT-H has 32 blocks."""
    names = ["vision_encoder.layers.31.mlp.lin2.bias", "vision_encoder.layers.31.layer_norm2.bias"]

    _, found = original_names(numbered(names))

    assert list(found) == [
        "image_encoder.blocks.31.mlp.lin2.bias",
        "image_encoder.blocks.31.norm2.bias",
    ]


@pytest.mark.parametrize("remaining", [SHARED, TIED])
def test_one_of_two_tied_names_is_enough(library: State, remaining: str) -> None:
    dropped = {SHARED: TIED, TIED: SHARED}[remaining]
    state = {name: value for name, value in library.items() if name != dropped}

    _, found = original_names(state)

    assert (
        found["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"] is library[remaining]
    )
    assert sorted(found) == sorted(names_of(TINY))


@pytest.mark.parametrize("other", [torch.tensor([-1.0]), torch.zeros(2)])
def test_tied_tensors_that_differ_are_rejected(library: State, other: Tensor) -> None:
    assert error_of({**library, TIED: other}).startswith(f"{TIED} differs from {SHARED}")


def test_an_unknown_name_of_the_library_is_rejected(library: State) -> None:
    wrong = [
        *("mask_decoder.transformer.layers.0.layer_norm5.bias", "vision_encoder.pos_embed.weight"),
        "old.vision_encoder.pos_embed",
    ]

    for name in wrong:
        text = error_of({**library, name: torch.ones(1)})
        assert text == f"not a SAM of the transformers library: unexpected tensor {name}"


def test_the_unused_classifier_of_a_mobile_sam_is_removed() -> None:
    state = dict(original(MOBILE).state_dict())
    head = ["norm_head.weight", "norm_head.bias", "head.weight", "head.bias"]
    unused = {f"image_encoder.{name}" for name in head}
    assert unused <= state.keys()

    naming, found = original_names(state)

    assert naming is Naming.ORIGINAL
    assert_same(found, {name: value for name, value in state.items() if name not in unused})
    assert found.keys() == Sam(config_from_state(found)).state_dict().keys()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_normalisation_of_sam_is_removed(dtype: torch.dtype) -> None:
    """The original registers it as ``[3,1,1]``; in half precision it is rounded."""
    state = numbered(names_of(TINY))
    own = {
        "pixel_mean": torch.tensor([123.675, 116.28, 103.53]).reshape(3, 1, 1).to(dtype),
        "pixel_std": torch.tensor([58.395, 57.12, 57.375], dtype=dtype).reshape(1, 3, 1, 1),
    }

    _, found = original_names({**own, **state})

    assert_same(found, state)


def test_another_normalisation_is_rejected() -> None:
    wrong = [
        ("pixel_mean", [103.53, 116.28, 123.675]),
        ("pixel_std", [58.395, 57.12, 57.0]),
        ("pixel_std", [58.395, 57.12]),
    ]

    for name, values in wrong:
        text = error_of({**numbered(names_of(TINY)), name: torch.tensor(values)})
        assert text.startswith(f"{name} differs from SAM's")


def test_a_checkpoint_without_decoder_is_rejected() -> None:
    names = [name for name in names_of(TINY) if name.startswith("image_encoder.")]
    _, found = original_names(numbered(names))

    with pytest.raises(ExportError, match="not a SAM checkpoint"):
        Sam(config_from_state(found))
