"""`samserve automask`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from samserve.cli import terminal
from samserve.cli.automask_options import AutoMaskFlags
from samserve.cli.endpoint import Endpoint
from samserve.cli.exclude_options import ExcludeFlags
from samserve.cli.format_options import FormatFlags, FormatName
from samserve.cli.options import ImageFile, JsonFile, ModelName, Overlay
from samserve.cli.progress import point_progress

if TYPE_CHECKING:
    from samserve.client import AutoMaskOptions, AutoMaskResult, FilterCount

_REMEDIES = {
    "pred_iou": "lower --pred-iou-thresh",
    "stability_score": "lower --stability-score-thresh",
    "crop_edge": "use fewer layers with --crop-n-layers, or overlap them with --crop-overlap-ratio",
    "exclude": "raise --exclude-iou-thresh, or omit --exclude-parts",
    "small_regions": "lower --min-mask-region-area",
}
"""How to keep more masks, by the name of the filter that drops them."""


def automask(  # noqa: PLR0913 - each is an option of the command line, or a group of them
    image: ImageFile,
    *,
    flags: AutoMaskFlags,
    exclude: ExcludeFlags,
    formats: FormatFlags,
    model: ModelName = "",
    out: Overlay = None,
    as_json: JsonFile = "",
    endpoint: Endpoint,
) -> None:
    """Segment everything in an image.

    The options are those of the reference generators, with the defaults given here. Prints one line
    per mask; --json writes an SA-1B record.
    """
    from samserve.cli import files, inputs, session

    options: AutoMaskOptions = {**flags.to_options(), **exclude.to_options()}
    polygon_options = formats.polygon_options()
    files.check_outputs(out, as_json)
    formats.check_drawable(out)
    named = inputs.single(image)
    file = named.load_with_note()
    known = exclude.of_image(named.relative.name)
    if known is not None:
        options["exclude"] = known.objects()

    async def work() -> AutoMaskResult:
        async with session.connected(endpoint, model) as client:
            with point_progress() as update:
                return await client.automask_all(
                    file.data,
                    model=model,
                    mask_format=formats.mask_format,
                    polygon_options=polygon_options,
                    on_progress=lambda done: update(done.evaluated_points, done.total_points),
                    **options,
                )

    result = session.run(work())
    if out is not None:
        from samserve.cli import overlay

        region = options.get("region_of_interest")
        drawing = overlay.draw_masks(files.read_pixels(file.data), result.records, region)
        files.write_image(drawing, out)
    _report(result, named.relative.name, formats.mask_format, as_json)


def _report(result: AutoMaskResult, name: str, mask_format: FormatName, as_json: str) -> None:
    from samserve.cli.records import sa1b_record

    summary = result.summary
    if as_json:
        terminal.write_json(as_json, sa1b_record(result, name, mask_format))
    terminal.write_timings(summary.timings_ms)
    kept = ", ".join(f"{each.name} {each.in_count} -> {each.out_count}" for each in summary.filters)
    terminal.write_note(f"{summary.mask_count} masks; {kept}")
    if not summary.mask_count:
        terminal.write_note(_hint(summary.filters))
    if as_json == terminal.STDOUT:
        return
    for number, record in enumerate(result.records, start=1):
        x, y = record.point
        terminal.write_line(f"mask={number} {terminal.mask_line(record.mask)} point={x:g},{y:g}")


def _hint(filters: tuple[FilterCount, ...]) -> str:
    """Return why no mask was kept: the filters that dropped the most and the last candidates."""
    dropping = [each for each in filters if each.in_count > each.out_count]
    if not dropping:
        return "hint: no grid point was evaluated: use a larger --roi or more --points-per-side"
    most = max(dropping, key=lambda each: each.in_count - each.out_count)
    parts = [_dropped(each) for each in dict.fromkeys((most, dropping[-1]))]
    return f"hint: {'; '.join(parts)}"


def _dropped(counts: FilterCount) -> str:
    text = f"{counts.name} dropped {counts.in_count - counts.out_count} of {counts.in_count}"
    remedy = _REMEDIES.get(counts.name)
    return f"{text} ({remedy})" if remedy else text
