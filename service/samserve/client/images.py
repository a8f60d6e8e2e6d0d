"""Conversion of images to protobuf: files, bytes of files and numpy arrays."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from samserve.v1 import samserve_pb2 as pb

ImageLike = str | os.PathLike[str] | bytes | bytearray | memoryview | npt.NDArray[Any]
"""A path, the bytes of a JPEG, PNG or WebP file, or uint8 ``[h, w, 3]`` RGB or ``[h, w]`` grey."""

Orientation = Literal["exif", "ignore"]
"""``exif`` applies the EXIF orientation, as viewers do; ``ignore`` does not."""

_ORIENTATIONS = {"exif": pb.ORIENTATION_EXIF, "ignore": pb.ORIENTATION_IGNORE}
# Below this, sending the hash first costs about as much as sending the file.
_MIN_DIGEST_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class Upload:
    """An image ready to be sent; ``digest`` is sent first for large files, None for others."""

    message: pb.Image
    digest: pb.Image | None = None


def read(image: ImageLike, orientation: Orientation = "exif") -> Upload:
    """Read an image.

    Blocks while reading a file and while hashing a large one.  Raises ``OSError`` for a file that
    cannot be read, ``TypeError`` or ``ValueError`` for anything that is not an image.
    """
    orientation = resolve_orientation(orientation, None)
    if isinstance(image, np.ndarray):
        return Upload(pb.Image(raw=_raw(image)))
    if isinstance(image, str) and "://" in image:
        raise ValueError(f"{image[:200]!r} is a URL: download the image, and pass a path or bytes")
    if isinstance(image, str | os.PathLike):
        if "\0" in os.fspath(image):
            raise ValueError(f"{os.fspath(image)!r} is not a valid file name: it has a zero byte")
        image = Path(image).read_bytes()
    if isinstance(image, bytearray | memoryview):
        image = bytes(image)
    if not isinstance(image, bytes):
        raise TypeError(
            "an image must be a path, the bytes of a file or a numpy array (np.asarray converts "
            f"most images); got {type(image).__name__}"
        )
    value = _ORIENTATIONS[orientation]
    upload = pb.Image(encoded=image, orientation=value)
    if len(image) <= _MIN_DIGEST_BYTES:
        return Upload(upload)
    sha256 = hashlib.sha256(image).digest()
    return Upload(upload, pb.Image(encoded_sha256=sha256, orientation=value))


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
