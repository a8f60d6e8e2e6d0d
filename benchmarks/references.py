"""Models with seeded weights, and what a user would run them with instead of samserve.

SAM 2 and EdgeTAM run in the transformers library, MobileSAM in `segment-anything` with its own
image encoder.
"""

from __future__ import annotations

import functools
import importlib
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco

POINTS_PER_BATCH = 64
_PIXEL_MEAN, _PIXEL_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Masks:
    """Masks as COCO run lengths, and how many candidates each filter of AutoMask left."""

    rles: list[dict[str, Any]]
    counts: Mapping[str, int]


class Reference(ABC):
    """One model in PyTorch; it keeps the embedding of the last image."""

    @abstractmethod
    def embed(self, image: bytes) -> None:
        """Decode an image file and encode it."""

    @abstractmethod
    def predict(self, point: tuple[float, float]) -> Masks:
        """Return the single mask of a point in image pixels, from the kept embedding."""

    @abstractmethod
    def automask(self, image: bytes, options: Mapping[str, float]) -> Masks:
        """Decode an image file and segment everything."""


class Sam2Reference(Reference):
    """A `Sam2Model` or an `EdgeTamModel` of the transformers library."""

    def __init__(self, checkpoint: Path) -> None:
        import torch  # noqa: PLC0415 - only in the process of a reference

        transformers = importlib.import_module("transformers")
        self.model = transformers.AutoModel.from_pretrained(checkpoint).eval()
        self.side = self.model.config.prompt_encoder_config.image_size
        self.mean, self.std = (
            torch.tensor(each).reshape(1, 3, 1, 1) for each in (_PIXEL_MEAN, _PIXEL_STD)
        )
        self.size = (0, 0)
        self.embedding: list[Any] = []

    def embed(self, image: bytes) -> None:
        """See `Reference.embed`."""
        self.encode(_decoded(image))

    def encode(self, pixels: np.ndarray) -> None:
        """Resize as `Sam2ImageProcessor` does, in uint8, and encode RGB ``[h,w,3]``."""
        import torch  # noqa: PLC0415

        self.size = pixels.shape[:2]
        planes = torch.from_numpy(np.array(pixels)).permute(2, 0, 1).unsqueeze(0)
        resized = torch.nn.functional.interpolate(
            planes, (self.side, self.side), mode="bilinear", antialias=True
        )
        normalised = (resized.float() / 255 - self.mean) / self.std
        self.embedding = self.model.get_image_embeddings(normalised)

    def decode(self, points: Any, *, multimask: bool) -> tuple[Any, Any, Any]:
        """Return logits in image pixels, predicted IoUs and low-res logits, ``[P,T,...]``."""
        import torch  # noqa: PLC0415

        output = self.model(
            image_embeddings=self.embedding,
            input_points=points.unsqueeze(0),
            input_labels=torch.ones(1, *points.shape[:2], dtype=torch.int32),
            multimask_output=multimask,
        )
        low_res = output.pred_masks[0]
        logits = torch.nn.functional.interpolate(low_res, self.size, mode="bilinear")
        return logits, output.iou_scores[0], low_res

    def predict(self, point: tuple[float, float]) -> Masks:
        """See `Reference.predict`; ``multimask_output=False`` has SAM 2's dynamic multimask."""
        logits, _, _ = self.decode(self.scaled(np.array([point])), multimask=False)
        return Masks([rle(logits[0, 0] > 0)], {})

    def scaled(self, points: np.ndarray) -> Any:
        """Return points ``[P,1,2]`` in model pixels of points ``[P,2]`` in image pixels."""
        import torch  # noqa: PLC0415

        height, width = self.size
        scale = np.array([self.side / width, self.side / height])
        return torch.from_numpy(points * scale).float().unsqueeze(1)

    def automask(self, image: bytes, options: Mapping[str, float]) -> Masks:
        """Run the generator of `segment-anything` on this model.

        SAM 2's own generator has the same steps unless ``use_m2m`` is set.
        """
        from tests.oracle import generator  # noqa: PLC0415

        running = generator.CountingGenerator(
            _Frame(self.side),
            points_per_batch=POINTS_PER_BATCH,
            output_mode="coco_rle",
            **options,
        )
        running.predictor = Sam2Predictor(self)
        records = running.generate(_decoded(image))
        return Masks([each["segmentation"] for each in records], asdict(running.counts))


class _Frame:
    """What the generator needs to know of a model before its predictor is replaced."""

    mask_threshold = 0.0

    def __init__(self, side: int) -> None:
        self.image_encoder = self
        self.img_size = side


