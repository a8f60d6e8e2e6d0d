"""Images that are decoded as a whole, by the decoders of the server, and then cut."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from samserve import images
from samserve.annotate.locations import reason_of
from samserve.annotate.source import ImageFile, Source
from samserve.annotate.tiles.reader import GeoReference, Pixels, TileReader
from samserve.client import ImageTooLarge, SamserveClientError
from samserve.client.images import load
from samserve.core.intervals import Window
from samserve.errors import ImageTooLarge as OverLimit
from samserve.errors import InvalidRequest
from samserve.images import ImageLimits
from samserve.system.extras import how_to_install
from samserve.types import EncodedImage, Size, UInt8Array

MAX_PIXELS = 100_000_000
"""Pixels of the largest image that is decoded as a whole, 300 MB."""
_LIMITS = ImageLimits(MAX_PIXELS, MAX_PIXELS)


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """A decoded image: uint8 ``[h, w, 3]`` RGB."""

    rgb: UInt8Array

    @property
    def size(self) -> Size:
        """Height and width of the upright image."""
        return Size(*self.rgb.shape[:2])

    @property
    def reference(self) -> GeoReference | None:
        """None: only GDAL reads it."""
        return None

    def read(self, window: Window) -> Pixels:
        """Return a window."""
        left, top, right, bottom = window
        return Pixels(self.rgb[top:bottom, left:right])


@contextmanager
def opened(source: Source, image: ImageFile) -> Iterator[TileReader]:
    """Decode an image.  Raises `InvalidRequest` for one that is corrupt or too large."""
    try:
        file = load(source.read(image)).data
        yield Decoded(images.decode(EncodedImage(file), _LIMITS))
    except OSError as error:
        raise InvalidRequest("image", reason_of(error)) from error
    except (OverLimit, ImageTooLarge) as error:
        raise InvalidRequest(
            "image",
            f"is larger than {MAX_PIXELS} pixels, which are decoded as a whole; to read it in "
            f"windows: {how_to_install('geo')}",
        ) from error
    except SamserveClientError as error:
        raise InvalidRequest("image", error.message) from error
