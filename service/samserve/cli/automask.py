"""`samserve automask`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from samserve.cli import automask_options as flags
from samserve.cli import terminal
from samserve.cli.endpoint import Endpoint, with_endpoint
from samserve.cli.options import ImageFile, JsonFile, ModelName, Overlay

if TYPE_CHECKING:
    from samserve.client import AutoMaskResult, Progress


@with_endpoint
def automask(  # noqa: PLR0913 - each is an option of the command line
    context: typer.Context,
    image: ImageFile,
    *,
    points_per_side: flags.PointsPerSide = None,
    points_per_batch: flags.PointsPerBatch = None,
    pred_iou_thresh: flags.PredIouThresh = None,
    stability_score_thresh: flags.StabilityScoreThresh = None,
    stability_score_offset: flags.StabilityScoreOffset = None,
    box_nms_thresh: flags.BoxNmsThresh = None,
    crop_n_layers: flags.CropNLayers = None,
    crop_nms_thresh: flags.CropNmsThresh = None,
    crop_overlap_ratio: flags.CropOverlapRatio = None,
    crop_n_points_downscale_factor: flags.CropNPointsDownscaleFactor = None,
    point_grids: flags.PointGrids = None,
    min_mask_region_area: flags.MinMaskRegionArea = None,
    roi: flags.Region = "",
    max_masks: flags.MaxMasks = None,
    model: ModelName = "",
    out: Overlay = None,
    as_json: JsonFile = "",
    endpoint: Endpoint,
) -> None:
    """Segment everything in an image.

    Options of the search have the names of the reference generator; where one is not given its
    default, told here, holds. Prints one line per mask; --json writes an SA-1B record.
    """
    from samserve.cli import files, session

    options = flags.given_options(context.params)
    files.check_outputs(out, as_json)

    async def work() -> AutoMaskResult:
        async with session.connected(endpoint) as client:
            with _progress_bar() as advance:
                return await client.automask_all(image, model=model, on_progress=advance, **options)

    result = session.run(work())
    if out is not None:
        from samserve.cli import overlay

        region = options.get("region_of_interest")
        picture = overlay.draw_everything(files.read_picture(image), result.records, region)
        files.write_picture(picture, out)
    _report(result, image, as_json)


def _report(result: AutoMaskResult, image: Path, as_json: str) -> None:
    from samserve.cli.records import sa1b_record

    summary = result.summary
    if as_json:
        terminal.write_json(as_json, sa1b_record(result, image))
    terminal.note_timings(summary.timings_ms)
    kept = ", ".join(f"{each.name} {each.in_count} -> {each.out_count}" for each in summary.filters)
    terminal.note(f"{summary.mask_count} masks; {kept}")
    if as_json == terminal.STDOUT:
        return
    for number, record in enumerate(result.records, start=1):
        x, y = record.point
        terminal.say(f"mask={number} {terminal.mask_line(record.mask)} point={x:g},{y:g}")


@contextmanager
def _progress_bar() -> Iterator[Callable[[Progress], None]]:
    """Show a bar on standard error, if somebody watches; yields what moves it."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    screen = terminal.console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    shown = screen.is_terminal
    with Bar(*columns, TimeElapsedColumn(), console=screen, disable=not shown) as bar:
        task = bar.add_task("grid points", total=None)

        def advance(progress: Progress) -> None:
            bar.update(task, completed=progress.evaluated_points, total=progress.total_points)

        yield advance
