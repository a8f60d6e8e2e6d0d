"""One pair, exported from a checkpoint that the original Sam has written.

Most tests take a small model frame: 16 times fewer cells and pixels, and all of the same code.  The
published frame comes with `TINY`, the other image encoder with `MOBILE`.
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
from samserve.export.checkpoint import open_sam
from samserve.export.onnx_export import UNCAST, export_encoder
from samserve.export.onnx_file import serialized
from samserve.export.pipeline import ExportOptions, export

from tests.oracle import pictures
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
from tests.pictures import file_of

PICTURES: tuple[Callable[[], np.ndarray], ...] = (
    pictures.coffee_427x640,
    pictures.retina_1411x1411,
    pictures.hubble_1800x1200,
)


@dataclass(frozen=True)
class View:
    """A picture as both sides see it.

    ``original`` and ``uncast`` are embeddings float32 ``[1,256,grid,grid]``, ``stored`` is float16.
    """

    picture: np.ndarray
    predictor: SamPredictor
    image: np.ndarray
    image_size: np.ndarray
    original: np.ndarray
    uncast: np.ndarray
    stored: np.ndarray

    @cached_property
    def file(self) -> bytes:
        """The picture as a file, which takes a while to write."""
        return file_of(self.picture)


@dataclass(frozen=True)
class Pair:
    """The original Sam, its checkpoint, and what was exported from that."""

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
        encoder = export_encoder(open_sam(self.checkpoint)[0], keep_uncast=True)
        return session(serialized(encoder))

    @cached_property
    def views(self) -> tuple[View, ...]:
        """The three pictures, embedded by both sides."""
        return tuple(self._view(make()) for make in PICTURES)

    def embed(self, image: np.ndarray, image_size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Run the exported encoder: embeddings as stored, and before their cast."""
        names = ["image_embedding", f"image_embedding{UNCAST}"]
        feeds = {"image": image, "image_size": image_size}
        stored, uncast = self.comparable_encoder.run(names, feeds)
        return stored, uncast

    def _view(self, picture: np.ndarray) -> View:
        predictor = SamPredictor(self.original)
        predictor.set_image(picture)
        image, image_size = placed(predictor, picture)
        stored, uncast = self.embed(image, image_size)
        original = predictor.features.numpy()
        return View(picture, predictor, image, image_size, original, uncast, stored)


def placed(predictor: SamPredictor, picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Place a picture in the model frame: the encoder's inputs ``image`` and ``image_size``."""
    side = predictor.model.image_encoder.img_size
    # Noise where there is no picture: what lies there must not matter.
    image = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), np.uint8)
    resized = predictor.transform.apply_image(picture)
    image[0, : resized.shape[0], : resized.shape[1]] = resized
    return image, np.array([resized.shape[:2]], np.int32)


def session(model: Path | bytes) -> onnxruntime.InferenceSession:
    """Open a session on as many threads as torch has."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="session", autouse=True)
def _one_thread_in_a_worker(request: pytest.FixtureRequest) -> Iterator[None]:
    """Where tests run in several processes, more threads only wait for each other."""
    before = torch.get_num_threads()
    if hasattr(request.config, "workerinput"):
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


LARGE = (0.3, 0.35, 0.3, 0.3)
"""What a small SAM's masks have to cover, for those of every prompt to be worth comparing."""

SMALL_PAIR = pytest.param((SMALL, LARGE), id="small")
TINY_PAIR = pytest.param((TINY, FOREGROUND), id="tiny", marks=pytest.mark.slow)
MOBILE_PAIR = pytest.param((MOBILE, FOREGROUND), id="mobile", marks=pytest.mark.slow)

every_encoder = pytest.mark.parametrize(
    "pair", [SMALL_PAIR, TINY_PAIR, MOBILE_PAIR], indirect=True, scope="session"
)
"""For tests of what only the image encoder decides."""

small_and_tiny = pytest.mark.parametrize(
    "pair", [SMALL_PAIR, TINY_PAIR], indirect=True, scope="session"
)
"""For tests that need no more than a second frame."""

small_only = pytest.mark.parametrize("pair", [SMALL_PAIR], indirect=True, scope="session")
"""For tests that need any pair."""


MakePair = Callable[[Size, tuple[float, ...]], Pair]


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> MakePair:
    """Make the pair of a size, whose masks cover some of a picture, once."""

    @cache
    def make(size: Size, foreground: tuple[float, ...]) -> Pair:
        folder = tmp_path_factory.mktemp("pair")
        original = build_sam(size, pictures.calibration(), foreground=foreground)
        torch.save(original.state_dict(), folder / "sam.pth")
        export(folder / "sam.pth", ExportOptions(folder / "repository", "pair", check=False))
        return Pair(original, folder / "sam.pth", folder / "repository")

    return make


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
    """A pair with its oracle."""
    return pairs(*request.param)
