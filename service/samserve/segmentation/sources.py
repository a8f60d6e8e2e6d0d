"""Inputs of the use cases: where an embedding comes from, and options of its lease."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from samserve.types import Image, ModelInfo, Size


@dataclass(frozen=True, slots=True)
class EmbeddingRef:
    """An image by the id of its cached embedding."""

    embedding_id: str


@dataclass(frozen=True, slots=True)
class ImageSource:
    """An image by its bytes or its digest."""

    image: Image


Source = EmbeddingRef | ImageSource
Check = Callable[[Size, ModelInfo], None]


@dataclass(frozen=True, slots=True)
class LeaseOptions:
    """Options of an embedding's lease.

    ``check`` is called with the image's size and the model before any inference and may raise.
    ``renew`` restarts the time to live of a cached embedding.  For ``durable`` see
    `EmbeddingCache.lease`.  With ``keep_pixels`` the lease has the pixels of an image that was
    decoded for it.
    """

    check: Check = lambda size, model: None
    renew: bool = False
    durable: bool = False
    keep_pixels: bool = False


DEFAULT_LEASE = LeaseOptions()


@dataclass(frozen=True, slots=True)
class PendingEmbedding:
    """An embedding that is encoded in the background."""

    embedding_id: str
    image_size: Size
    model: ModelInfo
