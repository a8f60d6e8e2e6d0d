"""What Triton's errors mean here: the one table.

Triton says UNAVAILABLE both when its queue is full and when it is not there, so its texts are read
too.  Source of the texts: triton-inference-server core, server; tried on 2.51.
"""

from __future__ import annotations

from tritonclient.utils import InferenceServerException

from samserve.errors import (
    DeadlineExceeded,
    EngineFailure,
    EngineUnavailable,
    Overloaded,
    SamserveError,
)


class RegionUnknown(EngineUnavailable):
    """Triton does not know a shared-memory region of the request; it has done nothing."""


class NoAnswer(EngineUnavailable):
    """Triton did not answer in the time that the request was given."""


class Unreachable(EngineUnavailable):
    """There is no connection to Triton, or it broke while the request was under way."""


_TABLE: tuple[tuple[str, str, type[SamserveError], str], ...] = (
    # status, part of Triton's text, our error, what a client is told; the first match counts.
    (
        *("NOT_FOUND", "shared memory region"),
        *(RegionUnknown, "the model server has forgotten the shared memory"),
    ),
    ("NOT_FOUND", "", EngineUnavailable, "the model server does not serve the model any more"),
    ("UNAVAILABLE", "maximum queue size", Overloaded, "the queue of the model server is full"),
    (
        *("UNAVAILABLE", "timeout expired"),
        *(DeadlineExceeded, "deadline exceeded in the queue of the model server"),
    ),
    ("UNAVAILABLE", "not ready", EngineUnavailable, "the model is not ready in the model server"),
    ("UNAVAILABLE", "", Unreachable, "the model server cannot be reached"),
    ("DEADLINE_EXCEEDED", "", NoAnswer, "the model server did not answer in time"),
    ("CANCELLED", "", Unreachable, "the model server gave up the request"),
)


def translate(error: InferenceServerException) -> SamserveError:
    """Turn an error of tritonclient into one of ours; Triton's own text goes to the log only."""
    code = str(error.status() or "").removeprefix("StatusCode.")
    text = error.message() or ""
    for status, part, kind, told in _TABLE:
        if code == status and part in text:
            return kind(told)
    return EngineFailure(f"the model server failed: {code}: {text}")
