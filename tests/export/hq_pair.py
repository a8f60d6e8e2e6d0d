"""A SAM-HQ of the original implementation and its export, for tests that compare them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import onnxruntime
import pytest
import torch
from samserve.export.families import sam_hq as family
from samserve.export.families.sam_hq import SamHqNetwork
from samserve.export.onnx_export import UNCAST, export_decoder, export_encoder
from samserve.export.onnx_file import serialized
from samserve.export.sources.source import Checkpoint
from samserve.models.families import SAM_HQ
from samserve.models.families.base import MaskChoice
from samserve.types import HqMode, Label, MaskSelection, Multimask
from torch import Tensor

from tests.export.conftest import encoder_inputs, session
from tests.export.prompts import PromptSet
from tests.oracle import sam_hq
from tests.oracle.onnx_sam import without_threshold
from tests.oracle.sam_hq import Sam, SamPredictor

HQ = 4
"""The index of the HQ token's mask."""

SELECTIONS = [MaskSelection(multimask, mode) for multimask in Multimask for mode in HqMode]

ADDED = MaskSelection(Multimask.ALL, HqMode.ADDED)

NAMES = ("image_embedding", "hq_features")


@dataclass(frozen=True)
class HqView:
    """A photo as both implementations embed it.

    ``original`` and ``uncast`` are the tensors of the embedding in float32, ``stored`` in float16,
    all ``[1,...]`` and in the order of `NAMES`.
    """

    predictor: SamPredictor
    image: np.ndarray
    image_size: np.ndarray
    original: tuple[np.ndarray, ...]
    uncast: tuple[np.ndarray, ...]
    embedding: tuple[np.ndarray, ...]

    @property
    def stored(self) -> np.ndarray:
        """The first tensor of the embedding."""
        return self.embedding[0]


@dataclass(frozen=True)
class HqOutput:
    """Of each prompt: logits ``[P,5,side,side]``, predicted IoUs ``[P,5]`` and labels ``[P,N]``."""

    logits: np.ndarray
    iou: np.ndarray
    labels: np.ndarray

    def chosen(self, prompt: int, selection: MaskSelection) -> Sequence[MaskChoice]:
        """Return the masks that the gateway returns for a prompt."""
        return SAM_HQ.choose(
            selection, self.labels[prompt], self.iou[prompt], self.logits[prompt], None
        )


class HqPair:
    """The original, the networks that were loaded from its checkpoint, and the graphs."""

    def __init__(self, original: Sam, photos: Sequence[Callable[[], np.ndarray]]) -> None:
        self.original, self._photos = original, photos
        self.network: SamHqNetwork = family.load(Checkpoint(dict(original.state_dict())))

    @cached_property
    def encoder(self) -> onnxruntime.InferenceSession:
        """A session with an encoder that also returns the embedding in float32."""
        return session(serialized(export_encoder(self.network, keep_uncast=True)))

    @cached_property
    def decoder(self) -> onnxruntime.InferenceSession:
        """A session with the exported decoder."""
        return session(serialized(export_decoder(self.network)))

    @cached_property
    def views(self) -> tuple[HqView, ...]:
        """The photos, embedded by both implementations."""
        return tuple(self._view(make()) for make in self._photos)

    def embed(
        self, image: np.ndarray, image_size: np.ndarray
    ) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
        """Run the exported encoder: the embedding in float16, and in float32 before the cast."""
        names = [*NAMES, *(name + UNCAST for name in NAMES)]
        outputs = self.encoder.run(names, {"image": image, "image_size": image_size})
        return tuple(outputs[:2]), tuple(outputs[2:])

    def decode(
        self,
        views: Sequence[HqView],
        sets: Sequence[PromptSet],
        *,
        features: float = 1.0,
    ) -> list[HqOutput]:
        """Decode B photos with P prompts each in one call, as the gateway does.

        *features* multiplies the HQ features.
        """
        prompts = [_tokens(one) for one in sets]
        side = self.network.shapes.mask_size
        masks = [
            np.zeros((0, side, side), "f4") if one.masks is None else one.masks[:, 0].numpy()
            for one in sets
        ]
        feeds = {
            name: np.concatenate([view.embedding[index] for view in views])
            for index, name in enumerate(NAMES)
        }
        feeds["hq_features"] = feeds["hq_features"] * np.float16(features)
        feeds["point_coords"] = np.stack([coords for coords, _ in prompts])
        feeds["point_labels"] = np.stack([labels for _, labels in prompts])
        feeds["mask_input"] = np.stack(masks)
        feeds |= without_threshold(self.decoder, len(views))
        logits, iou = self.decoder.run(["low_res_logits", "predicted_iou"], feeds)
        return [HqOutput(logits[row], iou[row], prompts[row][1]) for row in range(len(views))]

    def _view(self, photo: np.ndarray) -> HqView:
        predictor = SamPredictor(self.original)
        predictor.set_image(photo)
        image, image_size = encoder_inputs(predictor, photo)
        features = sam_hq.hq_features(
            self.original, predictor.features, predictor.interm_features[0]
        )
        original = (predictor.features.numpy(), features.numpy())
        stored, uncast = self.embed(image, image_size)
        return HqView(predictor, image, image_size, original, uncast, stored)


