"""Results as plain values; sizes are ``(height, width)``, boxes of results ``(x, y, w, h)``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from samserve.client import png_masks
from samserve.client.images import Orientation
from samserve.client.polygons import Polygons
from samserve.core import run_lengths, scanlines
from samserve.types import CocoRle, ModelCard, Size

Xywh = tuple[float, float, float, float]


class EmbedOptions(NamedTuple):
    """The options with which an image was embedded; responses do not repeat them."""

    orientation: Orientation = "exif"
    durable: bool = False
    converted_from: str = ""


@dataclass(frozen=True, slots=True)
class Embedding:
    """A cached embedding; ``image_size`` is the frame of coordinates.

    ``cached`` is whether it was cached before the call; ``stored`` is where it is: ``shared`` with
    other servers, ``local`` to this one, ``pending`` after `Client.prefetch`, or empty if unknown.
    ``expires_at`` is None while it is pending.  ``timings_ms`` are the stages of the call that
    returned it.  ``orientation`` is the requested orientation of the image; an image that is sent
    again for it has the same.  ``durable`` is whether the client requested durability, which it
    requests again if the image is encoded again.  ``converted_from`` is the format of the file,
    such as ``TIFF``, if the client converted it to PNG, and empty if not.
    """

    id: str
    image_size: tuple[int, int]
    model: str
    cached: bool
    expires_at: datetime | None
    stored: str = ""
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    orientation: Orientation = "exif"
    durable: bool = False
    converted_from: str = ""


@dataclass(frozen=True, eq=False)
class Mask:
    """One mask over the whole image.

    Its pixels are in the field of the requested mask format: ``counts``, COCO run lengths;
    ``runs``, uncompressed run lengths; ``bits``, one bit per pixel; ``png``, a file; ``polygons``,
    an approximation whose error it states.  The others are empty.  With the format ``box``, or if
    only logits were requested, all are empty, and ``size`` is ``(0, 0)``.

    ``bbox`` is XYWH with ``w = x_max - x_min`` of the inclusive extreme pixels, as the reference
    writes it; ``token_index`` is that of the decoder's mask token: 0 for the single-mask output, 1
    to 3 for the multimask outputs, 4 for SAM-HQ's mask, alone or added to another; always 0 from
    ``automask``.  ``low_res_logits``, if requested, is float32 ``[n, n]`` with n of
    `Model.mask_side`, and can be used as `Prompt.mask`.
    """

    size: tuple[int, int]
    counts: str = field(repr=False)
    token_index: int
    predicted_iou: float
    stability_score: float
    area: int
    bbox: Xywh
    low_res_logits: npt.NDArray[np.float32] | None = field(default=None, repr=False)
    runs: tuple[int, ...] = field(default=(), repr=False)
    bits: bytes = field(default=b"", repr=False)
    png: bytes = field(default=b"", repr=False)
    polygons: Polygons | None = None

    @property
    def rle(self) -> dict[str, object]:
        """COCO run lengths ``{"size": [h, w], "counts": str}`` for JSON and pycocotools.

        They are encoded here if the mask has another format; raises like `decode`.
        """
        if self.counts:
            return {"size": list(self.size), "counts": self.counts}
        coco = run_lengths.encode(self.decode())
        return {"size": [coco.size.height, coco.size.width], "counts": coco.counts}

    @cached_property
    def array(self) -> npt.NDArray[np.bool_]:
        """Bool ``[h, w]``, decoded at the first access and kept."""
        return self.decode()

    def decode(self) -> npt.NDArray[np.bool_]:
        """Decode to bool ``[h, w]``, one byte per pixel, without keeping it.

        The pixels of polygons are those whose centres are inside.  Raises `ValueError` for a mask
        without pixels.
        """
        size = Size(*self.size)
        if self.counts:
            return run_lengths.decode(CocoRle(size, self.counts))
        if self.runs:
            return scanlines.pixels(self.runs, size)
        if self.bits:
            bits = np.unpackbits(np.frombuffer(self.bits, np.uint8), count=size.pixels)
            return bits.astype(np.bool_).reshape(self.size)
        if self.png:
            return png_masks.decode(self.png)
        if self.polygons is not None:
            return self.polygons.decode()
        raise ValueError("this mask has no pixels: only its box or low-res logits were requested")


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """The result of ``predict``: for each prompt its masks, in token order.

    ``object_scores`` has one value for each prompt: the model's estimate, 0 to 1, that there is an
    object at the prompt, or None for families without it.
    """

    results: list[list[Mask]]
    object_scores: list[float | None]
    embedding: Embedding
    timings_ms: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of ``automask``, over all crops."""

    evaluated_points: int
    total_points: int
    finished_crops: int
    total_crops: int


@dataclass(frozen=True, slots=True, eq=False)
class AutoMaskRecord:
    """A mask found by ``automask``: the prompted grid point and the crop, in image pixels."""

    mask: Mask
    point: tuple[float, float]
    crop_box: Xywh


@dataclass(frozen=True, slots=True)
class FilterCount:
    """The number of candidates before and after a filter."""

    name: str
    in_count: int
    out_count: int


@dataclass(frozen=True, slots=True)
class Summary:
    """The last event of ``automask``."""

    embedding: Embedding
    timings_ms: Mapping[str, float]
    filters: tuple[FilterCount, ...]
    mask_count: int


AutoMaskEvent = Progress | AutoMaskRecord | Summary


@dataclass(frozen=True, slots=True, eq=False)
class AutoMaskResult:
    """The result of ``automask_all``: masks in the reference generator's order, and a summary."""

    records: list[AutoMaskRecord]
    summary: Summary


@dataclass(frozen=True, slots=True)
class Model:
    """A served model.

    ``capabilities`` are names such as ``points`` and ``automask``; ``transport`` is how tensors are
    transferred between the server and its engine: ``in_process``, ``shared_memory``, ``message``,
    or empty if unknown; ``card`` describes the source of the model.  ``digest`` identifies all
    weights, ``encoder_digest`` those that embeddings belong to; empty if unknown.  ``mask_tokens``
    is the number of mask tokens of the decoder, 0 if unknown.  ``automask_defaults`` are the values
    of AutoMask options that a call for this model omits.
    """

    name: str
    family: str
    digest: str
    description: str
    image_side: int
    mask_side: int
    embedding_bytes: int
    capabilities: tuple[str, ...]
    default: bool
    transport: str
    card: ModelCard
    encoder_digest: str = ""
    mask_tokens: int = 0
    automask_defaults: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Catalog:
    """The models of a server, its limits of requests and the default model's of AutoMask."""

    models: tuple[Model, ...]
    limits: Mapping[str, int]
    automask_defaults: Mapping[str, float]
