"""What a worker gets and returns."""

from __future__ import annotations

import json
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass
from typing import Protocol

from samserve.annotate.gateways import Gateways
from samserve.annotate.pipeline import ImageJob, Outcome, State
from samserve.annotate.source import ImageFile

ABORTED = "aborted"
"""In place of a state: the worker met an error that every image would get."""


class Servers(Protocol):
    """Opens the gateways of a worker, in its process.  Picklable."""

    def open(self) -> AbstractAsyncContextManager[Gateways]:
        """Connect to the gateways, or start a server.

        Raises `samserve.errors` and `samserve.client.errors`.
        """


@dataclass(frozen=True, slots=True, repr=False)
class Work:
    """What all workers do; each has *concurrency* images under way.

    Without a representation: the servers may have credentials, and Ray logs arguments.
    """

    job: ImageJob
    servers: Servers
    concurrency: int


def image_to_text(image: ImageFile) -> str:
    """Return an image as ASCII: Arrow holds no names that are not Unicode."""
    return json.dumps(asdict(image))


def text_to_image(text: str) -> ImageFile:
    """Return the image of `image_to_text`."""
    return ImageFile(**json.loads(text))


def outcome_to_text(outcome: Outcome) -> str:
    """Return an outcome as ASCII."""
    return json.dumps({**asdict(outcome), "state": outcome.state.value})


def aborted_to_text(reason: str) -> str:
    """Return the line that ends the run."""
    return json.dumps({"state": ABORTED, "reason": reason})


def text_to_outcome(text: str) -> Outcome | str:
    """Return an outcome, or the reason that ends the run."""
    values = json.loads(text)
    if values["state"] == ABORTED:
        return str(values["reason"])
    return Outcome(**{**values, "state": State(values["state"])})
