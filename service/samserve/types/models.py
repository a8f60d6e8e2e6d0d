"""The description of a served model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class DynamicMultimask:
    """SAM 2's rule for a single mask: if it is unstable, the best multimask output replaces it.

    It is stable if its low-res pixels above ``delta``, divided by those above ``-delta``, are at
    least ``thresh``.
    """

    delta: float
    thresh: float


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, element type and shape (without a batch axis) of one tensor of an embedding."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor, densely packed."""
        return int(self.dtype.itemsize * np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True, slots=True)
class Parity:
    """How much exported models differ from their checkpoint's own networks in float32.

    The IoUs are those of each prompt's best mask, thresholded at 0 and compared on the low-res grid
    inside the image; the best is the one of the three ambiguous masks that the reference chooses.
    ``prompts`` counts those whose masks were compared, neither nearly empty nor full; without any,
    the IoUs are 0.  ``best_mask_mismatch_ratio`` is the fraction of all prompts for which the
    export chooses another; ``embedding_error`` is the largest relative L2 distance of an embedding.
    """

    images: int
    prompts: int
    mean_iou: float
    worst_iou: float
    best_mask_mismatch_ratio: float
    embedding_error: float


@dataclass(frozen=True, slots=True)
class ModelCard:
    """The source of a model and the parity of its export; unknown fields are empty.

    ``variant`` is the published size or ``custom``; ``source_format`` is the naming scheme of the
    checkpoint's tensors and their narrowest type; ``precision`` is that of the image encoder;
    ``license`` is that of the weights; ``parity`` is None if nothing was compared.
    """

    variant: str = ""
    source: str = ""
    source_revision: str = ""
    source_sha256: str = ""
    source_format: str = ""
    precision: str = ""
    exporter: str = ""
    license: str = ""
    parity: Parity | None = None


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The description of a served model, a bundle of graphs.

    ``digest`` identifies the weights of all graphs.  ``encoder_digest`` identifies those of the
    image encoder: an embedding belongs to its encoder, and all decoders of that encoder accept it.
    ``image_size`` is the side of the model frame, ``mask_size`` of the logits.
    ``dynamic_multimask`` is None for a model without that rule.  ``skips_masks`` is whether the
    decoder computes no masks for prompts below thresholds of the predicted IoU.
    """

    name: str
    family: str
    digest: str
    encoder_digest: str
    preprocessing: str
    image_size: int
    mask_size: int
    embedding: tuple[TensorSpec, ...]
    description: str = ""
    card: ModelCard = ModelCard()
    dynamic_multimask: DynamicMultimask | None = None
    skips_masks: bool = False

    @property
    def version(self) -> str:
        """The version in logs and metrics: the first 12 digits of the digest."""
        return self.digest[:12]

    @property
    def embedding_bytes(self) -> int:
        """Bytes of one embedding."""
        return sum(spec.nbytes for spec in self.embedding)


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A version of a model that is installed beside the one in service.

    ``configs`` are the configurations of its graphs, as text.  ``new_bytes`` are those of the
    weights that are not in service yet, ``served_bytes`` those of the version in service.
    """

    model: str
    number: str
    digest: str
    configs: tuple[str, ...]
    new_bytes: int
    served_bytes: int
