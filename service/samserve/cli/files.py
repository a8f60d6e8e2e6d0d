"""Images and masks that a command reads and writes."""

from __future__ import annotations

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

_PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp"})
# Whether an image is too large is for the server to say; this one has been accepted by it.
_NO_LIMITS = images.ImageLimits(max_pixels=2**31 - 1, max_side=2**31 - 1)


def check_outputs(picture: Path | None, record: str) -> None:
    """Refuse, before any work, outputs that could not be written at its end."""
    if picture is not None and picture.suffix.lower() not in _PICTURES:
        raise UsageError(f"--out {picture}: the name must end in .png, .jpg or .webp")
    outputs = {"--out": picture, "--json": Path(record) if record not in ("", "-") else None}
    for option, path in outputs.items():
        if path is not None and not path.parent.is_dir():
            raise UsageError(f"{option} {path}: there is no folder {path.parent}")
        if path is not None and path.is_dir():
            raise UsageError(f"{option} {path}: is a folder")


def read_picture(path: Path) -> npt.NDArray[np.uint8]:
    """Read uint8 ``[h, w, 3]`` RGB in the frame of the server's coordinates."""
    try:
        return images.decode(EncodedImage(path.read_bytes()), _NO_LIMITS)
    except SamserveError as error:
        raise CommandError(f"{path} cannot be drawn on: {error.message}") from error


def write_picture(picture: Image.Image, path: Path) -> None:
    """Write an image in the format of its name."""
    picture.save(path, quality=92)
    terminal.note(f"wrote {path}")


def read_mask(path: Path) -> npt.NDArray[Any]:
    """Read a mask prompt: bool ``[h, w]`` of an image or array, or float32 low-res logits."""
    if path.suffix != ".npy":
        return _with_inside(path, _read_marked(path))
    array = _read_array(path)
    if array.ndim != 2:
        raise UsageError(f"--mask {path}: must have two axes, has {array.ndim}")
    if array.dtype.kind == "f":
        if array.shape[0] != array.shape[1]:
            raise UsageError(
                f"--mask {path}: floats are low-res logits [n, n], this is {list(array.shape)}; "
                "save the mask of an image as bool"
            )
        with np.errstate(over="ignore"):
            # What becomes infinite is refused by the server.
            return array.astype(np.float32)
    if array.dtype.kind not in "biu":
        raise UsageError(f"--mask {path}: must hold bool, integers or floats, not {array.dtype}")
    return _with_inside(path, np.asarray(array != 0))


def _read_array(path: Path) -> npt.NDArray[Any]:
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except (ValueError, EOFError) as error:
        raise UsageError(f"--mask {path}: is not a numpy array") from error


def _read_marked(path: Path) -> npt.NDArray[np.bool_]:
    try:
        return images.decode_mask(EncodedImage(path.read_bytes()), _NO_LIMITS)
    except InvalidRequest as error:
        raise UsageError(f"--mask {path}: {error.violations[0].description}") from error


def _with_inside(path: Path, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    if not mask.any():
        raise UsageError(f"--mask {path}: is empty: every pixel is black (0) or transparent")
    return mask
