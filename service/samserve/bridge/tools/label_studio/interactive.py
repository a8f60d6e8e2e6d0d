"""The masks for the points and boxes of a click."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from samserve.bridge.caller import Caller
from samserve.bridge.segmenter import Segmenter
from samserve.bridge.tools.label_studio.images import TaskImages
from samserve.bridge.tools.label_studio.prompts import Region, Selection, selections
from samserve.bridge.tools.label_studio.results import mask_format, of_mask
from samserve.client import PolygonOptions
from samserve.datasets.label_studio.label_config import Control, LabelConfig
from samserve.datasets.label_studio.regions import Json, Place
from samserve.errors import InvalidRequest
from samserve.types import Size


@dataclass(frozen=True, slots=True)
class Click:
    """The regions that an annotator has drawn on an image of a task, at least one."""

    task: Json
    config: LabelConfig
    regions: Sequence[Region]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """An object to segment, and the control of its mask."""

    selection: Selection
    control: Control

    @property
    def options(self) -> tuple[str, str, float | None]:
        """What one Predict call can have once: the model, mask format, and tolerance."""
        return self.control.model, self.control.kind, self.control.tolerance


async def segment(
    segmenter: Segmenter, images: TaskImages, click: Click, caller: Caller
) -> tuple[list[Json], str]:
    """Return the regions of the masks, in the order of the objects, and the model's name.

    Raises `InvalidRequest` if the label config has no place for them, and as `Segmenter`.
    """
    first = click.regions[0]
    image, key = click.config.image_of(first.image)
    own = [each for each in click.regions if (each.image, each.item) == (first.image, first.item)]
    wanted = [_Wanted(each, click.config.output_for(image, each.label)) for each in selections(own)]
    if not wanted:
        raise InvalidRequest("params.context.result", "has no point on an object, and no box")
    source = images.source(click.task, key, first.item)
    made: dict[int, list[Json]] = {}
    model = ""
    for options in dict.fromkeys(each.options for each in wanted):
        group = [(index, each) for index, each in enumerate(wanted) if each.options == options]
        held = await segmenter.embed(source, caller, model=options[0])
        size = Size(*held.image_size)
        control = group[0][1].control
        predicted = await segmenter.predict(
            held,
            [each.selection.prompt(size) for _, each in group],
            caller,
            # One mask for each prompt.
            multimask="auto",
            mask_format=mask_format(control),
            polygon_options=polygon_options(control),
        )
        model = model or predicted.embedding.model
        for (index, each), masks in zip(group, predicted.results, strict=True):
            place = Place(each.control, each.selection.label, first.item)
            made[index] = await asyncio.to_thread(of_mask, masks[0], size, place, each.selection.id)
    return [region for index in sorted(made) for region in made[index]], model


def polygon_options(control: Control) -> PolygonOptions | None:
    """Return the options of polygons for a control; None for brush strokes."""
    return PolygonOptions(control.tolerance) if control.kind == "polygonlabels" else None
