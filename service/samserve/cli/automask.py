"""`samserve automask`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from samserve.cli import terminal
from samserve.cli.automask_options import AutoMaskFlags
from samserve.cli.endpoint import Endpoint
from samserve.cli.options import ImageFile, JsonFile, ModelName, Overlay
from samserve.cli.progress import point_progress

if TYPE_CHECKING:
    from samserve.client import AutoMaskResult


def automask(
    image: ImageFile,
    *,
    flags: AutoMaskFlags,
    model: ModelName = "",
    out: Overlay = None,
    as_json: JsonFile = "",
    endpoint: Endpoint,
) -> None:
    """Segment everything in an image.

    The options are those of the reference generators, with the defaults given here. Prints one line
    per mask; --json writes an SA-1B record.
    """
    from samserve.cli import files, session

    options = flags.to_options()
    files.check_outputs(out, as_json)

    async def work() -> AutoMaskResult:
        async with session.connected(endpoint, model) as client:
            with point_progress() as update:
                return await client.automask_all(
                    image,
                    model=model,
                    on_progress=lambda done: update(done.evaluated_points, done.total_points),
                    **options,
                )

    result = session.run(work())
    if out is not None:
        from samserve.cli import overlay

        region = options.get("region_of_interest")
        drawing = overlay.draw_masks(files.read_image(image), result.records, region)
        files.write_image(drawing, out)
    _report(result, image, as_json)


def _report(result: AutoMaskResult, image: Path, as_json: str) -> None:
    from samserve.cli.records import sa1b_record

    summary = result.summary
    if as_json:
        terminal.write_json(as_json, sa1b_record(result, image))
    terminal.write_timings(summary.timings_ms)
    kept = ", ".join(f"{each.name} {each.in_count} -> {each.out_count}" for each in summary.filters)
    terminal.write_note(f"{summary.mask_count} masks; {kept}")
    if as_json == terminal.STDOUT:
        return
    for number, record in enumerate(result.records, start=1):
        x, y = record.point
        terminal.write_line(f"mask={number} {terminal.mask_line(record.mask)} point={x:g},{y:g}")