class Sam2Predictor:
    """A `Sam2Reference` with the methods of `SamPredictor` that the generator calls."""

    device = "cpu"

    def __init__(self, reference: Sam2Reference) -> None:
        self.reference = reference
        self.model = _Frame(reference.side)
        self.transform = self

    def set_image(self, pixels: np.ndarray) -> None:
        """Encode an image, RGB ``[h,w,3]``."""
        self.reference.encode(pixels)

    def apply_coords(self, points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Return points ``[P,2]`` unchanged; `predict_torch` scales them."""
        assert size == self.reference.size
        return points

    def predict_torch(
        self, points: Any, labels: Any, multimask_output: bool, return_logits: bool
    ) -> tuple[Any, Any, Any]:
        """Return logits, predicted IoUs and low-res logits of points ``[P,1,2]``."""
        assert return_logits
        assert labels.all()
        scaled = self.reference.scaled(points[:, 0].double().numpy())
        return self.reference.decode(scaled, multimask=multimask_output)

    def reset_image(self) -> None:
        """Do nothing: the embedding is replaced by the next one."""


class Sam1Reference(Reference):
    """A model of `segment-anything`."""

    def __init__(self, checkpoint: Path, size: Any) -> None:
        import torch  # noqa: PLC0415

        oracle = importlib.import_module("tests.oracle.sam")
        self.sam = oracle.original(size)
        self.sam.load_state_dict(torch.load(checkpoint, weights_only=True))
        # TinyViT expands its attention biases when it is switched to eval.
        self.sam.train().eval()
        self.predictor = oracle.SamPredictor(self.sam)

    def embed(self, image: bytes) -> None:
        """See `Reference.embed`."""
        self.predictor.set_image(_decoded(image))

    def predict(self, point: tuple[float, float]) -> Masks:
        """See `Reference.predict`."""
        masks, _, _ = self.predictor.predict(np.array([point]), np.ones(1), multimask_output=False)
        return Masks([rle(masks[0])], {})

    def automask(self, image: bytes, options: Mapping[str, float]) -> Masks:
        """Run the generator of `segment-anything`."""
        from tests.oracle import generator  # noqa: PLC0415

        records, counts = generator.auto_mask(
            self.sam,
            _decoded(image),
            points_per_batch=POINTS_PER_BATCH,
            output_mode="coco_rle",
            **options,
        )
        return Masks([each["segmentation"] for each in records], asdict(counts))


def _decoded(image: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))


def rle(mask: Any) -> dict[str, Any]:
    """Return the COCO run lengths of a mask ``[H,W]``, with counts as text."""
    encoded = coco.encode(np.asfortranarray(np.asarray(mask), dtype=np.uint8))
    return {**encoded, "counts": encoded["counts"].decode()}


@dataclass(frozen=True)
class Candidate:
    """A model of the comparison: how its checkpoint is made, and its reference loaded.

    ``multimask`` is the option of samserve that is ``multimask_output=False`` of the library.
    ``exporting`` is a statement that the exporting process runs first.
    """

    title: str
    multimask: str
    save: Callable[[Path], None]
    load: Callable[[Path], Reference]
    exporting: str = ""


def candidates(*, toy: bool) -> Mapping[str, Candidate]:
    """Return the models by their names in samserve; *toy* ones have a frame of 256 pixels."""
    mobile = "SMALL" if toy else "MOBILE"
    return {
        "sam2.1_hiera_tiny": Candidate(
            "transformers", "auto", functools.partial(_save_sam2, toy=toy), Sam2Reference
        ),
        "edgetam": Candidate(
            "transformers",
            "auto",
            functools.partial(_save_edgetam, toy=toy),
            _load_edgetam,
            # timm imports torchvision.
            exporting="from tests.oracle import edgetam; edgetam.install()",
        ),
        "mobile_sam": Candidate(
            "segment-anything",
            "single",
            functools.partial(_save_sam1, size=mobile),
            functools.partial(_load_sam1, size=mobile),
        ),
    }


def _save_sam2(folder: Path, *, toy: bool) -> None:
    from tests.oracle import sam2  # noqa: PLC0415

    tiny = sam2.Sam2Size(16, (1, 2, 3, 2), 1, (4, 4, 7, 4), (4,), grid=16)
    _save_localised(sam2.model(tiny if toy else sam2.HIERA_TINY), folder)


def _save_edgetam(folder: Path, *, toy: bool) -> None:
    from tests.oracle import edgetam  # noqa: PLC0415

    _save_localised(edgetam.model(grid=16 if toy else 64), folder)


def _save_localised(model: Any, folder: Path) -> None:
    from tests.oracle import photos, sam2_local  # noqa: PLC0415

    sam2_local.localise(model, photos.calibration())
    model.save_pretrained(folder / "checkpoint")


def _save_sam1(folder: Path, *, size: str) -> None:
    import torch  # noqa: PLC0415

    from tests.oracle import photos, sam  # noqa: PLC0415

    built = sam.build_sam(getattr(sam, size), photos.calibration())
    torch.save(built.state_dict(), folder / "checkpoint.pt")


def _load_edgetam(checkpoint: Path) -> Reference:
    from tests.oracle import edgetam  # noqa: PLC0415

    edgetam.install()
    return Sam2Reference(checkpoint)


def _load_sam1(checkpoint: Path, *, size: str) -> Reference:
    return Sam1Reference(checkpoint, getattr(importlib.import_module("tests.oracle.sam"), size))
