"""What the use cases are given to work on, and how they want its embedding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from samserve.types import Image, ModelInfo, Size


@dataclass(frozen=True, slots=True)
class EmbeddingRef:
    """An image by the id of its stored embedding."""

    embedding_id: str


@dataclass(frozen=True, slots=True)
class ImageSource:
    """An image given as such, or by its digest."""

    image: Image


Source = EmbeddingRef | ImageSource
Check = Callable[[Size, ModelInfo], None]


@dataclass(frozen=True, slots=True)
class LeaseOptions:
    """How an embedding is leased.

    ``check`` sees the image's size and the model before any model runs and may raise.  With
    ``renew`` the time to live of a stored embedding starts again.  With ``durable``, see
    `EmbeddingStore.lease`.  With ``keep_pixels`` the lease has the pixels of an image that was
    decoded for it.
    """

    check: Check = lambda size, model: None
    renew: bool = False
    durable: bool = False
    keep_pixels: bool = False


DEFAULT_LEASE = LeaseOptions()


@dataclass(frozen=True, slots=True)
class PendingEmbedding:
    """An embedding that is made in the background."""

    embedding_id: str
    image_size: Size
    model: ModelInfo
