"""The rules of SAM 2, compared with the original package where it has them."""

from __future__ import annotations

import inspect
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samserve.core.upsampling import upscale_logits
from samserve.engines.fake import MODEL as SAM1_MODEL
from samserve.models.families import SAM2
from samserve.models.families.base import Capabilities, ImageTransform, MaskChoice
from samserve.types import (
    DynamicMultimask,
    FloatArray,
    HqMode,
    Label,
    MaskSelection,
    Multimask,
    Size,
)
from torch.nn import functional

from tests.core import photos
from tests.oracle import meta_sam2

meta_sam2.install()

from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator  # noqa: E402
from sam2.modeling.sam.mask_decoder import MaskDecoder  # noqa: E402
from sam2.modeling.sam.prompt_encoder import PromptEncoder  # noqa: E402
from sam2.sam2_image_predictor import SAM2ImagePredictor  # noqa: E402

MODEL = replace(SAM1_MODEL, family="sam2")
IMAGE = Size(480, 640)
POINTS = np.array([[10.25, 20.5], [333.3, 444.4], [639.0, 0.0]])
BOX = np.array([100.3, 50.7, 640.0, 399.9])
RULE = DynamicMultimask(delta=0.05, thresh=0.98)


def test_image_is_stretched_to_the_model_frame() -> None:
    transform = SAM2.transform(IMAGE, MODEL)

    assert transform == ImageTransform(IMAGE, Size(1024, 1024), 1024, 256)
    assert transform.points_to_model(np.array([320, 120])).tolist() == [512, 256]


@pytest.mark.parametrize("name", ["coffee 1080x1920", "coffee panorama 97x1500"])
def test_image_is_resized_with_antialiasing_and_fills_the_frame(name: str) -> None:
    rgb = photos.odd_sizes()[name]
    planes = torch.from_numpy(rgb.copy()).permute(2, 0, 1)[None]
    resize = {"size": (1024, 1024), "mode": "bilinear", "antialias": True}
    of_transformers = functional.interpolate(planes, **resize)[0].permute(1, 2, 0)
    of_meta = functional.interpolate(planes.float(), **resize)[0].permute(1, 2, 0)

    placed = SAM2.place(rgb, SAM2.transform(Size(*rgb.shape[:2]), MODEL))

    assert (placed.shape, placed.dtype) == ((1024, 1024, 3), np.uint8)
    # In grey levels. The intermediate of both uint8 recipes is rounded, the one of floats is not.
    assert np.abs(placed.astype(int) - of_transformers.numpy()).max() <= 1
    assert np.abs(placed - of_meta.numpy()).max() <= 1.01
    assert np.abs(placed - of_meta.numpy()).mean() <= 0.3


@pytest.fixture(scope="module")
def prompt_encoder() -> PromptEncoder:
    torch.manual_seed(0)
    return PromptEncoder(256, (64, 64), (1024, 1024), 16).eval().requires_grad_(False)


class SparseEmbeddings:
    """The mask decoder of a model: records embedded prompts, and returns given logits."""

    def __init__(self, logits: torch.Tensor | None = None) -> None:
        self.recorded: list[torch.Tensor] = []
        self._logits = torch.zeros(1, 1, 256, 256) if logits is None else logits

    def __call__(self, *, sparse_prompt_embeddings: torch.Tensor, **_: Any) -> tuple[Any, ...]:
        self.recorded.append(sparse_prompt_embeddings)
        return self._logits, self._logits[..., 0, 0], None, None


def predictor(encoder: PromptEncoder, decoder: SparseEmbeddings) -> SAM2ImagePredictor:
    """Return the original predictor with an image of the size `IMAGE`, without its encoder."""
    model = SimpleNamespace(
        image_size=1024, device="cpu", sam_prompt_encoder=encoder, sam_mask_decoder=decoder
    )
    # Deprecated, and no transform of images runs here.
    with mock.patch.object(torch.jit, "script", lambda module: module):
        made = SAM2ImagePredictor(model)
    made._is_image_set, made._orig_hw = True, [(IMAGE.height, IMAGE.width)]
    made._features = {"image_embed": torch.zeros(1, 256, 64, 64), "high_res_feats": []}
    return made


def embedded(encoder: PromptEncoder, coords: FloatArray, labels: FloatArray) -> torch.Tensor:
    """Return the embeddings of points as the exported decoder computes them."""
    tensors = torch.from_numpy(coords), torch.from_numpy(labels)
    result: torch.Tensor = encoder._embed_points(*tensors, pad=False)
    return result


