"""Client of a samserve server: asyncio, with a blocking variant.

::

    async with Client("127.0.0.1:50051") as client:
        embedding = await client.embed("photo.jpg")
        prediction = await client.predict(embedding, [Prompt(points=[(320, 240)])])
        mask = prediction.results[0][0].array  # bool [h, w]

Coordinates are continuous pixels of the image as displayed (after EXIF orientation), x right, y
down, the outer corner of the first pixel at (0, 0).
"""

from samserve.client.blocking import SyncClient
from samserve.client.client import Client
from samserve.client.coco_masks import MaskLike
from samserve.client.errors import (
    Cancelled,
    DeadlineExceeded,
    EmbeddingNotFound,
    FieldViolation,
    ImageTooLarge,
    ImageUnreadable,
    Internal,
    InvalidArgument,
    MethodDisabled,
    ModelNotFound,
    NotFound,
    Overloaded,
    PermissionDenied,
    QuotaExceeded,
    ResourceExhausted,
    SamserveClientError,
    Unauthenticated,
    Unavailable,
)
from samserve.client.images import ImageLike, Orientation
from samserve.client.polygons import Polygon, PolygonOptions, Polygons
from samserve.client.requests import AutoMaskOptions, HqMode, MaskFormat, Multimask, Prompt
from samserve.client.results import (
    AutoMaskEvent,
    AutoMaskRecord,
    AutoMaskResult,
    Catalog,
    Embedding,
    FilterCount,
    Mask,
    Model,
    Prediction,
    Progress,
    Summary,
)
from samserve.types import ModelCard, Parity

__all__ = [
    "AutoMaskEvent",
    "AutoMaskOptions",
    "AutoMaskRecord",
    "AutoMaskResult",
    "Cancelled",
    "Catalog",
    "Client",
    "DeadlineExceeded",
    "Embedding",
    "EmbeddingNotFound",
    "FieldViolation",
    "FilterCount",
    "HqMode",
    "ImageLike",
    "ImageTooLarge",
    "ImageUnreadable",
    "Internal",
    "InvalidArgument",
    "Mask",
    "MaskFormat",
    "MaskLike",
    "MethodDisabled",
    "Model",
    "ModelCard",
    "ModelNotFound",
    "Multimask",
    "NotFound",
    "Orientation",
    "Overloaded",
    "Parity",
    "PermissionDenied",
    "Polygon",
    "PolygonOptions",
    "Polygons",
    "Prediction",
    "Progress",
    "Prompt",
    "QuotaExceeded",
    "ResourceExhausted",
    "SamserveClientError",
    "Summary",
    "SyncClient",
    "Unauthenticated",
    "Unavailable",
]