def count(prompts: PromptSet) -> int:
    """Return the number of prompts."""
    parts = (prompts.coords, prompts.boxes, prompts.masks)
    return next(len(part) for part in parts if part is not None)


def answer(
    view: HqView, prompts: PromptSet, index: int, *, multimask: bool, hq_only: bool
) -> tuple[Tensor, float, Tensor]:
    """Return the original's logits at the size of the photo, predicted IoU and low-res logits.

    The predictor returns one mask for every prompt.
    """
    logits, iou, low_res = view.predictor.predict_torch(
        *_one(prompts, index), multimask, return_logits=True, hq_token_only=hq_only
    )
    assert logits.shape[:2] == iou.shape == (1, 1)
    return logits[0, 0], float(iou), low_res[0, 0]


def all_masks(view: HqView, prompts: PromptSet, index: int) -> tuple[Tensor, Tensor]:
    """Return the original's low-res logits ``[5,side,side]`` and predicted IoUs ``[4]``."""
    predictor = view.predictor
    sam = predictor.model
    coords, labels, boxes, masks = _one(prompts, index)
    points = None if coords is None else (coords, labels)
    with torch.no_grad():
        sparse, dense = sam.prompt_encoder(points, boxes, masks)
        logits, iou = sam.mask_decoder.predict_masks(
            image_embeddings=predictor.features,
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            hq_features=torch.from_numpy(view.original[1]),
        )
    return logits[0], iou[0]


def upsampled(view: HqView, low_res: np.ndarray) -> Tensor:
    """Return low-res logits at the size of the photo; the original upsamples them."""
    predictor = view.predictor
    logits: Tensor = predictor.model.postprocess_masks(
        torch.from_numpy(low_res)[None, None], predictor.input_size, predictor.original_size
    )
    return logits[0, 0]


def equal_pixels(logits: Tensor, expected: Tensor) -> float:
    """Return the fraction of pixels that are equal in two masks.

    The masks are those of the threshold 0, and those at which 30 % of the expected mask are
    foreground: the former compare little if they are nearly empty or nearly full.
    """
    quantile = float(np.quantile(expected[::4, ::4].numpy(), 0.7))
    return min(
        float(((logits > threshold) == (expected > threshold)).float().mean())
        for threshold in (0.0, quantile)
    )


