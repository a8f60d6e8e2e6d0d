"""Images that are read window by window, upright and as RGB of 8 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from samserve.core.intervals import Window
from samserve.types import BoolArray, Size, UInt8Array


@dataclass(frozen=True, slots=True)
class GeoReference:
    """Where an image is: ``x = a * column + b * row + c``, ``y = d * column + e * row + f``.

    Column and row are pixels from the outer corner of the first one.  ``crs`` is the reference
    system as GDAL writes it in GeoJSON: a URN, or else WKT; empty if the file has none.
    """

    transform: tuple[float, float, float, float, float, float]
    crs: str


@dataclass(frozen=True, slots=True, eq=False)
class Pixels:
    """A window of an image: uint8 ``[h, w, 3]`` RGB; ``valid`` is bool ``[h, w]``, or None for all.

    Pixels without data, and transparent ones, are white as far as they are transparent, as in
    images that a server decodes; only those that are fully transparent are not valid.
    """

    rgb: UInt8Array
    valid: BoolArray | None = None

    @property
    def empty(self) -> bool:
        """Whether no pixel has data."""
        return self.valid is not None and not self.valid.any()


class TileReader(Protocol):
    """An open image.  Its methods block and may be called from several threads."""

    @property
    def size(self) -> Size:
        """Height and width of the upright image."""

    @property
    def reference(self) -> GeoReference | None:
        """Where the image is, if the file says so."""

    def read(self, window: Window) -> Pixels:
        """Return a window.  Raises `samserve.errors.InvalidRequest` for a corrupt file."""
