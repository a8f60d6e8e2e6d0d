"""The calls of `samserve predict`, for one or many images."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from samserve.cli import many, outputs, session
from samserve.cli.endpoint import Endpoint
from samserve.cli.inputs import Found, Input
from samserve.cli.many import Record
from samserve.cli.predict_options import OutputFlags
from samserve.cli.records import prediction_record
from samserve.cli.terminal import STDOUT
from samserve.client import Client, Prediction, Prompt


@dataclass(frozen=True, slots=True)
class Task:
    """The prompts and options of each call; *embedding* is the id of one, or empty."""

    prompts: Sequence[Prompt]
    options: Mapping[str, Any]
    embedding: str = ""

    async def predict(self, client: Client, image: bytes | None) -> Prediction:
        """Predict by the embedding if there is one, and otherwise by the image."""
        if self.embedding:
            options = {**self.options, "image": image}
            return await client.predict(self.embedding, self.prompts, **options)
        assert image is not None, "a command has an image or an embedding"
        return await client.predict(image, self.prompts, **self.options)


def record_of(prediction: Prediction, task: Task, converted_from: str) -> dict[str, Any]:
    """Return a prediction as a JSON value."""
    record = prediction_record(prediction, task.options["mask_format"])
    return {**record, "converted_from": converted_from}


def run_many(found: Found, task: Task, flags: OutputFlags, endpoint: Endpoint, model: str) -> None:
    """Predict for each image, write its files and records, and print the counts."""
    targets = outputs.for_many(flags, found.images)
    counts = {"masks": 0, "files written": 0, "converted to PNG": 0}
    as_json = flags.as_json or STDOUT

    def count(record: Record) -> None:
        counts["masks"] += sum(len(each["masks"]) for each in record["results"])
        counts["converted to PNG"] += bool(record["converted_from"])

    async def work() -> many.Outcome:
        async with session.connected(endpoint, model) as client:

            async def predict(image: Input) -> Record:
                file = await asyncio.to_thread(image.load)
                prediction = await task.predict(client, file.data)
                written = await asyncio.to_thread(
                    targets[image].write, file.data, task.prompts, prediction
                )
                counts["files written"] += len(written)
                return record_of(prediction, task, file.converted_from)

            job = many.Job("predicting", predict)
            return await many.run(found, job, as_json, count)

    outcome = session.run(work())
    shown = {name: number for name, number in counts.items() if number or name == "masks"}
    many.report(found, outcome, shown, as_json)