@pytest.mark.parametrize(
    ("point_count", "with_box"), [(1, False), (3, False), (0, True), (1, True), (3, True)]
)
def test_embedded_prompt_matches_that_of_the_original_predictor(
    prompt_encoder: PromptEncoder, point_count: int, with_box: bool
) -> None:
    points, labels = POINTS[:point_count], [1, 0, 1][:point_count]
    decoder = SparseEmbeddings()
    predictor(prompt_encoder, decoder).predict(
        points if point_count else None, labels if point_count else None, BOX if with_box else None
    )
    to_model = SAM2.transform(IMAGE, MODEL).points_to_model
    box = to_model(BOX.reshape(2, 2)).ravel() if with_box else None

    coords, values = SAM2.prompt(to_model(points), [Label(label) for label in labels], box)

    (expected,) = decoder.recorded
    actual = embedded(prompt_encoder, coords[None], values[None])
    assert actual.shape == expected.shape
    assert torch.allclose(actual, expected, atol=1e-4)


def test_prompt_of_a_mask_alone_has_the_two_padding_points_of_the_base_model(
    prompt_encoder: PromptEncoder,
) -> None:
    # `_forward_sam_heads` adds one, and the prompt encoder another.
    padding = torch.zeros(1, 1, 2), -torch.ones(1, 1, dtype=torch.int)
    expected, _ = prompt_encoder(points=padding, boxes=None, masks=None)

    coords, labels = SAM2.prompt(np.empty((0, 2)), [], None)

    assert torch.equal(embedded(prompt_encoder, coords[None], labels[None]), expected)


def test_points_and_labels_must_match() -> None:
    with pytest.raises(ValueError, match="3 points have 2 labels"):
        SAM2.prompt(POINTS, [Label.FOREGROUND] * 2, None)


def test_embedded_grid_prompts_match_the_original_generator(prompt_encoder: PromptEncoder) -> None:
    points = np.random.default_rng(0).random((1000, 2)) * (IMAGE.width, IMAGE.height)
    decoder = SparseEmbeddings(torch.zeros(1000, 1, 4, 4))
    generator = SimpleNamespace(predictor=predictor(prompt_encoder, decoder))
    transforms = generator.predictor._transforms
    in_model = transforms.transform_coords(
        torch.as_tensor(points, dtype=torch.float32), normalize=True, orig_hw=(480, 640)
    )
    generator.predictor._predict(in_model[:, None], torch.ones(1000, 1, dtype=torch.int))

    coords, labels = SAM2.grid_prompts(SAM2.transform(IMAGE, MODEL).points_to_model(points))

    (expected,) = decoder.recorded
    assert (coords.shape, labels.shape) == ((1000, 2, 2), (1000, 2))
    assert torch.allclose(embedded(prompt_encoder, coords, labels), expected, atol=1e-4)


def test_mask_prompt_is_stretched_as_the_image() -> None:
    mask = np.zeros((1080, 1920), bool)
    mask[:540] = True

    logits = SAM2.mask_prompt(mask, SAM2.transform(Size(1080, 1920), MODEL))

    assert (logits.shape, logits.dtype) == ((256, 256), np.float32)
    assert (logits[:128] == 10).all()
    assert (logits[128:] == -10).all()


def chosen(
    mode: Multimask, logits: FloatArray, iou: list[float], rule: DynamicMultimask | None = RULE
) -> list[int]:
    """Return the tokens that are selected for logits ``[4, L, L]``."""
    labels, predicted = np.zeros(2, np.float32), np.array(iou, np.float32)
    choices = SAM2.choose(MaskSelection(mode), labels, predicted, logits, rule)
    assert all(choice == MaskChoice.of(choice.token_index) for choice in choices)
    return [choice.token_index for choice in choices]


def original_choice(logits: FloatArray, iou: list[float], rule: DynamicMultimask) -> int:
    """Return the token of the original's ``multimask_output=False``."""
    decoder = SimpleNamespace(
        dynamic_multimask_stability_delta=rule.delta,
        dynamic_multimask_stability_thresh=rule.thresh,
    )
    decoder._get_stability_scores = lambda each: MaskDecoder._get_stability_scores(decoder, each)
    # Chosen scores tell tokens apart only where they differ; logits always do here.
    numbered = logits.copy()
    numbered[:, 0, 0] = -np.arange(1, 5)
    kept, _ = MaskDecoder._dynamic_multimask_via_stability(
        decoder, torch.from_numpy(numbered)[None], torch.tensor([iou])
    )
    return int(-kept[0, 0, 0, 0]) - 1


def logits_of(inner: int, between: int) -> FloatArray:
    """Return logits ``[4, 8, 8]``: token 0 has pixels above 0.05, and others above -0.05 only."""
    flat = np.full((4, 64), -5, np.float32)
    flat[0, 1 : 1 + inner] = 5
    flat[0, 1 + inner : 1 + inner + between] = 0
    return flat.reshape(4, 8, 8)


@settings(deadline=None)
@given(
    st.integers(0, 63),
    st.integers(0, 63),
    st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4),
    st.sampled_from([0.5, 0.9, 0.95, 0.98, 1.0]),
)
def test_auto_selects_as_the_original_does_by_stability(
    inner: int, between: int, iou: list[float], thresh: float
) -> None:
    logits = logits_of(inner, min(between, 63 - inner))
    rule = DynamicMultimask(0.05, thresh)

    assert chosen(Multimask.AUTO, logits, iou, rule) == [original_choice(logits, iou, rule)]


