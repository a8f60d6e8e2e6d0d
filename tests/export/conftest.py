"""One pair, exported from a checkpoint that the original Sam has written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from samserve.export.checkpoint import load_sam
from samserve.export.onnx_export import UNCAST_EMBEDDING, export_encoder
from samserve.export.onnx_file import serialized
from samserve.export.pipeline import ExportOptions, export

from tests.oracle import pictures
from tests.oracle.sam import MOBILE, TINY, VIT_B, Sam, SamPredictor, Size, build_sam

PICTURES: tuple[Callable[[], np.ndarray], ...] = (
    pictures.coffee_427x640,
    pictures.retina_1411x1411,
    pictures.hubble_1800x1200,
)


@dataclass(frozen=True)
class View:
    """A picture as both sides see it.

    ``original`` and ``uncast`` are embeddings float32 ``[1,256,64,64]``, ``stored`` is float16.
    """

    picture: np.ndarray
    predictor: SamPredictor
    image: np.ndarray
    image_size: np.ndarray
    original: np.ndarray
    uncast: np.ndarray
    stored: np.ndarray


@dataclass(frozen=True)
class Pair:
    """The original Sam, its checkpoint, and what was exported from that."""

    original: Sam
    checkpoint: Path
    repository: Path

    @property
    def encoder_path(self) -> Path:
        """The served encoder."""
        return self.repository / "pair_encoder" / "1" / "model.onnx"

    @property
    def decoder_path(self) -> Path:
        """The served decoder."""
        return self.repository / "pair_decoder" / "1" / "model.onnx"

    @cached_property
    def decoder(self) -> onnxruntime.InferenceSession:
        """A session with the served decoder."""
        return session(self.decoder_path)

    @cached_property
    def comparable_encoder(self) -> onnxruntime.InferenceSession:
        """A session with an encoder that also answers its embedding before the cast."""
        encoder = export_encoder(load_sam(self.checkpoint), keep_uncast=True)
        return session(serialized(encoder))

    @cached_property
    def views(self) -> tuple[View, ...]:
        """The three pictures, embedded by both sides."""
        return tuple(self._view(make()) for make in PICTURES)

    def embed(self, image: np.ndarray, image_size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Run the exported encoder: embeddings as stored, and before their cast."""
        names = ["image_embedding", UNCAST_EMBEDDING]
        feeds = {"image": image, "image_size": image_size}
        stored, uncast = self.comparable_encoder.run(names, feeds)
        return stored, uncast

    def _view(self, picture: np.ndarray) -> View:
        predictor = SamPredictor(self.original)
        predictor.set_image(picture)
        # Noise where there is no picture: what lies there must not matter.
        image = np.random.default_rng(0).integers(0, 256, (1, 1024, 1024, 3), np.uint8)
        resized = predictor.transform.apply_image(picture)
        image[0, : resized.shape[0], : resized.shape[1]] = resized
        image_size = np.array([resized.shape[:2]], np.int32)
        stored, uncast = self.embed(image, image_size)
        original = predictor.features.numpy()
        return View(picture, predictor, image, image_size, original, uncast, stored)


def session(model: Path | bytes) -> onnxruntime.InferenceSession:
    """Open a session on two threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


@pytest.fixture(
    scope="session",
    params=[
        pytest.param(TINY, id="tiny"),
        pytest.param(MOBILE, id="mobile", marks=pytest.mark.slow),
        pytest.param(VIT_B, id="vit_b", marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
    ],
)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A pair with its oracle; the real size is slow."""
    folder = tmp_path_factory.mktemp("pair")
    size: Size = request.param
    original = build_sam(size, pictures.calibration())
    torch.save(original.state_dict(), folder / "sam.pth")
    export(folder / "sam.pth", ExportOptions(folder / "repository", "pair", check=False))
    return Pair(original, folder / "sam.pth", folder / "repository")
