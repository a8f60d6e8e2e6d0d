"""The command-line options of AutoMask for what is annotated already."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from samserve.cli.errors import CommandError, UsageError
from samserve.cli.terminal import write_note

if TYPE_CHECKING:
    from samserve.annotate.exclusions import Exclusions, Masks
    from samserve.client import AutoMaskOptions


@dataclass(frozen=True, slots=True)
class ExcludeFlags:
    """The masks to exclude, and how candidates are compared with them."""

    help_panel: ClassVar[str] = "Excluded masks"

    exclude: Annotated[
        Path | None,
        typer.Option(
            "--exclude",
            metavar="DATASET",
            exists=True,
            help="Leave out what this data set has annotated: an SA-1B record or a folder of them, "
            "a COCO file, or any other format of `samserve dataset`.",
        ),
    ] = None
    exclude_iou_thresh: Annotated[
        float | None,
        typer.Option(
            metavar="X", help="Mask IoU above which a candidate is left out. Default: 0.7."
        ),
    ] = None
    exclude_parts: Annotated[
        bool,
        typer.Option("--exclude-parts", help="Leave out parts of the excluded masks too."),
    ] = False

    def to_options(self) -> AutoMaskOptions:
        """Return the options of the comparison.  Raises `UsageError` without masks to exclude."""
        given: AutoMaskOptions = {}
        if self.exclude_iou_thresh is not None:
            given["exclude_iou_thresh"] = self.exclude_iou_thresh
        if self.exclude_parts:
            given["exclude_parts"] = True
        if given and self.exclude is None:
            name = next(iter(given)).replace("_", "-")
            raise UsageError(f"--{name} requires --exclude")
        return given

    def of_image(self, name: str) -> Masks | None:
        """Read the masks of one image.  Raises `CommandError`."""
        if self.exclude is None:
            return None
        from samserve.annotate import exclusions

        with errors_of_file("--exclude", self.exclude):
            masks = exclusions.read_single(self.exclude, name)
        _note_boxes(masks.without_pixels)
        return masks

    def of_images(self, names: Iterable[str]) -> Exclusions | None:
        """Read the masks of images by their names.  Raises `CommandError`."""
        if self.exclude is None:
            return None
        from samserve.annotate.exclusions import Exclusions

        with errors_of_file("--exclude", self.exclude):
            found = Exclusions.read(self.exclude, names)
        count = sum(len(each.masks) for each in found.masks.values())
        others = others_note(self.exclude, found.others)
        write_note(f"excluding masks: {count}, of images: {len(found.masks)}{others}")
        _note_boxes(sum(each.without_pixels for each in found.masks.values()))
        return found


def others_note(path: Path, others: int) -> str:
    """Return the end of a note about the images of a file that are not annotated, if any."""
    if not others:
        return ""
    subject = "1 image" if others == 1 else f"{others} images"
    return f"; {subject} of {path} not in SOURCE"


@contextmanager
def errors_of_file(option: str, path: Path) -> Iterator[None]:
    """Raise `CommandError` for a data set that is not valid."""
    from samserve.cli.dataset.convert import lines_of
    from samserve.errors import InvalidRequest

    try:
        yield
    except InvalidRequest as error:
        raise CommandError(*(f"{option}: {line}" for line in lines_of(error))) from error
    except OSError as error:
        raise CommandError(f"{option} {path}: {error.strerror or error}") from error


def _note_boxes(count: int) -> None:
    if count:
        write_note(f"{count} annotations have no pixels: they are not excluded")