@pytest.mark.parametrize(
    ("inner", "between", "token"),
    [
        pytest.param(49, 1, 0, id="exactly at the threshold"),
        pytest.param(48, 1, 3, id="just below the threshold"),
        pytest.param(0, 0, 0, id="empty"),
        pytest.param(0, 1, 3, id="empty at the upper level only"),
        pytest.param(63, 0, 0, id="no uncertain pixel"),
    ],
)
def test_auto_keeps_a_stable_single_mask(inner: int, between: int, token: int) -> None:
    iou = [0.9, 0.1, 0.2, 0.3]

    assert chosen(Multimask.AUTO, logits_of(inner, between), iou) == [token]


def test_levels_of_stability_are_exclusive() -> None:
    logits = np.full((4, 8, 8), -0.05, np.float32)
    assert chosen(Multimask.AUTO, logits, [0, 0, 1, 0]) == [0]  # no pixel above -0.05: empty

    logits[0] = 0.05
    assert chosen(Multimask.AUTO, logits, [0, 0, 1, 0]) == [2]  # none above 0.05: unstable


def test_auto_without_the_rule_is_the_single_mask() -> None:
    assert chosen(Multimask.AUTO, logits_of(1, 50), [0.1, 0.9, 0.9, 0.9], None) == [0]


@pytest.mark.parametrize(
    ("mode", "expected"), [(Multimask.ALL, [1, 2, 3]), (Multimask.SINGLE, [0])]
)
def test_tokens_of_all_and_single_do_not_depend_on_stability(
    mode: Multimask, expected: list[int]
) -> None:
    assert chosen(mode, logits_of(1, 50), [0.1, 0.2, 0.3, 0.4]) == expected
    assert SAM2.masks_per_prompt(MaskSelection(mode)) == len(expected)


def test_first_of_equally_good_masks_is_selected_and_never_nan() -> None:
    assert chosen(Multimask.AUTO, logits_of(1, 50), [0, 0.4, 0.4, 0.1]) == [1]
    assert chosen(Multimask.AUTO, logits_of(1, 50), [0, float("nan"), 0.4, 0.1]) == [2]


@pytest.mark.parametrize("image", [Size(427, 640), Size(1201, 97), Size(3, 5), Size(64, 64)])
def test_logits_are_upsampled_in_one_step(image: Size) -> None:
    sides = SimpleNamespace(image_size=256, mask_size=64)
    logits = np.random.default_rng(0).normal(0, 10, (64, 64)).astype(np.float32)
    expected = functional.interpolate(
        torch.from_numpy(logits)[None, None],
        (image.height, image.width),
        mode="bilinear",
        align_corners=False,
    )[0, 0].numpy()

    upsampling = SAM2.upsampling(SAM2.transform(image, sides))

    assert np.abs(upscale_logits(logits, upsampling) - expected).max() <= 2e-5


def test_returned_logits_are_limited_as_in_the_original(prompt_encoder: PromptEncoder) -> None:
    logits = torch.linspace(-100, 100, 256 * 256).reshape(1, 1, 256, 256)
    returned = predictor(prompt_encoder, SparseEmbeddings(logits)).predict(POINTS[:1], [1])[2]

    assert SAM2.max_returned_logit == returned.max() == -returned.min()


def test_defaults_match_the_reference() -> None:
    generator = inspect.signature(SAM2AutomaticMaskGenerator.__init__).parameters
    multimask_count = (
        inspect.signature(MaskDecoder.__init__).parameters["num_multimask_outputs"].default
    )

    assert all(generator[name].default == value for name, value in asdict(SAM2.automask).items())
    assert SAM2.mask_threshold == generator["mask_threshold"].default
    assert (SAM2.mask_tokens, len(SAM2.multimask_tokens)) == (multimask_count + 1, multimask_count)
    assert SAM2.capabilities == Capabilities(points=True, boxes=True, masks=True, automask=True)
    assert SAM2.object_score


def test_automask_keeps_masks_above_the_iou_and_at_or_above_the_stability() -> None:
    assert SAM2.iou_passes([0.7, 0.8, 0.95], 0.8).tolist() == [False, False, True]
    assert SAM2.stability_passes([0.8, 0.9, np.nan], 0.9).tolist() == [False, True, False]


def test_one_mask_of_automask_is_that_of_auto() -> None:
    assert SAM2.automask_single is Multimask.AUTO


def test_hq_mode_is_no_capability() -> None:
    assert not SAM2.capabilities.hq_mode
    selection = MaskSelection(Multimask.SINGLE, HqMode.OFF)
    assert SAM2.masks_per_prompt(selection) == 1
