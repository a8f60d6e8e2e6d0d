"""The rules of SAM 1, compared with `segment-anything` where it has them."""

from __future__ import annotations

import inspect
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samserve.engines.fake import MODEL
from samserve.models.families import SAM1
from samserve.models.families.base import Capabilities, ImageTransform, MaskChoice
from samserve.types import FloatArray, Label, MaskSelection, Multimask, Size

from tests.core import photos
from tests.oracle import torchvision_shim

torchvision_shim.install()

from segment_anything import SamAutomaticMaskGenerator  # noqa: E402
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam  # noqa: E402
from segment_anything.utils.onnx import SamOnnxModel  # noqa: E402
from segment_anything.utils.transforms import ResizeLongestSide  # noqa: E402

NO_POINTS = np.empty((0, 2))
POINT = np.array([[10.0, 20.0]])
BOX = np.array([1.0, 2.0, 3.0, 4.0])
LOGITS = np.zeros((4, 256, 256), dtype=np.float32)
ious = st.lists(st.floats(-10, 10, width=32), min_size=4, max_size=4)


def selected(mode: Multimask, token_count: int, iou: list[float]) -> list[int]:
    """Return the tokens that are selected for a prompt of *token_count* sparse tokens."""
    labels, predicted = np.zeros(token_count, np.float32), np.array(iou, np.float32)
    chosen = SAM1.choose(MaskSelection(mode), labels, predicted, LOGITS, None)
    assert all(choice == MaskChoice.of(choice.token_index) for choice in chosen)
    return [choice.token_index for choice in chosen]


def test_image_fills_the_longest_side_of_the_model_frame() -> None:
    transform = SAM1.transform(Size(480, 640), MODEL)

    assert transform == ImageTransform(Size(480, 640), Size(768, 1024), 1024, 256)
    assert transform.points_to_model(np.array([0.5, 240])).tolist() == [0.8, 384]


@pytest.mark.parametrize("name", ["coffee 1080x1920", "coffee panorama 97x1500"])
def test_image_is_resized_as_in_the_reference_and_zero_padded(name: str) -> None:
    rgb = photos.odd_sizes()[name]
    resized = ResizeLongestSide(1024).apply_image(rgb)

    padded = SAM1.place(rgb, SAM1.transform(Size(*rgb.shape[:2]), MODEL))

    assert np.array_equal(padded[: len(resized)], resized)
    assert padded.shape == (1024, 1024, 3)
    assert not padded[len(resized) :].any()


def test_points_and_labels_must_match() -> None:
    with pytest.raises(ValueError, match="1 points have 2 labels"):
        SAM1.prompt(POINT, [Label.FOREGROUND] * 2, None)


@pytest.fixture(scope="module")
def prompt_encoder() -> PromptEncoder:
    torch.manual_seed(0)
    return PromptEncoder(256, (64, 64), (1024, 1024), 16).eval().requires_grad_(False)


def embedded(encoder: PromptEncoder, coords: FloatArray, labels: FloatArray) -> torch.Tensor:
    """Return the embeddings of points as the exported decoder computes them."""
    exported = SimpleNamespace(img_size=1024, model=SimpleNamespace(prompt_encoder=encoder))
    result: torch.Tensor = SamOnnxModel._embed_points(
        exported, torch.from_numpy(coords), torch.from_numpy(labels)
    )
    return result


@pytest.mark.parametrize("point_count", [0, 1, 3])
@pytest.mark.parametrize("with_box", [False, True])
def test_embedded_prompt_matches_the_reference(
    prompt_encoder: PromptEncoder, point_count: int, with_box: bool
) -> None:
    rng = np.random.default_rng(point_count)
    points, labels = rng.random((point_count, 2)) * 1024, [1, 0, 1][:point_count]
    box = np.array([100.3, 200.7, 640.1, 900.9]) if with_box else None
    points_in = torch.tensor(points[None]).float(), torch.tensor(labels, dtype=torch.int)[None]
    expected, _ = prompt_encoder(
        points=points_in if point_count else None,
        boxes=None if box is None else torch.tensor(box[None]).float(),
        masks=torch.zeros(1, 1, 256, 256),
    )

    coords, values = SAM1.prompt(points, [Label(label) for label in labels], box)

    assert len(coords) == len(values) == expected.shape[1]
    if len(coords):
        actual = embedded(prompt_encoder, coords[None], values[None])
        assert torch.allclose(actual, expected, atol=1e-6)


def test_embedded_grid_prompts_match_the_reference(prompt_encoder: PromptEncoder) -> None:
    points = np.random.default_rng(0).random((1000, 2)) * 1024
    expected, _ = prompt_encoder(
        points=(torch.from_numpy(points)[:, None], torch.ones(len(points), 1, dtype=torch.int)),
        boxes=None,
        masks=None,
    )

    coords, labels = SAM1.grid_prompts(points)

    actual = embedded(prompt_encoder, coords, labels)
    assert torch.equal(actual, expected)


def test_mask_prompt_covers_the_image_and_not_the_padding() -> None:
    logits = SAM1.mask_prompt(np.ones((1080, 1920), bool), SAM1.transform(Size(1080, 1920), MODEL))

    assert (logits.shape, logits.dtype) == ((256, 256), np.float32)
    assert (logits[:144] == 10).all()
    assert (logits[144:] == -10).all()


@settings(deadline=None)
@given(ious, st.integers(0, 40))
def test_auto_selects_the_token_of_return_single_mask(iou: list[float], count: int) -> None:
    model = SimpleNamespace(model=SimpleNamespace(mask_decoder=SimpleNamespace(num_mask_tokens=4)))
    numbered = torch.arange(4.0).reshape(1, 4, 1, 1)
    chosen, _ = SamOnnxModel.select_masks(model, numbered, torch.tensor([iou]), count)

    assert selected(Multimask.AUTO, count, iou) == [int(chosen)]


@pytest.mark.parametrize(
    ("mode", "expected"), [(Multimask.ALL, [1, 2, 3]), (Multimask.SINGLE, [0])]
)
@pytest.mark.parametrize("count", [0, 2, 3])
def test_tokens_of_all_and_single_do_not_depend_on_the_prompt(
    mode: Multimask, expected: list[int], count: int
) -> None:
    assert selected(mode, count, [0.9, 0.1, 0.2, 0.3]) == expected
    assert SAM1.masks_per_prompt(MaskSelection(mode)) == len(expected)


def test_auto_of_a_mask_without_points_is_the_best_of_three() -> None:
    assert selected(Multimask.AUTO, 0, [0.9, 0.1, 0.8, 0.3]) == [2]
    assert SAM1.masks_per_prompt(MaskSelection()) == 1


def test_defaults_match_the_reference() -> None:
    generator = inspect.signature(SamAutomaticMaskGenerator.__init__).parameters
    multimask_count = (
        inspect.signature(MaskDecoder.__init__).parameters["num_multimask_outputs"].default
    )

    assert all(generator[name].default == value for name, value in asdict(SAM1.automask).items())
    assert SAM1.mask_threshold == Sam.mask_threshold
    assert (SAM1.mask_tokens, len(SAM1.multimask_tokens)) == (multimask_count + 1, multimask_count)
    assert SAM1.capabilities == Capabilities(points=True, boxes=True, masks=True, automask=True)


def test_automask_keeps_masks_above_the_iou_and_at_or_above_the_stability() -> None:
    assert SAM1.iou_passes([0.8, 0.9, 0.95], 0.9).tolist() == [False, False, True]
    assert SAM1.stability_passes([0.8, 0.9, np.nan], 0.9).tolist() == [False, True, False]
