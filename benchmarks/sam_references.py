"""What a user of SAM would run instead of samserve, on the same weights.

`Torch` is `segment-anything`. `PlainGraph` is its generator and predictor on ONNX Runtime, with
the image encoder of the export and a decoder of the same tensors that is `segment-anything`'s own.
`OnnxFlow` is the way that its README describes: the decoder with the upscaling of masks in the
graph. `Transformers` is the model of that library.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import onnxruntime
from pycocotools import mask as coco

from benchmarks.photographs import decoded
from benchmarks.references import Masks, rle
from benchmarks.sam_model import SamModel

POINTS_PER_BATCH = 64


class Torch:
    """`segment-anything` in PyTorch."""

    def __init__(self, model: SamModel) -> None:
        import torch  # noqa: PLC0415 - only in the process of a reference

        oracle = importlib.import_module("tests.oracle.sam")
        self.sam = oracle.original(getattr(oracle, model.size))
        self.sam.load_state_dict(torch.load(model.checkpoint, weights_only=True))
        self.predictor = oracle.SamPredictor(self.sam)

    def embed(self, image: bytes) -> None:
        """Decode an image file and encode it; the embedding stays in the predictor."""
        self.predictor.set_image(decoded(image))

    def predict(self, point: tuple[float, float], single: bool) -> Callable[[], Masks]:
        """Return the masks of a point in image pixels; run lengths are not part of the time."""
        masks, iou, _ = self.predictor.predict(np.array([point]), np.ones(1))
        # Of a point, the mask with the highest predicted IoU.
        chosen = masks[int(np.argmax(iou))][None] if single else masks
        return lambda: Masks([rle(each) for each in chosen], {})

    def automask(self, image: bytes, options: Mapping[str, Any]) -> Masks:
        """Decode an image file and segment everything in it."""
        generator = importlib.import_module("tests.oracle.generator")
        records, counts = generator.auto_mask(
            self.sam,
            decoded(image),
            points_per_batch=POINTS_PER_BATCH,
            output_mode="coco_rle",
            **options,
        )
        return Masks([each["segmentation"] for each in records], asdict(counts))

    def best_iou(self, image: bytes, points_per_side: int) -> np.ndarray:
        """Return the highest predicted IoU of the multimask outputs of every grid point."""
        import torch  # noqa: PLC0415

        self.embed(image)
        steps = (np.arange(points_per_side) + 0.5) / points_per_side
        height, width = self.predictor.original_size
        points = np.array([[x * width, y * height] for y in steps for x in steps])
        moved = self.predictor.transform.apply_coords(points, (height, width))
        best = []
        for some in np.array_split(moved, max(1, len(moved) // 8)):
            coords = torch.as_tensor(some, dtype=torch.float32)[:, None]
            labels = torch.ones(len(some), 1, dtype=torch.int)
            _, iou, _ = self.predictor.predict_torch(coords, labels, return_logits=True)
            best.append(iou.amax(1).numpy())
        return np.concatenate(best)


class PlainGraph(Torch):
    """The pipeline of `segment-anything` on ONNX files."""

    def __init__(self, model: SamModel, threads: int) -> None:
        onnx_sam = importlib.import_module("tests.oracle.onnx_sam")
        oracle = importlib.import_module("tests.oracle.sam")
        self.sam = onnx_sam.OnnxSam(model.encoder, model.plain, threads=threads)
        self.predictor = oracle.SamPredictor(self.sam)


class OnnxFlow(Torch):
    """Predict by the ONNX model of `segment-anything`; the embedding is that of PyTorch.

    ONNX Runtime's threads spin while they wait, its default, or sleep, as in samserve.
    """

    def __init__(self, model: SamModel, threads: int, *, spinning: bool) -> None:
        super().__init__(model)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
        self.sessions = {
            single: onnxruntime.InferenceSession(model.onnx_flow(single=single), options)
            for single in (True, False)
        }

    def predict(self, point: tuple[float, float], single: bool) -> Callable[[], Masks]:
        """See `Torch.predict`; all four masks if not *single*, as there is no option for three."""
        coords = np.array([[point, (0.0, 0.0)]])
        size = self.predictor.original_size
        grid = self.sam.prompt_encoder.image_embedding_size[0]
        feeds = {
            "image_embeddings": self.predictor.get_image_embedding().numpy(),
            "point_coords": self.predictor.transform.apply_coords(coords, size).astype(np.float32),
            "point_labels": np.array([[1, -1]], np.float32),
            "mask_input": np.zeros((1, 1, 4 * grid, 4 * grid), np.float32),
            "has_mask_input": np.zeros(1, np.float32),
            "orig_im_size": np.array(size, np.float32),
        }
        logits = self.sessions[single].run(["masks"], feeds)[0][0]
        masks = logits > self.sam.mask_threshold
        return lambda: Masks([rle(each) for each in masks[-1 if single else -3 :]], {})


def overlap(masks: list[Any], others: list[Any]) -> tuple[int, float]:
    """Return how many of *masks* are equal to one of *others*, and the least of the best IoUs."""
    if not masks or not others:
        return 0, float("nan")
    known = {_counts(each) for each in others}
    equal = sum(_counts(each) in known for each in masks)
    best = coco.iou([_bytes(m) for m in masks], [_bytes(m) for m in others], [0] * len(others))
    return equal, float(best.max(1).min())


def agreement(masks: list[Any], others: list[Any]) -> str:
    """Return how far two sets of masks are the same, in words."""
    equal, least = overlap(masks, others)
    counts = f"{len(masks)} and {len(others)} masks"
    if equal == len(masks) == len(others):
        return f"{counts}, all equal"
    return f"{counts}, {equal} equal, least IoU {least:.4f}"


def _bytes(mask: Mapping[str, Any]) -> dict[str, Any]:
    return {**mask, "counts": _counts(mask)}


def _counts(mask: Mapping[str, Any]) -> bytes:
    counts = mask["counts"]
    return counts.encode() if isinstance(counts, str) else counts
