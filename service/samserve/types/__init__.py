"""The values that the layers exchange: frozen, without behaviour that needs I/O.

Frames, used in names throughout the package:

* *image*: continuous pixels of the image as displayed (after EXIF orientation), x right, y down,
  the outer corner of the first pixel at (0, 0).
* *crop*: the same, relative to a crop of the image.
* *model*: the square input of the encoder; the model's family defines how an image fills it.
* *low-res*: the grid of the decoder's logits over the model frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from samserve.types.models import DynamicMultimask as DynamicMultimask
from samserve.types.models import ModelCard as ModelCard
from samserve.types.models import ModelInfo as ModelInfo
from samserve.types.models import ModelVersion as ModelVersion
from samserve.types.models import Parity as Parity
from samserve.types.models import TensorSpec as TensorSpec

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]
UInt8Array = npt.NDArray[np.uint8]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Size:
    """Height and width in pixels."""

    height: int
    width: int

    @property
    def pixels(self) -> int:
        """Height times width."""
        return self.height * self.width


class Label(Enum):
    """Whether a point is on the object; the values are SAM's point labels."""

    BACKGROUND = 0
    FOREGROUND = 1


@dataclass(frozen=True, slots=True)
class Point:
    """A point prompt in image pixels."""

    x: float
    y: float
    label: Label


@dataclass(frozen=True, slots=True)
class Box:
    """An axis-aligned box in image pixels, XYXY, ``x_min < x_max`` and ``y_min < y_max``."""

    x_min: float
    y_min: float
    x_max: float
    y_max: float


@dataclass(frozen=True, slots=True, eq=False)
class LogitsMask:
    """Mask input as low-res logits of an earlier result: float32 ``[L, L]``."""

    logits: FloatArray


@dataclass(frozen=True, slots=True)
class CocoRle:
    """COCO compressed run lengths, column-major; ``size`` is that of the mask."""

    size: Size
    counts: str


@dataclass(frozen=True, slots=True)
class BinaryMask:
    """Mask input as an ordinary mask over the whole image."""

    rle: CocoRle


MaskInput = LogitsMask | BinaryMask


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """One object to segment; any combination of points, box and mask, at least one of them."""

    points: tuple[Point, ...] = ()
    box: Box | None = None
    mask: MaskInput | None = None


class MaskFormat(Enum):
    """How the pixels of a mask are encoded; the first three are the reference generator's."""

    COCO_RLE = "coco_rle"
    UNCOMPRESSED_RLE = "uncompressed_rle"
    BINARY_MASK = "binary_mask"
    PNG = "png"
    POLYGONS = "polygons"
    BOX = "box"


@dataclass(frozen=True, slots=True)
class PolygonOptions:
    """Parameters of `MaskFormat.POLYGONS`.

    ``tolerance`` is the maximum distance in pixels between the outline of a mask and its polygon;
    parts and holes of fewer than ``min_area`` pixels are left out.
    """

    tolerance: float = 1.0
    min_area: int = 0


class Multimask(Enum):
    """Which of the decoder's mask tokens are returned; the model family defines AUTO."""

    AUTO = "auto"
    ALL = "all"
    SINGLE = "single"


class HqMode(Enum):
    """How the mask of SAM-HQ's additional token is used: added to a plain mask, alone, or not."""

    ADDED = "added"
    ONLY = "only"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class MaskSelection:
    """The masks that a call requests for each prompt; without a mode, the family's default."""

    multimask: Multimask = Multimask.AUTO
    hq_mode: HqMode | None = None


class Transport(Enum):
    """How tensors are transferred between this process and the engine."""

    IN_PROCESS = "in_process"
    SHARED_MEMORY = "shared_memory"
    MESSAGE = "message"


@dataclass(frozen=True, slots=True)
class EmbeddingKey:
    """The key of an embedding: ids are private to a tenant."""

    tenant: str
    embedding_id: str


