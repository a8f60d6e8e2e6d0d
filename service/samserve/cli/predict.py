"""`samserve predict`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from samserve.cli.endpoint import Endpoint
from samserve.cli.errors import UsageError
from samserve.cli.format_options import FormatFlags
from samserve.cli.options import HqModeName, ModelName, OptionalImageFiles, Recursive
from samserve.cli.predict_options import CleanupFlags, OutputFlags, PromptFlags
from samserve.cli.terminal import STDOUT, mask_line, write_json, write_line, write_timings
from samserve.cli.tile_options import TileFlags

if TYPE_CHECKING:
    from samserve.cli.inputs import Found
    from samserve.cli.predictions import Task
    from samserve.client import Prediction

EmbeddingId = Annotated[
    str,
    typer.Option(
        "--embedding",
        metavar="ID",
        help="Id of an embedding, as `samserve embed` prints it, in place of an image. An image is "
        "then sent only if the server does not have the embedding. Requires --server.",
    ),
]


def predict(  # noqa: PLR0913 - each is an option of the command line, or a group of them
    images: OptionalImageFiles = None,
    *,
    embedding: EmbeddingId = "",
    prompts: PromptFlags,
    multimask: Annotated[
        Literal["auto", "all", "single"], typer.Option(help="Candidate masks to return.")
    ] = "auto",
    hq_mode: HqModeName = None,
    cleanup: CleanupFlags,
    formats: FormatFlags,
    outputs: OutputFlags,
    model: ModelName = "",
    recursive: Recursive = False,
    endpoint: Endpoint,
    tiles: TileFlags,
) -> None:
    """Segment one or more objects in an image.

    All --point options, --mask and one --box together describe one object. Several --box options
    describe one object each, and exclude --point and --mask. Coordinates are pixels of the upright
    image. Prints one line per mask.

    For several images or a directory, the prompts apply to each of them, and a line of JSON for
    each is printed; those that fail are listed at the end, and the exit code is then 1.
    """
    from samserve.cli import inputs, predict_tiles, predictions

    given, tiling = prompts.to_prompts(), tiles.tiling()
    found = inputs.find(images or [], recursive=recursive)
    _check(found, embedding, endpoint, formats, outputs)
    task = predictions.Task(
        prompts=given,
        embedding=embedding,
        options={
            "model": model,
            "multimask": multimask,
            "hq_mode": hq_mode,
            **asdict(cleanup),
            "low_res_logits": outputs.logits_out is not None,
            "mask_format": formats.mask_format,
            "polygon_options": formats.polygon_options(),
        },
    )
    if tiling is not None:
        predict_tiles.run(found, task, tiling, outputs, endpoint)
    elif found.several:
        predictions.run_many(found, task, outputs, endpoint, model)
    else:
        _predict_one(found, task, outputs, endpoint, model)


def _check(
    found: Found, embedding: str, endpoint: Endpoint, formats: FormatFlags, outputs: OutputFlags
) -> None:
    """Raise `UsageError` for options that exclude or require each other."""
    from samserve.client.requests import checked_id

    if not (found.images or found.failures or embedding):
        raise UsageError("no image: pass IMAGE or --embedding")
    formats.check_drawable(outputs.out)
    formats.check_exact("--mask-out", outputs.mask_out)
    if not embedding:
        return
    try:
        checked_id(embedding)
    except ValueError:
        raise UsageError(f"--embedding {embedding[:200]!r}: is not an embedding id") from None
    if not endpoint.server:
        raise UsageError("--embedding requires --server: a new server has no embeddings")
    if found.several:
        raise UsageError("--embedding is that of a single image")
    if outputs.out is not None and not found.images:
        raise UsageError("--out draws on the image: pass IMAGE with --embedding")


def _predict_one(
    found: Found, task: Task, flags: OutputFlags, endpoint: Endpoint, model: str
) -> None:
    from samserve.cli import outputs, predictions, session

    targets = outputs.for_one(flags)
    image = found.images[0] if found.images else None
    file = None if image is None else image.load_with_note()
    data = None if file is None else file.data

    async def work() -> Prediction:
        async with session.connected(endpoint, model) as client:
            return await task.predict(client, data)

    prediction = session.run(work())
    outputs.note(targets.write(data, task.prompts, prediction))
    # Last, because the reader of standard output may close it at any line.
    if flags.as_json:
        name = None if image is None else str(image)
        record = predictions.record_of(
            prediction, task, "" if file is None else file.converted_from
        )
        write_json(flags.as_json, {"file": name, **record, "error": None})
    write_timings(prediction.timings_ms)
    if flags.as_json != STDOUT:
        _print(prediction)


def _print(prediction: Prediction) -> None:
    scored = zip(prediction.results, prediction.object_scores, strict=True)
    for number, (masks, score) in enumerate(scored, start=1):
        end = "" if score is None else f" object_score={score:.4f}"
        for mask in masks:
            write_line(f"prompt={number} token={mask.token_index} {mask_line(mask)}{end}")
