"""The files that `samserve predict` writes for each image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from samserve.cli import files
from samserve.cli.errors import UsageError
from samserve.cli.inputs import Input
from samserve.cli.predict_options import OutputFlags
from samserve.cli.terminal import write_note
from samserve.client import Mask, Prediction, Prompt

_MASK_SUFFIXES = (".png", ".npy")
_LOGITS_SUFFIXES = (".npy",)


@dataclass(frozen=True, slots=True)
class Targets:
    """The files to write for one image; None for those that are not requested."""

    overlay: Path | None = None
    mask: Path | None = None
    logits: Path | None = None

    def write(
        self, image: bytes | None, prompts: Sequence[Prompt], prediction: Prediction
    ) -> list[Path]:
        """Write the files and return their paths; *image* is needed for the overlay only."""
        written: list[Path] = []
        if self.overlay is not None and image is not None:
            from samserve.cli import overlay

            pixels = files.read_pixels(image)
            drawing = overlay.draw_prediction(pixels, prompts, prediction.results)
            drawing.save(_with_folder(self.overlay), quality=92)
            written.append(self.overlay)
        numbered = [
            (f"{number}-{mask.token_index}", mask)
            for number, masks in enumerate(prediction.results, start=1)
            for mask in masks
        ]
        for label, mask in numbered:
            suffix = f"-{label}" if len(numbered) > 1 else ""
            written += self._write_mask(mask, suffix)
        return written

    def _write_mask(self, mask: Mask, suffix: str) -> list[Path]:
        written: list[Path] = []
        if self.mask is not None:
            written.append(path := _numbered(self.mask, suffix))
            pixels = mask.decode()
            if path.suffix.lower() == ".npy":
                np.save(path, pixels)
            else:
                Image.fromarray(pixels).save(path)
        if self.logits is not None and mask.low_res_logits is not None:
            written.append(path := _numbered(self.logits, suffix))
            np.save(path, mask.low_res_logits)
        return written


def for_one(flags: OutputFlags) -> Targets:
    """Return the files for a single image.

    Raises `UsageError`, before any work, for those that could not be written at its end.
    """
    files.check_outputs(flags.out, flags.as_json)
    files.check_output("--mask-out", flags.mask_out, _MASK_SUFFIXES)
    files.check_output("--logits-out", flags.logits_out, _LOGITS_SUFFIXES)
    return Targets(flags.out, flags.mask_out, flags.logits_out)


def for_many(flags: OutputFlags, images: Sequence[Input]) -> dict[Input, Targets]:
    """Return the files for each of several images, in the directories that the options name.

    Raises `UsageError`, also if two images have the same file.
    """
    files.check_outputs(None, flags.as_json)
    folders = {
        "--out": flags.out,
        "--mask-out": flags.mask_out,
        "--logits-out": flags.logits_out,
    }
    for option, folder in folders.items():
        _check_folder(option, folder)
    if any(folders.values()):
        _check_distinct(images)
    return {
        image: Targets(
            _inside(flags.out, image, ".png"),
            _inside(flags.mask_out, image, ".png"),
            _inside(flags.logits_out, image, ".npy"),
        )
        for image in images
    }


def note(written: Sequence[Path]) -> None:
    """Note on standard error which files were written."""
    for path in written:
        write_note(f"wrote {path}")


def _check_folder(option: str, folder: Path | None) -> None:
    if folder is None or folder.is_dir():
        return
    if folder.exists() or folder.suffix:
        raise UsageError(f"{option} {folder}: several images need a directory")
    if not folder.parent.is_dir():
        raise UsageError(f"{option} {folder}: {folder.parent} is not a directory")


def _check_distinct(images: Sequence[Input]) -> None:
    by_name: dict[Path, Input] = {}
    for image in images:
        other = by_name.setdefault(image.relative.with_suffix(""), image)
        if other is not image:
            raise UsageError(f"{other} and {image} have the same name: run two commands")


def _inside(folder: Path | None, image: Input, suffix: str) -> Path | None:
    return None if folder is None else folder / image.relative.with_suffix(suffix)


def _numbered(path: Path, suffix: str) -> Path:
    return _with_folder(path.with_name(f"{path.stem}{suffix}{path.suffix}"))


def _with_folder(path: Path) -> Path:
    """Return *path*, in a directory that exists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
