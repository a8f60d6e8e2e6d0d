"""The command-line options of `samserve annotate` for masks from given boxes or points."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from samserve.cli.errors import UsageError
from samserve.cli.exclude_options import errors_of_file, others_note
from samserve.cli.options import existing_file
from samserve.cli.terminal import write_note

if TYPE_CHECKING:
    from samserve.annotate.prompts import GivenPrompts


@dataclass(frozen=True, slots=True)
class GivenPromptsFlags:
    """A detector's data set, of which each annotation gets a mask."""

    help_panel: ClassVar[str] = "Given prompts"

    boxes: Annotated[
        Path | None,
        existing_file(
            "COCO file of a detector: one mask for the bbox of each annotation, instead of "
            "AutoMask.",
            "--boxes",
        ),
    ] = None
    points: Annotated[
        Path | None,
        existing_file(
            "COCO file: one mask for the point_coords or the labelled keypoints of each "
            "annotation, instead of AutoMask.",
            "--points",
        ),
    ] = None
    image_list: Annotated[
        Path | None,
        existing_file(
            "COCO file with the images and categories of a list of results, for --boxes and "
            "--points.",
            "--image-list",
        ),
    ] = None

    def check(self) -> bool:
        """Return whether there are prompts.  Raises `UsageError`."""
        if self.boxes and self.points:
            raise UsageError("--boxes and --points: give one of them")
        if self.image_list and not (self.boxes or self.points):
            raise UsageError("--image-list requires --boxes or --points")
        return bool(self.boxes or self.points)

    def read(self, names: Iterable[str]) -> GivenPrompts | None:
        """Read the prompts of images by their names.  Raises `CommandError`."""
        path = self.boxes or self.points
        if path is None:
            return None
        from samserve.annotate.prompts import GivenPrompts, Kind

        kind = Kind.BOXES if self.boxes else Kind.POINTS
        with errors_of_file(f"--{kind.value}", path):
            given = GivenPrompts.read(path, kind, names, self.image_list)
        count = sum(map(len, given.annotations.values()))
        others = others_note(path, given.others)
        write_note(f"{kind.value}: {count}, in images: {len(given.annotations)}{others}")
        if given.unlabelled:
            write_note(f"without a mask, as no keypoint is labelled: {given.unlabelled}")
        if not given.annotations:
            write_note(
                f"hint: no image has {kind.value}: each file_name must be the path relative to "
                "SOURCE, or the name of one file"
            )
        return given
