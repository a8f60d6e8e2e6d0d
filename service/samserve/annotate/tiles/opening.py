"""The choice of the reader of an image."""

from __future__ import annotations

from contextlib import AbstractContextManager
from importlib.util import find_spec

from samserve.annotate.source import ImageFile, Source
from samserve.annotate.tiles import decoded
from samserve.annotate.tiles.reader import TileReader


def open_image(source: Source, image: ImageFile) -> AbstractContextManager[TileReader]:
    """Open an image: by GDAL if the extra ``samserve[geo]`` is installed, or decoded as a whole.

    Blocks.  Raises `samserve.errors.InvalidRequest` for a file that cannot be read, and, without
    the extra, for one of more than `decoded.MAX_PIXELS`.
    """
    if find_spec("rasterio") is None:
        return decoded.opened(source, image)
    # An optional dependency.
    from samserve.annotate.tiles import gdal  # noqa: PLC0415

    return gdal.opened(source, image)
