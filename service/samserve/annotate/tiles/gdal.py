"""Images that GDAL reads in windows: GeoTIFF, JPEG 2000, PNG, JPEG and others.

A file that is compressed as a whole, such as a PNG, is decoded once from its start if tiles are
read row by row, as the block cache holds the rows of a row of tiles, up to `_MAX_CACHE_BYTES`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import rasterio
from rasterio import windows
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.env import set_gdal_config
from rasterio.errors import CRSError, NotGeoreferencedWarning, RasterioError

from samserve.annotate.locations import is_local, reason_of
from samserve.annotate.source import ImageFile, Source
from samserve.annotate.tiles import decoded, orientation
from samserve.annotate.tiles.reader import GeoReference, Pixels, TileReader
from samserve.annotate.tiles.samples import Scale, blended
from samserve.core.intervals import Window
from samserve.errors import InvalidRequest
from samserve.types import Array, BoolArray, Size, UInt8Array

_MIN_CACHE_BYTES, _MAX_CACHE_BYTES = 64 << 20, 384 << 20
_ROWS_IN_CACHE = 2560
_SAMPLED_SIDE = 1024
_PREFIX_BYTES = 8
# By the first bytes of a file.  No format whose files name other files or URLs, as GDAL's virtual
# ones do.
_DRIVERS = {
    b"II*\0": "GTiff",
    b"MM\0*": "GTiff",
    b"II+\0": "GTiff",
    b"MM\0+": "GTiff",
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"\0\0\0\x0cjP": "JP2OpenJPEG",
    b"\xff\x4f\xff\x51": "JP2OpenJPEG",
    b"RIFF": "WEBP",
}
_COLOURS = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
_URN = "urn:ogc:def:crs:"
# GeoJSON has longitude before latitude, which EPSG's definition has not.
_LONGITUDE_FIRST = {4326: f"{_URN}OGC:1.3:CRS84", 4269: f"{_URN}OGC:1.3:CRS83"}


@contextmanager
def opened(source: Source, image: ImageFile) -> Iterator[TileReader]:
    """Open an image; one that GDAL does not read is decoded as a whole.

    Raises `InvalidRequest`.  The thread that opens the image must be the one that uses it.
    """
    with ExitStack() as stack:
        try:
            reader: TileReader = stack.enter_context(_opened(source, image))
        except _Unsupported:
            reader = stack.enter_context(decoded.opened(source, image))
        try:
            yield reader
        except RasterioError as error:
            raise InvalidRequest("image", f"is corrupt: {reason_of(error)}") from error


class _Unsupported(Exception):
    """GDAL does not read the file, or not as RGB."""


@contextmanager
def _opened(source: Source, image: ImageFile) -> Iterator[Raster]:
    file_system, path = source.located(image)
    driver, turned = _header(source, image)
    with ExitStack() as stack:
        try:
            # A URL is never given to GDAL, which would fetch it by itself.
            opener = None if is_local(file_system) else file_system
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NotGeoreferencedWarning)
                stack.enter_context(rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"))
                dataset = stack.enter_context(rasterio.open(path, driver=driver, opener=opener))
        except RasterioError as error:
            raise _Unsupported from error
        if not dataset.count or dataset.colorinterp[0] is ColorInterp.cyan:
            raise _Unsupported
        if np.dtype(dataset.dtypes[0]).kind == "c":
            raise InvalidRequest(
                "image", "has complex samples: expected whole or floating point numbers"
            )
        row_bytes = dataset.width * dataset.count * np.dtype(dataset.dtypes[0]).itemsize
        wanted = max(_MIN_CACHE_BYTES, min(_ROWS_IN_CACHE * row_bytes, _MAX_CACHE_BYTES))
        set_gdal_config("GDAL_CACHEMAX", wanted)
        yield Raster.of(dataset, turned)


def _header(source: Source, image: ImageFile) -> tuple[str, int]:
    """Return the name of GDAL's driver, and the EXIF orientation."""
    try:
        with source.open(image) as file:
            start = file.read(_PREFIX_BYTES)
            file.seek(0)
            drivers = [name for prefix, name in _DRIVERS.items() if start.startswith(prefix)]
            turned = orientation.orientation(file)
    except OSError as error:
        raise InvalidRequest("image", reason_of(error)) from error
    if not drivers:
        raise _Unsupported
    return drivers[0], turned