def assert_same_answers(view: HqView, prompts: PromptSet, output: HqOutput) -> None:
    """Check for every selection that masks, their tokens and predicted IoUs are the same."""
    ambiguous = output.labels.shape[1] <= 2
    for index in range(count(prompts)):
        expected = expected_answers(view, prompts, index)
        for selection in SELECTIONS:
            chosen = output.chosen(index, selection)
            answers = expected[selection.hq_mode, _multimask(selection, ambiguous)]
            if selection.multimask is Multimask.AUTO:
                # One of the plain masks, if there are three.
                answers = [max(answers, key=lambda each: each[2])]
            assert [choice.token_index for choice in chosen] == [token for token, _, _ in answers]
            for choice, (_, logits, iou) in zip(chosen, answers, strict=True):
                ours = upsampled(view, choice.logits(output.logits[index]))
                assert equal_pixels(ours, logits) >= 0.9999
                assert output.iou[index, choice.iou_token] == pytest.approx(iou, abs=1e-4)


def assert_same_refined_answers(
    pair: HqPair, first: Sequence[PromptSet], more: Sequence[PromptSet]
) -> None:
    """Check the answers for *more* prompts with the masks of the *first* ones, on every photo."""
    ours = [
        np.stack(
            [
                output.chosen(index, ADDED)[0].logits(output.logits[index])
                for index in range(count(prompts))
            ]
        )
        for prompts, output in zip(first, pair.decode(pair.views, first), strict=True)
    ]
    original = [
        torch.stack(
            [
                answer(view, prompts, index, multimask=True, hq_only=False)[2]
                for index in range(count(prompts))
            ]
        )
        for view, prompts in zip(pair.views, first, strict=True)
    ]
    outputs = pair.decode(
        pair.views,
        [
            replace(prompts, masks=torch.from_numpy(masks)[:, None])
            for prompts, masks in zip(more, ours, strict=True)
        ],
    )
    for view, prompts, masks, output in zip(pair.views, more, original, outputs, strict=True):
        assert_same_answers(view, replace(prompts, masks=masks[:, None]), output)


def _multimask(selection: MaskSelection, ambiguous: bool) -> bool:
    return selection.multimask is Multimask.ALL or (
        selection.multimask is Multimask.AUTO and ambiguous
    )


Answers = dict[tuple[HqMode, bool], list[tuple[int, Tensor, float]]]
"""Of every mode, with and without multimask output: token, logits and predicted IoU of masks."""


def expected_answers(view: HqView, prompts: PromptSet, index: int) -> Answers:
    """Return the original's masks for a prompt, at the size of the photo."""
    low_res, ious = all_masks(view, prompts, index)
    plain = [
        (token, upsampled(view, low_res[token].numpy()), float(ious[token])) for token in range(HQ)
    ]
    answers: Answers = {(HqMode.OFF, True): plain[1:], (HqMode.OFF, False): plain[:1]}
    for multimask in (False, True):
        for mode in (HqMode.ADDED, HqMode.ONLY):
            only = mode is HqMode.ONLY
            logits, iou, _ = answer(view, prompts, index, multimask=multimask, hq_only=only)
            answers[mode, multimask] = [(HQ, logits, iou)]
    return answers


def _one(prompts: PromptSet, index: int) -> list[Tensor | None]:
    """Return coordinates, labels, boxes and masks of one prompt, each with one row or None."""
    parts = (prompts.coords, prompts.labels, prompts.boxes, prompts.masks)
    return [None if part is None or index >= len(part) else part[index, None] for part in parts]


def _tokens(prompts: PromptSet) -> tuple[np.ndarray, np.ndarray]:
    """Return coordinates ``[P,N,2]`` and labels ``[P,N]`` by the rules of the family."""
    arranged = []
    for index in range(count(prompts)):
        points = np.empty((0, 2)) if prompts.coords is None else prompts.coords[index].numpy()
        values = [] if prompts.labels is None else prompts.labels[index].tolist()
        box = None if prompts.boxes is None else prompts.boxes[index].numpy()
        arranged.append(SAM_HQ.prompt(points, [Label(int(value)) for value in values], box))
    coords, labels = zip(*arranged, strict=True)
    return np.stack(coords), np.stack(labels)
