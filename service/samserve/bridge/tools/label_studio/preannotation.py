"""Everything in the images of tasks, as predictions for annotators to correct."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import structlog

from samserve.bridge.caller import Caller
from samserve.bridge.segmenter import Segmenter
from samserve.bridge.tools.label_studio.images import TaskImages
from samserve.bridge.tools.label_studio.interactive import polygon_options
from samserve.bridge.tools.label_studio.results import mask_format, of_mask
from samserve.bridge.tools.label_studio.settings import LabelStudioSettings
from samserve.client import AutoMaskResult, SamserveClientError
from samserve.datasets.label_studio.label_config import Control, LabelConfig
from samserve.datasets.label_studio.regions import Json, Place, identifier, prediction
from samserve.errors import InvalidRequest, SamserveError
from samserve.types import Size

_now = time.monotonic


@dataclass(frozen=True, slots=True)
class Target:
    """Where the masks of a project belong: the first control for masks, and one of its labels."""

    key: str
    control: Control
    label: str

    @classmethod
    def of(cls, config: LabelConfig, label: str = "") -> Self:
        """Return the target; an empty *label* is the first one.  Raises `InvalidRequest`."""
        image, key = config.image_of("")
        if label:
            return cls(key, config.output_for(image, label), label)
        control = config.outputs(image)[0]
        if not control.labels:
            raise InvalidRequest("label_config", "has no label of its own: name one")
        return cls(key, control, control.labels[0])

    def options(self) -> dict[str, Any]:
        """Return the options of AutoMask for these regions."""
        return {
            "mask_format": mask_format(self.control),
            "polygon_options": polygon_options(self.control),
        }

    def regions(self, result: AutoMaskResult, max_area: float = 1.0) -> list[Json]:
        """Return the regions of the masks, the largest first, so that it hides no smaller one.

        Masks of more than *max_area*, a part of the image, are left out.
        """
        size = Size(*result.summary.embedding.image_size)
        place = Place(self.control, self.label)
        records = sorted(result.records, key=lambda record: -record.mask.area)
        return [
            region
            for number, record in enumerate(records)
            if record.mask.area <= max_area * size.pixels
            for region in of_mask(record.mask, size, place, _id(number, record.point))
        ]


async def everything(
    segmenter: Segmenter,
    images: TaskImages,
    target: Target,
    caller: Caller,
    task: Json,
    **options: Any,
) -> list[Json]:
    """Return the regions of everything in the image of a task; raises as `Segmenter`.

    *options* are those of AutoMask, see `Client.automask`.
    """
    source = images.source(task, target.key)
    held = await segmenter.embed(source, caller, model=target.control.model)
    result = await segmenter.automask(held, caller, **target.options(), **options)
    return await asyncio.to_thread(target.regions, result)


async def within_budget(
    tasks: Sequence[Json],
    segment: Callable[[Json], Awaitable[list[Json]]],
    version: str,
    settings: LabelStudioSettings,
) -> list[Any]:
    """Return for each task its prediction, or an empty list if there was no time or it failed.

    Label Studio stores no prediction for an empty list, and asks again.  The error of the only
    task is raised.
    """
    log = structlog.get_logger("samserve.bridge")
    results: list[Any] = [[] for _ in tasks]
    remaining = iter(enumerate(tasks))
    end = _now() + settings.automask_budget_s

    async def worker() -> None:
        for index, task in remaining:
            if _now() >= end:
                return
            try:
                results[index] = prediction(await segment(task), version)
            except (SamserveError, SamserveClientError) as error:
                if len(tasks) == 1:
                    raise
                log.warning("task not segmented", task=task.get("id"), reason=str(error))

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(settings.automask_concurrency, len(tasks))):
                group.create_task(worker())
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return results


def _id(number: int, point: tuple[float, float]) -> str:
    return identifier(f"{number}:{point[0]:.3f}:{point[1]:.3f}")
