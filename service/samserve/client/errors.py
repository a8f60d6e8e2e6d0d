"""The exceptions of the client, and their mapping from `google.rpc` details.

::

    SamserveClientError
    ├── InvalidArgument        change the request; ``field_violations`` names the fields
    │   ├── ImageUnreadable    the image cannot be decoded
    │   └── ImageTooLarge      the image has too many pixels, or its file too many bytes
    ├── NotFound
    │   ├── EmbeddingNotFound  call ``embed`` again, or send the image
    │   └── ModelNotFound      choose another model
    ├── Unauthenticated        pass a valid ``token``
    ├── PermissionDenied       the token's roles do not allow the call
    ├── MethodDisabled         the operator of the server has not enabled the method
    ├── ResourceExhausted      a message exceeds the size limit of the server or the client
    │   ├── Overloaded         retry after ``retry_after_s``
    │   └── QuotaExceeded      the same, unless it is None; ``quota_subject`` owns the quota
    ├── Unavailable            not reachable, or shutting down; was already retried
    ├── DeadlineExceeded       ``timeout_s``, or the server's own deadline, has passed
    ├── Cancelled              the server or a proxy cancelled the call
    └── Internal               report it with ``request_id``

Apart from these, a call raises only ``OSError`` (an image file that cannot be read), ``ValueError``
and ``TypeError`` (invalid arguments), and ``RuntimeError`` (a client that is not open, or cannot be
used in a forked process).  The client itself raises `ImageUnreadable` and `ImageTooLarge` for an
image that it cannot convert (`samserve.client.ImageLike`), without a ``request_id``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from samserve.client.advice import advise
from samserve.client.metadata import REQUEST_ID

_DETAILS = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """The violation of one field of the request, by its protobuf path."""

    field: str
    description: str


@dataclass(frozen=True, slots=True)
class ErrorDetails:
    """The `google.rpc` details of a status; ``retry_after_s`` is None without a retry delay."""

    reason: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    field_violations: tuple[FieldViolation, ...] = ()
    retry_after_s: float | None = None
    quota_subject: str = ""


class SamserveClientError(Exception):
    """A failed call.

    ``code`` is the name of the gRPC status; ``reason`` is the server's reason, which programs may
    rely on, and empty if no samserve server responded; ``metadata`` repeats the numbers of the
    text; ``request_id`` identifies the call in the server's log.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str = "UNKNOWN",
        request_id: str = "",
        details: ErrorDetails = ErrorDetails(),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.reason = details.reason
        self.request_id = request_id
        self.metadata = dict(details.metadata)
        self.field_violations = details.field_violations
        self.retry_after_s = details.retry_after_s
        self.quota_subject = details.quota_subject


class InvalidArgument(SamserveClientError):
    """A field of the request is invalid."""


class _ImageError(InvalidArgument):
    """An image cannot be used."""

    _reason = ""

    @classmethod
    def of(cls, name: str, text: str, **metadata: object) -> Self:
        """Return an error of this client, in the form of the server's; *name* is the file's."""
        details = ErrorDetails(
            reason=cls._reason,
            metadata={key: str(value) for key, value in metadata.items()},
            field_violations=(FieldViolation("image.encoded", text),),
        )
        return cls(f"{name}: {text}", code="INVALID_ARGUMENT", details=details)


class ImageUnreadable(_ImageError):
    """The image is corrupt, or its format is unknown."""

    _reason = "IMAGE_UNREADABLE"


class ImageTooLarge(_ImageError):
    """The image is over a limit of the server or of this client; ``metadata`` has the limit."""

    _reason = "IMAGE_TOO_LARGE"


class NotFound(SamserveClientError):
    """The request names something that does not exist."""


class EmbeddingNotFound(NotFound):
    """The embedding is unknown, has expired or was evicted: embed the image again."""


class ModelNotFound(NotFound):
    """No model of that name is served."""


class Unauthenticated(SamserveClientError):
    """The credentials are missing or invalid."""


class PermissionDenied(SamserveClientError):
    """The caller is authenticated, but not allowed to make the call."""


class MethodDisabled(SamserveClientError):
    """The operator of the server has not enabled the method."""


class ResourceExhausted(SamserveClientError):
    """A message exceeds the size limit of the server or of this client."""


class Overloaded(ResourceExhausted):
    """A limit of the server is reached; no work has begun, retry later."""


class QuotaExceeded(Overloaded):
    """A quota is exhausted; without ``retry_after_s`` waiting does not help: request less."""


class Unavailable(SamserveClientError):
    """The server, or one of its components, is unavailable."""


class DeadlineExceeded(SamserveClientError):
    """The deadline of the call has passed."""


class Cancelled(SamserveClientError):
    """The server or a proxy cancelled the call."""


class Internal(SamserveClientError):
    """The server failed on a valid request."""


_BY_REASON: Mapping[str, type[SamserveClientError]] = {
    "EMBEDDING_NOT_FOUND": EmbeddingNotFound,
    "IMAGE_TOO_LARGE": ImageTooLarge,
    "IMAGE_UNREADABLE": ImageUnreadable,
    "MODEL_NOT_FOUND": ModelNotFound,
    "OVERLOADED": Overloaded,
    "QUOTA_EXCEEDED": QuotaExceeded,
    "METHOD_DISABLED": MethodDisabled,
}
_BY_CODE: Mapping[grpc.StatusCode, type[SamserveClientError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.INTERNAL: Internal,
}


def from_grpc(
    error: grpc.aio.AioRpcError, request_id: str, *, encrypted: bool = False
) -> SamserveClientError:
    """Convert a `grpc` exception to one of these classes.

    *encrypted* is whether the connection uses TLS, which selects the advice in the text.  The cause
    has no traceback, which would keep the channel: see `forks`.
    """
    trailing = dict(error.trailing_metadata() or ())
    details = _details(trailing.get(_DETAILS))
    code = error.code()
    kind = _BY_REASON.get(details.reason) or _BY_CODE.get(code, SamserveClientError)
    text = error.details() or code.name
    failure = kind(
        text if details.reason else advise(code, text, encrypted=encrypted),
        code=code.name,
        request_id=str(trailing.get(REQUEST_ID, request_id)),
        details=details,
    )
    failure.__cause__ = error.with_traceback(None)
    return failure


def _details(serialized: str | bytes | None) -> ErrorDetails:
    """Read the known details; unknown and corrupt ones are ignored."""
    if not isinstance(serialized, bytes):
        return ErrorDetails()
    info = error_details_pb2.ErrorInfo()
    bad = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    quota = error_details_pb2.QuotaFailure()
    known = (info, bad, retry, quota)
    try:
        for detail in status_pb2.Status.FromString(serialized).details:
            # Unpack does nothing for a detail of another type.
            any(detail.Unpack(kind) for kind in known)
    except DecodeError:
        return ErrorDetails()
    return ErrorDetails(
        reason=info.reason,
        metadata=dict(info.metadata),
        field_violations=tuple(
            FieldViolation(violation.field, violation.description)
            for violation in bad.field_violations
        ),
        retry_after_s=_seconds(retry),
        quota_subject=quota.violations[0].subject if quota.violations else "",
    )


def _seconds(retry: error_details_pb2.RetryInfo) -> float | None:
    if not retry.HasField("retry_delay"):
        return None
    return float(retry.retry_delay.ToTimedelta().total_seconds())
