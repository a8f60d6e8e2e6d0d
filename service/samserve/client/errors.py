"""What a call can raise, and the one table from `google.rpc` details to these classes.

::

    SamserveClientError
    ├── InvalidArgument        change the request; ``field_violations`` say where
    ├── NotFound
    │   ├── EmbeddingNotFound  call ``embed`` again, or send the image
    │   └── ModelNotFound      choose another model
    ├── Unauthenticated        give a ``token`` that holds
    ├── PermissionDenied       the token's roles do not allow this
    ├── ResourceExhausted      a message over the size limit of the server, or of the client
    │   ├── Overloaded         try again after ``retry_after_s``
    │   └── QuotaExceeded      the same, if that is not None; ``quota_subject`` says whose quota
    ├── Unavailable            not reachable, or going down; retried already
    ├── DeadlineExceeded       ``timeout_s``, or the server's own deadline, has passed
    ├── Cancelled              the server or a proxy ended the call
    └── Internal               report it with ``request_id``

Other than these, only ``OSError`` (an image file that cannot be read), ``ValueError`` and
``TypeError`` (arguments that cannot be sent), and ``RuntimeError`` (a client that is not open, or
cannot be used in a forked process) are raised.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from samserve.client.advice import advise
from samserve.client.metadata import REQUEST_ID

_DETAILS = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """What is wrong with one field of the request, by its protobuf path."""

    field: str
    description: str


@dataclass(frozen=True, slots=True)
class ErrorDetails:
    """What `google.rpc` details add to a status; ``retry_after_s`` None if it says nothing."""

    reason: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    field_violations: tuple[FieldViolation, ...] = ()
    retry_after_s: float | None = None
    quota_subject: str = ""


class SamserveClientError(Exception):
    """A call that failed.

    ``code`` is the name of the gRPC status; ``reason`` the server's reason, which programs may
    rely on, empty where no samserve answered; ``metadata`` repeats the numbers of the text;
    ``request_id`` finds the call in the server's log.
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
    """A field of the request is wrong."""


class NotFound(SamserveClientError):
    """Something named in the request is not there."""


class EmbeddingNotFound(NotFound):
    """The embedding is unknown, has expired or was evicted: embed again."""


class ModelNotFound(NotFound):
    """No model of that name is served."""


class Unauthenticated(SamserveClientError):
    """The server wants credentials, or does not take those that were given."""


class PermissionDenied(SamserveClientError):
    """The server knows who calls, and does not allow it this."""


class ResourceExhausted(SamserveClientError):
    """A message is larger than the server, or this client, takes."""


class Overloaded(ResourceExhausted):
    """The server is at one of its bounds: nothing was begun, try again later."""


class QuotaExceeded(Overloaded):
    """A quota is used up; without ``retry_after_s``, waiting does not help: ask for less."""


class Unavailable(SamserveClientError):
    """The server, or a part of it, cannot be reached."""


class DeadlineExceeded(SamserveClientError):
    """The call ran out of time."""


class Cancelled(SamserveClientError):
    """The call was ended by the other side."""


class Internal(SamserveClientError):
    """The server failed on a valid request."""


_BY_REASON: Mapping[str, type[SamserveClientError]] = {
    "EMBEDDING_NOT_FOUND": EmbeddingNotFound,
    "MODEL_NOT_FOUND": ModelNotFound,
    "OVERLOADED": Overloaded,
    "QUOTA_EXCEEDED": QuotaExceeded,
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


def typed(
    error: grpc.aio.AioRpcError, request_id: str, *, encrypted: bool = False
) -> SamserveClientError:
    """Make the exception of the table of a `grpc` exception.

    *encrypted* is whether the connection has TLS, for what to do about one that fails.  The cause
    is left without a traceback, which would keep the channel: see `forks`.
    """
    trailing = dict(error.trailing_metadata() or ())
    details = _details(trailing.get(_DETAILS))
    code = error.code()
    kind = _BY_REASON.get(details.reason) or _BY_CODE.get(code, SamserveClientError)
    said = error.details() or code.name
    failure = kind(
        said if details.reason else advise(code, said, encrypted=encrypted),
        code=code.name,
        request_id=str(trailing.get(REQUEST_ID, request_id)),
        details=details,
    )
    failure.__cause__ = error.with_traceback(None)
    return failure


def _details(serialized: str | bytes | None) -> ErrorDetails:
    """Read the details that are known; others, and damaged ones, say nothing."""
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
