"""Images to protobuf: files, bytes of files and numpy arrays."""

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
"""``exif`` turns the image as its camera said, as viewers do; ``ignore`` does not."""

_ORIENTATIONS = {"exif": pb.ORIENTATION_EXIF, "ignore": pb.ORIENTATION_IGNORE}
# Below this, asking by hash first costs about as much as sending the file.
_WORTH_ASKING_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class Upload:
    """An image ready to be sent; ``digest`` asks for it without its bytes, if that pays."""

    message: pb.Image
    digest: pb.Image | None = None


def read(image: ImageLike, orientation: Orientation = "exif") -> Upload:
    """Read an image.

    Blocks on files and hashes large ones.  Raises ``OSError`` for a file that cannot be read,
    ``TypeError`` or ``ValueError`` for what cannot be an image.
    """
    orientation = chosen_orientation(orientation, None)
    if isinstance(image, np.ndarray):
        return Upload(pb.Image(raw=_raw(image)))
    if isinstance(image, str) and "://" in image:
        raise ValueError(f"{image[:200]!r} is a URL: download the image, and give a path or bytes")
    if isinstance(image, str | os.PathLike):
        if "\0" in os.fspath(image):
            raise ValueError(f"no file can have the name {os.fspath(image)!r}: it has a zero byte")
        image = Path(image).read_bytes()
    if isinstance(image, bytearray | memoryview):
        image = bytes(image)
    if not isinstance(image, bytes):
        raise TypeError(
            "an image is a path, the bytes of a file or a numpy array, which np.asarray makes of "
            f"most images; got {type(image).__name__}"
        )
    chosen = _ORIENTATIONS[orientation]
    upload = pb.Image(encoded=image, orientation=chosen)
    if len(image) <= _WORTH_ASKING_BYTES:
        return Upload(upload)
    sha256 = hashlib.sha256(image).digest()
    return Upload(upload, pb.Image(encoded_sha256=sha256, orientation=chosen))


def chosen_orientation(wanted: Orientation | None, made_with: Orientation | None) -> Orientation:
    """Return the orientation of an image: what is wanted, or what its embedding was made with.

    Raises ``ValueError`` for what is none, and where the two differ: coordinates and masks of an
    embedding are in the frame that it was made in.
    """
    if wanted is not None and wanted not in _ORIENTATIONS:
        raise ValueError(f"orientation must be 'exif' or 'ignore', got {wanted!r}")
    if wanted and made_with and wanted != made_with:
        raise ValueError(
            f"orientation: the embedding was made with {made_with!r}; embed the image again "
            f"for {wanted!r}"
        )
    return wanted or made_with or "exif"


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
