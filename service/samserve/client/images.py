"""Conversion of images to protobuf: files, bytes of files and numpy arrays."""

from __future__ import annotations

import hashlib
import io
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from samserve.client.channel import MAX_MESSAGE_BYTES
from samserve.client.errors import ImageTooLarge
from samserve.v1 import samserve_pb2 as pb

ImageLike = str | os.PathLike[str] | bytes | bytearray | memoryview | npt.NDArray[Any]
"""A path, the bytes of a file, or uint8 ``[h, w, 3]`` RGB or ``[h, w]`` grey.

JPEG, PNG and WebP files are sent as they are.  Other files that Pillow reads, such as TIFF, BMP,
GIF and AVIF, are converted to PNG: their first image, without loss, at 16 bits if it is grey of 16
bits.  `Embedding.converted_from` and an INFO record of the logger ``samserve.client`` name their
format.  `ImageUnreadable` and `ImageTooLarge` are raised for those that cannot be converted.
"""

Orientation = Literal["exif", "ignore"]
"""``exif`` applies the EXIF orientation, as viewers do; ``ignore`` does not."""

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp"}
    | {".avif", ".bmp", ".gif", ".jp2", ".pbm", ".pgm", ".pnm", ".ppm", ".tif", ".tiff"}
    | {".heic", ".heif", ".hif"}
)
"""The ends of the names of images in folders, in lower case."""
FORMATS = "JPEG, PNG, WebP, TIFF, BMP, GIF, AVIF, HEIC, JPEG 2000 or PNM"
"""The formats of `SUFFIXES`, for texts."""

_ORIENTATIONS = {"exif": pb.ORIENTATION_EXIF, "ignore": pb.ORIENTATION_IGNORE}
_LOG = logging.getLogger("samserve.client")
# The first bytes of the formats that the server decodes.
_JPEG, _PNG, _RIFF, _WEBP = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF", b"WEBP"
_PREFIX_BYTES = 12
# Below this, sending the hash first costs about as much as sending the file.
_MIN_DIGEST_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class File:
    """A file that the server decodes; ``converted_from`` is its former format, if converted."""

    data: bytes
    converted_from: str = ""


@dataclass(frozen=True, slots=True)
class Upload:
    """An image ready to be sent; ``digest`` is sent first for large files, None for others."""

    message: pb.Image
    digest: pb.Image | None = None
    converted_from: str = ""


def read(image: ImageLike, orientation: Orientation = "exif") -> Upload:
    """Read an image.

    Blocks while reading a file, converting it, and hashing a large one.  Raises ``OSError`` for a
    file that cannot be read, `ImageUnreadable` and `ImageTooLarge` for one that cannot be
    converted, ``TypeError`` or ``ValueError`` for anything that is not an image.
    """
    orientation = resolve_orientation(orientation, None)
    if isinstance(image, np.ndarray):
        return Upload(pb.Image(raw=_raw(image)))
    file = load(image)
    value = _ORIENTATIONS[orientation]
    upload = pb.Image(encoded=file.data, orientation=value)
    if len(file.data) <= _MIN_DIGEST_BYTES:
        return Upload(upload, converted_from=file.converted_from)
    sha256 = hashlib.sha256(file.data).digest()
    digest = pb.Image(encoded_sha256=sha256, orientation=value)
    return Upload(upload, digest, file.converted_from)


def load(image: str | os.PathLike[str] | bytes | bytearray | memoryview) -> File:
    """Read a file, or take its bytes; convert it to PNG if the server does not decode its format.

    Raises as `read` does.
    """
    if isinstance(image, str) and "://" in image:
        raise ValueError(f"{image[:200]!r} is a URL: download the image, and pass a path or bytes")
    if isinstance(image, str | os.PathLike):
        if "\0" in os.fspath(image):
            raise ValueError(f"{os.fspath(image)!r} is not a valid file name: it has a zero byte")
        with Path(image).open("rb") as opened:
            name = os.fspath(image)
            # A pipe has no position.
            file = opened if opened.seekable() else io.BytesIO(_read_all(opened, name))
            return _load(file, name)
    if isinstance(image, bytearray | memoryview):
        image = bytes(image)
    if not isinstance(image, bytes):
        raise TypeError(
            "an image must be a path, the bytes of a file or a numpy array (np.asarray converts "
            f"most images); got {type(image).__name__}"
        )
    return File(image) if is_accepted(image) else _load(io.BytesIO(image), "the file")


def _load(file: BinaryIO, name: str) -> File:
    accepted = is_accepted(file.read(_PREFIX_BYTES))
    file.seek(0)
    if accepted:
        return File(_read_all(file, name))
    # Most programs never convert an image.
    from samserve.client import conversion  # noqa: PLC0415

    png = conversion.to_png(file, name)
    _LOG.info("converted %s from %s to PNG", name, png.source)
    return File(png.data, png.source)


def _read_all(file: BinaryIO, name: str) -> bytes:
    data = file.read(MAX_MESSAGE_BYTES + 1)
    if len(data) > MAX_MESSAGE_BYTES:
        text = f"is larger than {MAX_MESSAGE_BYTES >> 20} MiB"
        raise ImageTooLarge.of(name, text, limit=MAX_MESSAGE_BYTES)
    return data


def is_accepted(data: bytes) -> bool:
    """Return whether the server decodes files that begin with *data*."""
    return data.startswith((_JPEG, _PNG)) or (data.startswith(_RIFF) and data[8:12] == _WEBP)


def resolve_orientation(given: Orientation | None, embedded: Orientation | None) -> Orientation:
    """Return the given orientation of an image, or the one of its embedding.

    Raises ``ValueError`` for an invalid value, and if the two differ: coordinates and masks of an
    embedding are in the frame in which it was computed.
    """
    if given is not None and given not in _ORIENTATIONS:
        raise ValueError(f"orientation must be 'exif' or 'ignore', got {given!r}")
    if given and embedded and given != embedded:
        raise ValueError(
            f"orientation: the embedding was computed with {embedded!r}; embed the image again "
            f"for {given!r}"
        )
    return given or embedded or "exif"


def _raw(pixels: npt.NDArray[Any]) -> pb.RawImage:
    grey = pixels.ndim == 2
    if pixels.dtype != np.uint8 or not (grey or (pixels.ndim == 3 and pixels.shape[2] == 3)):
        raise ValueError(
            "an array must be uint8 [h, w, 3] RGB or [h, w] grey, "
            f"got {pixels.dtype} {list(pixels.shape)}"
        )
    return pb.RawImage(
        size=pb.ImageSize(height=pixels.shape[0], width=pixels.shape[1]),
        layout=pb.RAW_LAYOUT_GRAY if grey else pb.RAW_LAYOUT_RGB,
        data=pixels.tobytes(),
    )
