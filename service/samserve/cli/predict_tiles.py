"""`samserve predict --tile`: prompts on an image of any size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from samserve.cli.errors import UsageError
from samserve.cli.predict_options import OutputFlags
from samserve.cli.terminal import STDOUT, mask_line, write_json, write_line

if TYPE_CHECKING:
    from samserve.annotate.tiles.plan import Tiling
    from samserve.cli.endpoint import Endpoint
    from samserve.cli.inputs import Found
    from samserve.cli.predictions import Task
    from samserve.client import Prediction

_OPTIONS = ("model", "multimask", "hq_mode", "min_island_area", "min_hole_area", "clip_to_box")


def run(found: Found, task: Task, tiling: Tiling, outputs: OutputFlags, endpoint: Endpoint) -> None:
    """Predict, and write masks of the whole image.  Raises `CommandError`."""
    from samserve.annotate.source import ImageFile, Source
    from samserve.annotate.tiles.predict import predict
    from samserve.cli import session
    from samserve.cli.tile_options import usage_error
    from samserve.errors import InvalidRequest

    _check(found, task, outputs)
    (image,) = found.images
    source = Source(str(image.path))
    options: dict[str, Any] = {name: task.options[name] for name in _OPTIONS}

    async def work() -> list[Prediction]:
        async with session.connected(endpoint, options["model"]) as client:
            file = ImageFile(str(image.path.absolute()), image.path.name)
            try:
                return await predict(client, source, file, tiling, task.prompts, **options)
            except InvalidRequest as error:
                raise usage_error(error) from error

    predictions = session.run(work())
    if outputs.as_json:
        write_json(outputs.as_json, _record(str(image), predictions))
    if outputs.as_json != STDOUT:
        _print(predictions)


def _check(found: Found, task: Task, outputs: OutputFlags) -> None:
    """Raise `UsageError` for options that cannot be used with tiles."""
    if found.several or len(found.images) != 1 or task.embedding or str(found.images[0]) == "-":
        raise UsageError("--tile requires one IMAGE, a file")
    drawn = {"--out": outputs.out, "--mask-out": outputs.mask_out}
    drawn["--logits-out"] = outputs.logits_out
    for option, path in drawn.items():
        if path is not None:
            raise UsageError(f"{option} is of a whole image: use --json with --tile")
    if task.options["mask_format"] != "coco_rle":
        raise UsageError("--format must be coco_rle with --tile")
    if any(prompt.mask is not None for prompt in task.prompts):
        raise UsageError("--mask is of a whole image, and cannot be used with --tile")


def _record(name: str, predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Return the record of `samserve predict`; embeddings are those of tiles."""
    from samserve.cli.records import prediction_record

    records = [prediction_record(each, "coco_rle") for each in predictions]
    size = predictions[0].results[0][0].size
    return {
        "file": name,
        "image_size": list(size),
        "model": records[0]["model"],
        "results": [
            {"embedding_id": each["embedding_id"], **result}
            for each in records
            for result in each["results"]
        ],
        "error": None,
    }


def _print(predictions: Sequence[Prediction]) -> None:
    for number, prediction in enumerate(predictions, start=1):
        score = prediction.object_scores[0]
        end = "" if score is None else f" object_score={score:.4f}"
        for mask in prediction.results[0]:
            write_line(f"prompt={number} token={mask.token_index} {mask_line(mask)}{end}")