@dataclass(frozen=True, slots=True, eq=False)
class Raster:
    """An open dataset; ``bands`` are one that is grey or three that are red, green and blue.

    ``orientation`` is EXIF's; a file with a reference system is upright.
    """

    dataset: Any = field(repr=False)
    bands: tuple[int, ...]
    palette: UInt8Array | None
    scale: Scale | None
    orientation: int
    reference: GeoReference | None

    @classmethod
    def of(cls, dataset: Any, turned: int) -> Raster:
        """Return the reader of a dataset.  Reads a reduced image if samples are to be scaled."""
        bands = _bands(dataset)
        palette = _palette(dataset) if dataset.colorinterp[0] is ColorInterp.palette else None
        scale = None
        if palette is None and any(dataset.dtypes[band - 1] != "uint8" for band in bands):
            scale = _scale(dataset, bands)
        reference = _reference(dataset)
        turned = orientation.UPRIGHT if reference else turned
        return cls(dataset, bands, palette, scale, turned, reference)

    @property
    def size(self) -> Size:
        """Height and width of the upright image."""
        stored = self._stored
        return Size(stored.width, stored.height) if self.orientation > 4 else stored

    @property
    def _stored(self) -> Size:
        return Size(self.dataset.height, self.dataset.width)

    def read(self, window: Window) -> Pixels:
        """Return a window."""
        left, top, right, bottom = _in_file(window, self._stored, self.orientation)
        area = windows.Window(left, top, right - left, bottom - top)
        samples = np.moveaxis(self.dataset.read(list(self.bands), window=area), 0, -1)
        rgb = self._rgb(samples)
        alpha = self._alpha(area, samples)
        if alpha is None:
            return Pixels(_upright(rgb, self.orientation))
        valid: BoolArray = alpha > 0
        if not valid.all() or (alpha < 255).any():
            rgb = blended(rgb, alpha)
        return Pixels(_upright(rgb, self.orientation), _upright(valid, self.orientation))

    def _rgb(self, samples: Array) -> UInt8Array:
        if self.palette is not None:
            found: UInt8Array = self.palette[samples[:, :, 0], :3]
            return found
        scaled = samples if self.scale is None else self.scale.apply(samples)
        return np.ascontiguousarray(np.broadcast_to(scaled, (*scaled.shape[:2], 3)), np.uint8)

    def _alpha(self, area: windows.Window, samples: Array) -> UInt8Array | None:
        """Return uint8 ``[h, w]``, 0 without data; None if every pixel has all of it."""
        if self.palette is not None and (self.palette[:, 3] < 255).any():
            found: UInt8Array = self.palette[samples[:, :, 0], 3]
            return found
        if all(flags == [MaskFlags.all_valid] for flags in self.dataset.mask_flag_enums):
            return None
        # Alpha, a mask band, or a pixel without data in every band.
        mask: UInt8Array = self.dataset.dataset_mask(window=area)
        if ColorInterp.alpha in self.dataset.colorinterp:
            band = self.dataset.colorinterp.index(ColorInterp.alpha) + 1
            if self.dataset.dtypes[band - 1] == "uint8":
                mask = self.dataset.read(band, window=area)
        return mask


def _bands(dataset: Any) -> tuple[int, ...]:
    """Return the numbers of the colour bands, from 1."""
    kinds = dataset.colorinterp
    if all(colour in kinds for colour in _COLOURS):
        return tuple(kinds.index(colour) + 1 for colour in _COLOURS)
    plain = [number for number, kind in enumerate(kinds, 1) if kind is not ColorInterp.alpha]
    return tuple(plain[:3]) if len(plain) >= 3 else tuple(plain[:1]) or (1,)


def _palette(dataset: Any) -> UInt8Array:
    """Return the colours of a palette, uint8 ``[n, 4]`` RGBA, for every value that a sample has."""
    colours = np.zeros((1 << 16, 4), np.uint8)
    for value, colour in dataset.colormap(1).items():
        colours[value] = colour
    return colours


def _scale(dataset: Any, bands: tuple[int, ...]) -> Scale:
    shape = [min(side, _SAMPLED_SIDE) for side in (dataset.height, dataset.width)]
    reduced = dataset.read(list(bands), out_shape=(len(bands), *shape))
    mask = dataset.dataset_mask(out_shape=tuple(shape)) > 0
    return Scale.of(reduced[:, mask].astype(np.float64))


def _reference(dataset: Any) -> GeoReference | None:
    transform = dataset.transform
    if transform.is_identity:
        return None
    return GeoReference(tuple(transform)[:6], _crs_name(dataset.crs))


def _crs_name(crs: Any) -> str:
    """Return the name of a reference system for GeoJSON: a URN of EPSG, or else WKT."""
    if not crs:
        return ""
    try:
        code = crs.to_epsg()
    except CRSError:
        code = None
    if code is None:
        return str(crs.to_wkt())
    return _LONGITUDE_FIRST.get(code, f"{_URN}EPSG::{code}")


def _in_file(window: Window, stored: Size, turned: int) -> Window:
    """Return where the pixels of a window of the upright image are in the file."""
    left, top, right, bottom = window
    if turned > 4:
        left, top, right, bottom = top, left, bottom, right
    if turned in (2, 3, 7, 8):
        left, right = stored.width - right, stored.width - left
    if turned in (3, 4, 6, 7):
        top, bottom = stored.height - bottom, stored.height - top
    return left, top, right, bottom


def _upright(pixels: Any, turned: int) -> Any:
    """Return pixels ``[h, w, ...]`` of the file upright."""
    if turned in (2, 3, 7, 8):
        pixels = pixels[:, ::-1]
    if turned in (3, 4, 6, 7):
        pixels = pixels[::-1]
    if turned > 4:
        pixels = np.swapaxes(pixels, 0, 1)
    return np.ascontiguousarray(pixels)
