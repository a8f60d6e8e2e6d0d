"""The only table that translates Triton's errors into those of this package.

Triton returns UNAVAILABLE both when its queue is full and when it is unreachable, so the table also
matches the messages.  Source of the messages: triton-inference-server core, server; tested with
2.51.
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


class RegionUnregistered(EngineUnavailable):
    """A shared-memory region of the request is not registered; the request was not run."""


class QueueFull(Overloaded):
    """Triton's queue is full; the request was not run."""

    def __init__(self, message: str) -> None:
        super().__init__(message, metadata={"resource": "engine_queue"})


class QueueTimeout(DeadlineExceeded):
    """The request's timeout expired in Triton's queue; the request was not run."""

    def __init__(self, message: str) -> None:
        super().__init__(message, metadata={"stage": "queue"})


class RequestRejected(EngineFailure):
    """Triton rejected the request as invalid; the request was not run."""


class RequestTimeout(EngineUnavailable):
    """Triton did not respond within the timeout of the request."""


class Unreachable(EngineUnavailable):
    """There is no connection to Triton, or it broke while the request was in flight."""


ENDED = (RegionUnregistered, QueueFull, QueueTimeout, RequestRejected, WeightsChanged)
"""Errors after which the request has certainly ended; after any other, Triton may still run it."""

_KINDS: tuple[tuple[type[SamserveError], str], ...] = (
    (RegionUnregistered, "region_unregistered"),
    (QueueFull, "queue_full"),
    (QueueTimeout, "queue_timeout"),
    (RequestRejected, "rejected"),
    (RequestTimeout, "timeout"),
    (Unreachable, "unreachable"),
    (WeightsChanged, "weights_mismatch"),
    (EngineUnavailable, "model_not_served"),
)


def kind_of(error: SamserveError) -> str:
    """Return the value of the label ``kind`` for an error."""
    return next((name for kind, name in _KINDS if isinstance(error, kind)), "failed")


_Row = tuple[str, type[SamserveError], str]
_TABLE: Mapping[str, tuple[_Row, ...]] = {
    # By status: pattern in Triton's message, our error, text for clients; the first match counts.
    "NOT_FOUND": (
        (
            "shared memory region",
            RegionUnregistered,
            "a shared memory region of the request is not registered with Triton",
        ),
        ("", EngineUnavailable, "Triton no longer serves the model"),
    ),
    "UNAVAILABLE": (
        ("maximum queue size", QueueFull, "Triton's queue is full"),
        ("timeout expired", QueueTimeout, "deadline exceeded in Triton's queue"),
        ("explicit model", RequestRejected, "Triton does not load models on request"),
        ("not ready", EngineUnavailable, "the model is not ready in Triton"),
        (
            "is restricted",
            RequestRejected,
            "Triton restricts this protocol; triton.headers_file lacks the header that it requires "
            "or has another value",
        ),
        ("certificate has expired", Unreachable, "Triton's certificate has expired"),
        (
            "CERTIFICATE_VERIFY_FAILED",
            Unreachable,
            "Triton's certificate is not signed by a CA of triton.ca_file",
        ),
        (
            "Hostname Verification|not in peer certificate",
            Unreachable,
            "Triton's certificate is not valid for the host in triton.url",
        ),
        (
            "[Hh]andshake",
            Unreachable,
            "the TLS handshake failed; Triton may not use TLS",
        ),
        (
            "failed to connect.*Socket closed",
            Unreachable,
            "Triton closes new connections; it may require TLS or a client certificate",
        ),
        (
            "(?i)errors resolving|lookup failed|dns",
            Unreachable,
            "the host name in triton.url cannot be resolved",
        ),
        ("", Unreachable, "Triton cannot be reached"),
    ),
    "INVALID_ARGUMENT": (
        (
            f"inference output '{DIGEST_OUTPUT}'",
            WeightsChanged,
            "Triton has loaded a model that does not report the digest of its weights",
        ),
    ),
    "DEADLINE_EXCEEDED": (("", RequestTimeout, "Triton did not respond in time"),),
    "CANCELLED": (("", Unreachable, "Triton cancelled the request"),),
}


# INTERNAL and UNKNOWN may come from gRPC itself: then the state of the request is unknown.
_REJECTED = frozenset({"INVALID_ARGUMENT", "ALREADY_EXISTS", "UNIMPLEMENTED"})


def translate(error: InferenceServerException) -> SamserveError:
    """Translate an error of tritonclient; Triton's own message only goes to the log."""
    code = str(error.status() or "").removeprefix("StatusCode.")
    message = error.message() or ""
    for pattern, kind, text in _TABLE.get(code, ()):
        if re.search(pattern, message):
            return kind(text)
    failure = RequestRejected if code in _REJECTED else EngineFailure
    return failure(f"Triton failed: {code}: {message}")
