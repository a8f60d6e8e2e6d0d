"""Inference on exported graphs with onnxruntime, as in the service."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
from numpy.typing import NDArray

Array = NDArray[Any]
SIDE = 1024
LOW_RES = 256


class OnnxPair:
    """An encoder and a decoder, for one image at a time."""

    def __init__(self, encoder: Path, decoder: Path, threads: int = 2) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._encoder, self._decoder = (
            onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            for path in (encoder, decoder)
        )

    def embed(self, image: Array, size: tuple[int, int]) -> Array:
        """Embed uint8 ``[1024,1024,3]`` with valid (h, w) to float16 ``[1,256,64,64]``."""
        feeds = {"image": image[None], "image_size": np.array([size], np.int32)}
        embedding: Array = self._encoder.run(["image_embedding"], feeds)[0]
        return embedding

    def decode(
        self, embedding: Array, coords: Array, labels: Array, masks: Array | None = None
    ) -> tuple[Array, Array]:
        """Decode ``[P,N,2]``, ``[P,N]``, ``[M,256,256]`` to ``[P,4,256,256]`` and IoU ``[P,4]``."""
        mask_input = np.zeros((0, LOW_RES, LOW_RES), np.float32) if masks is None else masks
        feeds = {
            "image_embedding": embedding,
            "point_coords": coords[None].astype(np.float32),
            "point_labels": labels[None].astype(np.float32),
            "mask_input": mask_input[None].astype(np.float32),
        }
        logits, iou = self._decoder.run(["low_res_logits", "predicted_iou"], feeds)
        return logits[0], iou[0]


def fit(image: Array) -> tuple[Array, tuple[int, int]]:
    """Resize uint8 RGB to a longest side of 1024 and pad; return it and the valid (h, w)."""
    scale = SIDE / max(image.shape[:2])
    height, width = (int(extent * scale + 0.5) for extent in image.shape[:2])
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    canvas = np.zeros((SIDE, SIDE, 3), np.uint8)
    canvas[:height, :width] = cv2.resize(image, (width, height), interpolation=interpolation)
    return canvas, (height, width)
