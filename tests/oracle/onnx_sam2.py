"""ONNX files in place of SAM 2's networks, so that the code of the original runs on them.

``SAM2ImagePredictor`` and ``SAM2AutomaticMaskGenerator`` call ``forward_image``, a prompt encoder
and a mask decoder of a model. Here they run the two graphs of the model contract; the decoder's
choice of masks is the original's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from samserve.core import geometry
from samserve.types import Size
from torch import Tensor

from tests.oracle import meta_sam2
from tests.oracle.onnx_sam import DecoderInputs, session, without_threshold

EMBEDDING = ("high_res_0", "high_res_1", "image_embedding")


class OnnxSam2:
    """A model for the original pipeline; embeddings are used as the encoder returns them."""

    backbone_stride = 16
    directly_add_no_mem_embed = False  # the graph has added it
    device = torch.device("cpu")

    def __init__(
        self, encoder: Path, decoder: Path, *, stability_delta: float = 0.05, threads: int = 1
    ) -> None:
        self._encoder = session(encoder, threads)
        self.image_size: int = self._encoder.get_inputs()[0].shape[1]
        self.sam_prompt_encoder = PromptCollector(self.image_size // 4)
        self.sam_mask_decoder = OnnxMaskDecoder(session(decoder, threads), stability_delta)

    def forward_image(self, planes: Tensor) -> list[Tensor]:
        """Run the encoder on stretched images uint8 ``[1,3,S,S]``."""
        outputs = self._encoder.run(EMBEDDING, {"image": planes.permute(0, 2, 3, 1).numpy()})
        return [torch.from_numpy(output) for output in outputs]

    def _prepare_backbone_features(self, features: list[Tensor]) -> tuple[Any, ...]:
        return None, [each.flatten(2).permute(2, 0, 1) for each in features], None, None


class PromptCollector:
    """Converts prompts to tokens: points, box corners among them, then one padding point."""

    def __init__(self, mask_side: int) -> None:
        self.mask_side = mask_side

    def get_dense_pe(self) -> None:
        """Return nothing: the graph contains the position encoding."""

    def __call__(
        self, *, points: tuple[Tensor, Tensor], boxes: None, masks: Tensor | None
    ) -> tuple[DecoderInputs, None]:
        """Collect P prompts: coords ``[P,n,2]``, labels ``[P,n]``, masks ``[P,1,L,L]``."""
        coords, labels = points
        count = len(coords)
        padded = (
            torch.cat([coords.float(), torch.zeros(count, 1, 2)], 1),
            torch.cat([labels.float(), -torch.ones(count, 1)], 1),
        )
        no_masks = torch.zeros(0, 1, self.mask_side, self.mask_side)
        mask_input = (no_masks if masks is None else masks.float()).transpose(0, 1)
        tokens = (part.unsqueeze(0).numpy() for part in padded)
        return DecoderInputs(*tokens, mask_input.numpy()), None


class OnnxMaskDecoder:
    """Runs the decoder; masks are chosen by the code of the original."""

    training = False
    use_multimask_token_for_obj_ptr = False
    dynamic_multimask_via_stability = True
    dynamic_multimask_stability_thresh = 0.98

    def __init__(self, decoder: Any, stability_delta: float) -> None:
        self._session = decoder
        self.dynamic_multimask_stability_delta = stability_delta
        self._original = meta_sam2._module("modeling.sam.mask_decoder").MaskDecoder

    def __call__(self, **inputs: Any) -> tuple[Tensor, ...]:
        """Run ``MaskDecoder.forward``."""
        outputs: tuple[Tensor, ...] = self._original.forward(self, **inputs)
        return outputs

    def _dynamic_multimask_via_stability(self, *outputs: Tensor) -> tuple[Tensor, Tensor]:
        chosen: tuple[Tensor, Tensor] = self._original._dynamic_multimask_via_stability(
            self, *outputs
        )
        return chosen

    def _get_stability_scores(self, logits: Tensor) -> Tensor:
        scores: Tensor = self._original._get_stability_scores(self, logits)
        return scores

    def predict_masks(
        self,
        *,
        image_embeddings: Tensor,
        sparse_prompt_embeddings: DecoderInputs,
        high_res_features: Sequence[Tensor],
        **_: Any,
    ) -> tuple[Tensor, ...]:
        """Return logits ``[P,4,L,L]``, IoUs, placeholders for tokens, and object scores."""
        embedding = (*high_res_features, image_embeddings)
        prompts = sparse_prompt_embeddings
        feeds = {
            **{name: each.numpy() for name, each in zip(EMBEDDING, embedding, strict=True)},
            "point_coords": prompts.coords,
            "point_labels": prompts.labels,
            "mask_input": prompts.masks,
            **without_threshold(self._session),
        }
        names = ["low_res_logits", "predicted_iou", "object_score_logits"]
        logits, iou, score = (
            torch.from_numpy(output[0]) for output in self._session.run(names, feeds)
        )
        return logits, iou, iou, score


def stretched(image: np.ndarray, side: int) -> np.ndarray:
    """Resize an image uint8 ``[H,W,3]`` as samserve does; the original resizes floats."""
    # A copy, since torch warns of arrays that cannot be written to.
    return geometry.resize_image(np.ascontiguousarray(image), Size(side, side)).copy()


def auto_mask(sam: OnnxSam2, image_rgb: np.ndarray, **options: Any) -> list[dict[str, Any]]:
    """Return the records of the original generator for an RGB image uint8 ``[H,W,3]``."""
    generator = meta_sam2.generator(sam, **options)
    _pass_pixels(generator.predictor, sam.image_size)
    records: list[dict[str, Any]] = generator.generate(image_rgb)
    return records


def _pass_pixels(predictor: Any, side: int) -> None:
    """Make a predictor pass stretched pixels to the model: the graph normalises them."""
    transforms = predictor._transforms
    transforms.to_tensor = lambda image: torch.from_numpy(stretched(image, side).copy()).permute(
        2, 0, 1
    )
    transforms.transforms = torch.nn.Identity()
