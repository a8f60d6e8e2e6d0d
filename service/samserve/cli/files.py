"""Images and masks that a command reads and writes."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from samserve import images
from samserve.cli import terminal
from samserve.cli.errors import CommandError, UsageError
from samserve.errors import InvalidRequest, SamserveError
from samserve.types import EncodedImage

_IMAGE_SUFFIXES = (".png", ".jpg", ".webp", ".jpeg")
# The server enforces the limits; an image that is drawn on has been accepted by it.
_NO_LIMITS = images.ImageLimits(max_pixels=2**31 - 1, max_side=2**31 - 1)


def check_outputs(image: Path | None, record: str) -> None:
    """Raise `UsageError`, before any work, for outputs that could not be written at its end."""
    check_output("--out", image, _IMAGE_SUFFIXES)
    check_output("--json", Path(record) if record not in ("", "-") else None)


def check_output(option: str, path: Path | None, suffixes: Collection[str] = ()) -> None:
    """Raise `UsageError` for a file that could not be written, or has none of the suffixes."""
    if path is None:
        return
    if suffixes and path.suffix.lower() not in suffixes:
        *others, last = [each for each in suffixes if each != ".jpeg"]
        names = f"{', '.join(others)} or {last}" if others else last
        raise UsageError(f"{option} {path}: the name must end in {names}")
    if not path.parent.is_dir():
        raise UsageError(f"{option} {path}: {path.parent} is not a directory")
    if path.is_dir():
        raise UsageError(f"{option} {path}: is a directory")


def read_pixels(data: bytes) -> npt.NDArray[np.uint8]:
    """Decode an image to uint8 ``[h, w, 3]`` RGB in the frame of the server's coordinates."""
    try:
        return images.decode(EncodedImage(data), _NO_LIMITS)
    except SamserveError as error:
        raise CommandError(f"the image cannot be read for --out: {error.message}") from error


def write_image(image: Image.Image, path: Path) -> None:
    """Write an image in the format of its file name."""
    image.save(path, quality=92)
    terminal.write_note(f"wrote {path}")


def read_mask(path: Path) -> npt.NDArray[Any]:
    """Read a mask prompt: bool ``[h, w]`` of an image or array, or float32 low-res logits."""
    if path.suffix != ".npy":
        return _require_inside(path, _read_mask_image(path))
    array = _read_array(path)
    if array.ndim != 2:
        raise UsageError(f"--mask {path}: must have two axes, has {array.ndim}")
    if array.dtype.kind == "f":
        if array.shape[0] != array.shape[1]:
            raise UsageError(
                f"--mask {path}: floats are low-res logits [n, n], not {list(array.shape)}; "
                "save the mask of an image as bool"
            )
        with np.errstate(over="ignore"):
            # The server rejects values that become infinite.
            return array.astype(np.float32)
    if array.dtype.kind not in "biu":
        raise UsageError(f"--mask {path}: must contain bool, integers or floats, not {array.dtype}")
    return _require_inside(path, np.asarray(array != 0))


def _read_array(path: Path) -> npt.NDArray[Any]:
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except (ValueError, EOFError) as error:
        raise UsageError(f"--mask {path}: is not a numpy array") from error


def _read_mask_image(path: Path) -> npt.NDArray[np.bool_]:
    try:
        return images.decode_mask(EncodedImage(path.read_bytes()), _NO_LIMITS)
    except InvalidRequest as error:
        raise UsageError(f"--mask {path}: {error.violations[0].description}") from error


def _require_inside(path: Path, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    if not mask.any():
        raise UsageError(f"--mask {path}: is empty: all pixels are black (0) or transparent")
    return mask
