"""ONNX files in place of Sam's networks, so that the code of `segment-anything` runs on them.

``SamPredictor`` and ``SamAutomaticMaskGenerator`` call ``preprocess``, ``image_encoder``,
``prompt_encoder``, ``mask_decoder`` and ``postprocess_masks`` of a model. Here the first four
prepare and run the two graphs of the model contract; the last is that of `segment-anything`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from tests.oracle import torchvision_shim

torchvision_shim.install()

from segment_anything.modeling import Sam  # noqa: E402


@dataclass(frozen=True)
class EncoderInputs:
    """The encoder's inputs: uint8 ``[1,S,S,3]`` and int32 ``[1,2]``."""

    image: np.ndarray
    image_size: np.ndarray


@dataclass(frozen=True)
class DecoderInputs:
    """The decoder's inputs beside the embedding; B is 1."""

    coords: np.ndarray
    labels: np.ndarray
    masks: np.ndarray


class OnnxSam:
    """A model for the reference pipeline; embeddings are used as the encoder returns them."""

    mask_threshold = Sam.mask_threshold
    image_format = Sam.image_format
    postprocess_masks = Sam.postprocess_masks
    device = torch.device("cpu")

    def __init__(self, encoder: Path | bytes, decoder: Path | bytes, *, threads: int = 1) -> None:
        self.image_encoder = OnnxImageEncoder(session(encoder, threads))
        self.prompt_encoder = PromptCollector(self.image_encoder.img_size // 4)
        self.mask_decoder = OnnxMaskDecoder(session(decoder, threads))

    def preprocess(self, resized: Tensor) -> EncoderInputs:
        """Pad a resized image uint8 ``[1,3,h,w]``; the graph does the rest."""
        side = self.image_encoder.img_size
        height, width = resized.shape[2:]
        image = np.zeros((1, side, side, 3), np.uint8)
        image[:, :height, :width] = resized.permute(0, 2, 3, 1).numpy()
        return EncoderInputs(image, np.array([[height, width]], np.int32))


class OnnxImageEncoder:
    """Runs the encoder; the reference reads ``img_size``."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.session = session
        self.img_size: int = session.get_inputs()[0].shape[1]

    def __call__(self, inputs: EncoderInputs) -> Tensor:
        """Return the embedding in the dtype that the model declares."""
        feeds = {"image": inputs.image, "image_size": inputs.image_size}
        return torch.from_numpy(self.session.run(["image_embedding"], feeds)[0])


class PromptCollector:
    """Converts prompts to tokens: points, then one padding point or the box's two corners."""

    def __init__(self, mask_side: int) -> None:
        self.mask_side = mask_side

    def get_dense_pe(self) -> None:
        """Return nothing: the graph contains the position encoding."""

    def __call__(
        self,
        points: tuple[Tensor, Tensor] | None,
        boxes: Tensor | None,
        masks: Tensor | None,
    ) -> tuple[DecoderInputs, None]:
        """Collect P prompts: coords ``[P,n,2]``, labels ``[P,n]``, boxes ``[P,4]``, masks."""
        count = next(len(part) for part in (points and points[0], boxes, masks) if part is not None)
        coords, labels = [torch.zeros(count, 0, 2)], [torch.zeros(count, 0)]
        if points is not None:
            coords.append(points[0].float())
            labels.append(points[1].float())
        if points is not None and boxes is None:
            coords.append(torch.zeros(count, 1, 2))
            labels.append(torch.full((count, 1), -1.0))
        if boxes is not None:
            coords.append(boxes.reshape(-1, 2, 2).float())
            labels.append(torch.tensor([2.0, 3.0]).expand(count, 2))
        no_masks = torch.zeros(0, 1, self.mask_side, self.mask_side)
        mask_input = (no_masks if masks is None else masks.float()).transpose(0, 1)
        tokens = (torch.cat(parts, 1).unsqueeze(0).numpy() for parts in (coords, labels))
        return DecoderInputs(*tokens, mask_input.numpy()), None


class OnnxMaskDecoder:
    """Runs the decoder and selects tokens as the reference does."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.session = session

    def __call__(
        self,
        *,
        image_embeddings: Tensor,
        image_pe: None,
        sparse_prompt_embeddings: DecoderInputs,
        dense_prompt_embeddings: None,
        multimask_output: bool,
    ) -> tuple[Tensor, Tensor]:
        """Return logits ``[P,3,256,256]`` and IoUs ``[P,3]``, or those of token 0 alone."""
        feeds = {
            "image_embedding": image_embeddings.numpy(),
            "point_coords": sparse_prompt_embeddings.coords,
            "point_labels": sparse_prompt_embeddings.labels,
            "mask_input": sparse_prompt_embeddings.masks,
            **without_threshold(self.session),
        }
        outputs = self.session.run(["low_res_logits", "predicted_iou"], feeds)
        tokens = slice(1, None) if multimask_output else slice(0, 1)
        logits, iou = (torch.from_numpy(output[0][:, tokens]) for output in outputs)
        return logits, iou


def without_threshold(
    decoder: onnxruntime.InferenceSession, batch: int = 1
) -> dict[str, np.ndarray]:
    """Return the input of a decoder that asks for the masks of all prompts, if it has one."""
    inputs = {each.name: each.shape for each in decoder.get_inputs()}
    if "iou_threshold" not in inputs:
        return {}
    return {"iou_threshold": np.full((batch, inputs["iou_threshold"][1]), -np.inf, np.float32)}


def session(model: Path | bytes, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
