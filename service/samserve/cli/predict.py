"""`samserve predict`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from samserve.cli.endpoint import Endpoint
from samserve.cli.errors import UsageError
from samserve.cli.options import (
    HqModeName,
    ImageFile,
    JsonFile,
    ModelName,
    Overlay,
    existing_file,
    parse_box,
    parse_numbers,
)
from samserve.cli.terminal import STDOUT, mask_line, write_json, write_line, write_timings

if TYPE_CHECKING:
    from samserve.client import Prediction, Prompt

MaskFile = Annotated[
    Path | None,
    existing_file(
        "Mask prompt to refine: a JPEG, PNG or WebP file, in which black and transparent "
        "pixels are outside the mask; or .npy, in which zeros are outside (floats are logits)."
    ),
]


def predict(  # noqa: PLR0913 - each is an option of the command line
    image: ImageFile,
    *,
    points: Annotated[
        list[str] | None,
        typer.Option(
            "--point",
            metavar="X,Y[,0|1]",
            help="Point prompt: 1 (default) on the object, 0 off it; repeatable.",
        ),
    ] = None,
    boxes: Annotated[
        list[str] | None,
        typer.Option("--box", metavar="X0,Y0,X1,Y1", help="Box around an object; repeatable."),
    ] = None,
    mask: MaskFile = None,
    multimask: Annotated[
        Literal["auto", "all", "single"], typer.Option(help="Candidate masks to return.")
    ] = "auto",
    hq_mode: HqModeName = None,
    model: ModelName = "",
    out: Overlay = None,
    as_json: JsonFile = "",
    endpoint: Endpoint,
) -> None:
    """Segment one or more objects in an image.

    All --point options, --mask and one --box together describe one object. Several --box options
    describe one object each, and exclude --point and --mask. Coordinates are pixels of the upright
    image. Prints one line per mask.
    """
    from samserve.cli import files, session

    prompts = _prompts(points or [], boxes or [], mask)
    files.check_outputs(out, as_json)

    async def work() -> Prediction:
        async with session.connected(endpoint, model) as client:
            return await client.predict(
                image, prompts, model=model, multimask=multimask, hq_mode=hq_mode
            )

    prediction = session.run(work())
    if out is not None:
        from samserve.cli import overlay

        drawing = overlay.draw_prediction(files.read_image(image), prompts, prediction.results)
        files.write_image(drawing, out)
    # Last, because the reader of standard output may close it at any line.
    _report(prediction, as_json)


def _report(prediction: Prediction, as_json: str) -> None:
    from samserve.cli.records import prediction_record

    if as_json:
        write_json(as_json, prediction_record(prediction))
    write_timings(prediction.timings_ms)
    if as_json == STDOUT:
        return
    scored = zip(prediction.results, prediction.object_scores, strict=True)
    for number, (masks, score) in enumerate(scored, start=1):
        end = "" if score is None else f" object_score={score:.4f}"
        for mask in masks:
            write_line(f"prompt={number} token={mask.token_index} {mask_line(mask)}{end}")


def _prompts(points: list[str], boxes: list[str], mask: Path | None) -> list[Prompt]:
    from samserve.cli.files import read_mask
    from samserve.client import Prompt

    if not (points or boxes or mask):
        raise UsageError("no prompt: pass --point, --box or --mask")
    if len(boxes) > 1 and (points or mask):
        raise UsageError(
            "several --box describe several objects: --point and --mask require a single --box"
        )
    corners = [parse_box("--box", text) for text in boxes]
    if len(corners) > 1:
        return [Prompt(box=box) for box in corners]
    return [
        Prompt(
            points=[_point(text) for text in points],
            box=corners[0] if corners else None,
            mask=None if mask is None else read_mask(mask),
        )
    ]


def _point(text: str) -> tuple[float, float, int]:
    if text.count(",") != 2:
        x, y = parse_numbers("--point", text, "X,Y")
        return (x, y, 1)
    x, y, label = parse_numbers("--point", text, "X,Y,LABEL")
    if label not in (0, 1):
        raise UsageError(f"--point {text!r}: the label must be 1 (on the object) or 0 (off it)")
    return (x, y, int(label))
