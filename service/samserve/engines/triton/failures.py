"""What Triton's errors mean here: the one table.

Triton says UNAVAILABLE both when its queue is full and when it is not there, so its texts are read
too.  Source of the texts: triton-inference-server core, server; tried on 2.51.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from tritonclient.utils import InferenceServerException

from samserve.errors import (
    DeadlineExceeded,
    EngineFailure,
    EngineUnavailable,
    Overloaded,
    SamserveError,
    WeightsChanged,
)
from samserve.models.digest import DIGEST_OUTPUT


class RegionUnknown(EngineUnavailable):
    """Triton does not know a shared-memory region of the request; it has done nothing."""


class QueueFull(Overloaded):
    """Triton has refused the request; it has done nothing."""

    def __init__(self, message: str) -> None:
        super().__init__(message, metadata={"resource": "engine_queue"})


class QueueTimeout(DeadlineExceeded):
    """The request's time was over before Triton began."""

    def __init__(self, message: str) -> None:
        super().__init__(message, metadata={"stage": "queue"})


class Refused(EngineFailure):
    """Triton finds something wrong with the request; it has done nothing."""


class NoAnswer(EngineUnavailable):
    """Triton did not answer in the time that the request was given."""


class Unreachable(EngineUnavailable):
    """There is no connection to Triton, or it broke while the request was under way."""


ENDED = (RegionUnknown, QueueFull, QueueTimeout, Refused, WeightsChanged)
"""Errors after which the request has certainly ended; after any other it may still be run."""

_KINDS: tuple[tuple[type[SamserveError], str], ...] = (
    (RegionUnknown, "region_unknown"),
    (QueueFull, "queue_full"),
    (QueueTimeout, "queue_timeout"),
    (Refused, "refused"),
    (NoAnswer, "no_answer"),
    (Unreachable, "unreachable"),
    (WeightsChanged, "other_weights"),
    (EngineUnavailable, "not_served"),
)


def kind_of(error: SamserveError) -> str:
    """Name what became of a request, for metrics."""
    return next((name for kind, name in _KINDS if isinstance(error, kind)), "failed")


_Row = tuple[str, type[SamserveError], str]
_TABLE: Mapping[str, tuple[_Row, ...]] = {
    # By status: pattern in Triton's text, our error, the text for clients; the first match counts.
    "NOT_FOUND": (
        ("shared memory region", RegionUnknown, "the model server has lost our memory"),
        ("", EngineUnavailable, "the model server does not serve the model any more"),
    ),
    "UNAVAILABLE": (
        ("maximum queue size", QueueFull, "the queue of the model server is full"),
        ("timeout expired", QueueTimeout, "deadline exceeded in the model server's queue"),
        ("not ready", EngineUnavailable, "the model is not ready in the model server"),
        (
            "is restricted",
            Refused,
            "the model server restricts this protocol, and triton.headers_file has not what "
            "it expects",
        ),
        ("certificate has expired", Unreachable, "the certificate of the model server has expired"),
        (
            "CERTIFICATE_VERIFY_FAILED",
            Unreachable,
            "the certificate of the model server is not signed by a CA of triton.ca_file",
        ),
        (
            "Hostname Verification|not in peer certificate",
            Unreachable,
            "the certificate of the model server is for another name than that in triton.url",
        ),
        (
            "[Hh]andshake",
            Unreachable,
            "the TLS handshake failed; maybe the model server does not use TLS",
        ),
        (
            "failed to connect.*Socket closed",
            Unreachable,
            "the model server closes new connections; maybe it wants TLS or a client certificate",
        ),
        (
            "(?i)errors resolving|lookup failed|dns",
            Unreachable,
            "the name in triton.url leads to no address",
        ),
        ("", Unreachable, "the model server cannot be reached"),
    ),
    "INVALID_ARGUMENT": (
        (
            f"inference output '{DIGEST_OUTPUT}'",
            WeightsChanged,
            "the model server has loaded a model that does not say which weights make its answers",
        ),
    ),
    "DEADLINE_EXCEEDED": (("", NoAnswer, "the model server did not answer in time"),),
    "CANCELLED": (("", Unreachable, "the model server gave up the request"),),
}


# INTERNAL and UNKNOWN may come from gRPC itself: then it is not known what Triton does.
_REFUSALS = frozenset({"INVALID_ARGUMENT", "ALREADY_EXISTS", "UNIMPLEMENTED"})


def translate(error: InferenceServerException) -> SamserveError:
    """Turn an error of tritonclient into one of ours; Triton's own text goes to the log only."""
    code = str(error.status() or "").removeprefix("StatusCode.")
    text = error.message() or ""
    for pattern, kind, told in _TABLE.get(code, ()):
        if re.search(pattern, text):
            return kind(told)
    failure = Refused if code in _REFUSALS else EngineFailure
    return failure(f"the model server failed: {code}: {text}")