@dataclass(frozen=True, slots=True)
class EmbeddingFacts:
    """Metadata of an embedding; ``preprocessing`` is the model's version at encoding time."""

    image_size: Size
    model_name: str
    encoder_digest: str
    preprocessing: str = ""

    @classmethod
    def of(cls, image_size: Size, model: ModelInfo) -> EmbeddingFacts:
        """Return the facts of an image of that size, encoded by *model*."""
        return cls(image_size, model.name, model.encoder_digest, model.preprocessing)

    def computed_by(self, model: ModelInfo) -> bool:
        """Return whether the current encoder of *model* computed the embedding."""
        own = (self.model_name, self.encoder_digest, self.preprocessing)
        return own == (model.name, model.encoder_digest, model.preprocessing)


class Tier(Enum):
    """The tier of the cache that an embedding was found in."""

    LOCAL = "local"
    SHARED = "shared"


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """A cached embedding: immutable named tensors, valid while its lease is held.

    ``expires_at`` is in seconds since the epoch.  ``shared`` is whether the shared tier was known
    to hold it when it was leased.  ``revoked`` is whether it was deleted while it was computed:
    only the calls that waited for it have it.  ``tier`` is where this lease found it.
    """

    tensors: Mapping[str, Array]
    facts: EmbeddingFacts
    expires_at: float
    shared: bool = False
    revoked: bool = False
    tier: Tier = Tier.LOCAL


class Orientation(Enum):
    """Whether to apply the EXIF orientation of the file."""

    EXIF = "exif"
    IGNORE = "ignore"


class RawLayout(Enum):
    """Byte layout of an uncompressed image; rows from the top, no row padding."""

    RGB = "rgb"
    BGR = "bgr"
    GRAY = "gray"

    @property
    def channels(self) -> int:
        """Bytes per pixel."""
        return 1 if self is RawLayout.GRAY else 3


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """A JPEG, PNG or WebP file."""

    data: bytes = field(repr=False)
    orientation: Orientation = Orientation.EXIF


@dataclass(frozen=True, slots=True)
class RawImage:
    """Uncompressed 8-bit pixels."""

    data: bytes = field(repr=False)
    size: Size = Size(0, 0)
    layout: RawLayout = RawLayout.RGB


@dataclass(frozen=True, slots=True)
class ImageDigest:
    """SHA-256 of an encoded file that the server may already have; carries no pixels."""

    sha256: bytes
    orientation: Orientation = Orientation.EXIF


Image = EncodedImage | RawImage | ImageDigest


@dataclass(frozen=True, slots=True)
class UncompressedRle:
    """Run lengths in pixels, column-major, background first; ``size`` is that of the mask."""

    size: Size
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PackedMask:
    """One bit per pixel, row-major, the highest bit of a byte first; zeros fill the last byte."""

    size: Size
    bits: bytes


@dataclass(frozen=True, slots=True)
class PngMask:
    """A PNG file of one bit per pixel, white inside the mask; ``size`` is that of the mask."""

    size: Size
    file: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class Polygon:
    """One part of a mask: float32 ``[n, 2]``, x and y in image pixels, for each of its outlines.

    The last corner of an outline is connected to the first.
    """

    exterior: FloatArray
    holes: tuple[FloatArray, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Polygons:
    """Polygons around a mask; ``iou`` is that of the pixels inside them with those of the mask."""

    size: Size
    polygons: tuple[Polygon, ...]
    iou: float


@dataclass(frozen=True, slots=True)
class NoPixels:
    """A mask of which only the box, the area and the scores are returned."""

    size: Size


Segmentation = CocoRle | UncompressedRle | PackedMask | PngMask | Polygons | NoPixels


@dataclass(frozen=True, slots=True)
class Mask:
    """One mask over the whole image; ``segmentation`` has its pixels in the requested format.

    ``bbox`` is XYWH in image pixels with ``w = x_max - x_min`` of the inclusive extreme pixels, as
    the reference generator writes it; ``area`` counts pixels.
    """

    segmentation: Segmentation
    area: int
    bbox: tuple[float, float, float, float]
    predicted_iou: float
    stability_score: float


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Current contents of the local tier, and its hits, misses and evictions since the start.

    ``quarantined_bytes`` are included in ``bytes``: pending writes may still reach those slots.
    """

    entries: int
    bytes: int
    quarantined_bytes: int
    capacity_bytes: int
    hits: int
    misses: int
    evictions: int
