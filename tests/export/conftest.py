"""A pair of models, exported from a checkpoint of the original implementation.

Most tests use a small model frame, which has 16 times fewer cells and pixels but runs the same
code.  `TINY` has the published frame, `MOBILE` the other image encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from samserve.export.checkpoint import open_network
from samserve.export.onnx_export import UNCAST, export_encoder
from samserve.export.onnx_file import serialized
from samserve.export.pipeline import ExportOptions, export

from tests.oracle import photos
from tests.oracle.sam import (
    FOREGROUND,
    MOBILE,
    SMALL,
    TINY,
    Sam,
    SamPredictor,
    Size,
    build_sam,
)
from tests.sample_images import encode

PHOTOS: tuple[Callable[[], np.ndarray], ...] = (
    photos.coffee_427x640,
    photos.retina_1411x1411,
    photos.hubble_1800x1200,
)


@dataclass(frozen=True)
class View:
    """A photo as both implementations embed it.

    ``original`` and ``uncast`` are embeddings float32 ``[1,256,grid,grid]``, ``stored`` is float16.
    """

    photo: np.ndarray
    predictor: SamPredictor
    image: np.ndarray
    image_size: np.ndarray
    original: np.ndarray
    uncast: np.ndarray
    stored: np.ndarray

    @cached_property
    def file(self) -> bytes:
        """The photo as an encoded file; cached, since encoding is slow."""
        return encode(self.photo)


@dataclass(frozen=True)
class Pair:
    """The original Sam, its checkpoint, and the repository with the export."""

    original: Sam
    checkpoint: Path
    repository: Path

    @property
    def grid(self) -> int:
        """Cells along a side of the model frame."""
        grid: int = self.original.prompt_encoder.image_embedding_size[0]
        return grid

    @property
    def encoder_path(self) -> Path:
        """Path of the exported encoder."""
        return self.repository / "pair_encoder" / "1" / "model.onnx"

    @property
    def decoder_path(self) -> Path:
        """Path of the exported decoder."""
        return self.repository / "pair_decoder" / "1" / "model.onnx"

    @cached_property
    def decoder(self) -> onnxruntime.InferenceSession:
        """A session with the exported decoder."""
        return session(self.decoder_path)

    @cached_property
    def comparable_encoder(self) -> onnxruntime.InferenceSession:
        """A session with an encoder that also returns its embedding in float32."""
        encoder = export_encoder(open_network(self.checkpoint)[0], keep_uncast=True)
        return session(serialized(encoder))

    @cached_property
    def views(self) -> tuple[View, ...]:
        """The three photos, embedded by both implementations."""
        return tuple(self._view(make()) for make in PHOTOS)

    def embed(self, image: np.ndarray, image_size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Run the exported encoder: embeddings in float16, and in float32 before the cast."""
        names = ["image_embedding", f"image_embedding{UNCAST}"]
        feeds = {"image": image, "image_size": image_size}
        stored, uncast = self.comparable_encoder.run(names, feeds)
        return stored, uncast

    def _view(self, photo: np.ndarray) -> View:
        predictor = SamPredictor(self.original)
        predictor.set_image(photo)
        image, image_size = encoder_inputs(predictor, photo)
        stored, uncast = self.embed(image, image_size)
        original = predictor.features.numpy()
        return View(photo, predictor, image, image_size, original, uncast, stored)


def encoder_inputs(predictor: SamPredictor, photo: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the encoder's inputs ``image`` and ``image_size`` for a photo."""
    side = predictor.model.image_encoder.img_size
    # Noise in the padding, which must not affect the result.
    image = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), np.uint8)
    resized = predictor.transform.apply_image(photo)
    image[0, : resized.shape[0], : resized.shape[1]] = resized
    return image, np.array([resized.shape[:2]], np.int32)


def session(model: Path | bytes) -> onnxruntime.InferenceSession:
    """Open a session with the same number of threads as torch."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="session", autouse=True)
def _one_thread_in_a_worker(request: pytest.FixtureRequest) -> Iterator[None]:
    """Use one thread if tests run in several processes, which would compete for the cores."""
    before = torch.get_num_threads()
    if hasattr(request.config, "workerinput"):
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


LARGE = (0.3, 0.35, 0.3, 0.3)
"""Area ratios of a small SAM's masks at which the masks of every prompt can be compared."""

SMALL_PAIR = pytest.param((SMALL, LARGE), id="small")
TINY_PAIR = pytest.param((TINY, FOREGROUND), id="tiny", marks=pytest.mark.slow)
MOBILE_PAIR = pytest.param((MOBILE, FOREGROUND), id="mobile", marks=pytest.mark.slow)

every_encoder = pytest.mark.parametrize(
    "pair", [SMALL_PAIR, TINY_PAIR, MOBILE_PAIR], indirect=True, scope="session"
)
"""For tests that depend only on the image encoder."""

small_and_tiny = pytest.mark.parametrize(
    "pair", [SMALL_PAIR, TINY_PAIR], indirect=True, scope="session"
)
"""For tests that need a second model frame only."""

small_only = pytest.mark.parametrize("pair", [SMALL_PAIR], indirect=True, scope="session")
"""For tests that can use any pair."""


MakePair = Callable[[Size, tuple[float, ...]], Pair]


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> MakePair:
    """A cached function that creates the pair of a size, with masks of the given area ratios."""

    @cache
    def create(size: Size, foreground: tuple[float, ...]) -> Pair:
        folder = tmp_path_factory.mktemp("pair")
        original = build_sam(size, photos.calibration(), foreground=foreground)
        torch.save(original.state_dict(), folder / "sam.pth")
        export(folder / "sam.pth", ExportOptions(folder / "repository", "pair", check_parity=False))
        return Pair(original, folder / "sam.pth", folder / "repository")

    return create


@pytest.fixture(
    scope="session",
    params=[
        SMALL_PAIR,
        TINY_PAIR,
        # The mask decoder is the same.
        pytest.param((MOBILE, FOREGROUND), id="mobile", marks=pytest.mark.long),
    ],
)
def pair(request: pytest.FixtureRequest, pairs: MakePair) -> Pair:
    """A pair with its reference."""
    return pairs(*request.param)
