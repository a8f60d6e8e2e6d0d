"""Errors to gRPC statuses: the one table, with `google.rpc` details."""

from __future__ import annotations

import math

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from samserve import errors

DOMAIN = "samserve"
_LONGEST_RETRY_S = 7 * 24 * 3600.0
INTERNAL_TEXT = "internal error; the server's log has the request id"

_CODES: tuple[tuple[type[errors.SamserveError], grpc.StatusCode], ...] = (
    (errors.InvalidRequest, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.NotFound, grpc.StatusCode.NOT_FOUND),
    (errors.Unauthenticated, grpc.StatusCode.UNAUTHENTICATED),
    (errors.PermissionDenied, grpc.StatusCode.PERMISSION_DENIED),
    (errors.Overloaded, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.Unavailable, grpc.StatusCode.UNAVAILABLE),
    (errors.DeadlineExceeded, grpc.StatusCode.DEADLINE_EXCEEDED),
    (errors.EngineFailure, grpc.StatusCode.INTERNAL),
)


def code_of(error: Exception) -> grpc.StatusCode:
    """Choose the code of an error; what is not in the table is INTERNAL."""
    matches = (code for kind, code in _CODES if isinstance(error, kind))
    return next(matches, grpc.StatusCode.INTERNAL)


def status_of(error: Exception, request_id: str) -> status_pb2.Status:
    """Describe an error to the client; nothing of an internal error but its request id."""
    code = code_of(error)
    if code is grpc.StatusCode.INTERNAL or not isinstance(error, errors.SamserveError):
        return _status(code_pb2.INTERNAL, INTERNAL_TEXT, [_info("INTERNAL", {}, request_id)])
    details: list[Message] = [_info(error.reason, error.metadata, request_id)]
    if isinstance(error, errors.InvalidRequest):
        details.append(_bad_request(error))
    if isinstance(error, errors.QuotaExceeded):
        details.append(_quota_failure(error))
    if isinstance(error, errors.Overloaded | errors.Unavailable):
        details.extend(_retry_info(error.retry_after_s))
    return _status(code.value[0], error.message, details)


def _status(code: int, message: str, details: list[Message]) -> status_pb2.Status:
    packed = []
    for detail in details:
        wrapped = any_pb2.Any()
        wrapped.Pack(detail)
        packed.append(wrapped)
    return status_pb2.Status(code=code, message=message, details=packed)


def _info(reason: str, metadata: dict[str, str], request_id: str) -> error_details_pb2.ErrorInfo:
    return error_details_pb2.ErrorInfo(
        reason=reason, domain=DOMAIN, metadata={**metadata, "request_id": request_id}
    )


def _bad_request(error: errors.InvalidRequest) -> error_details_pb2.BadRequest:
    return error_details_pb2.BadRequest(
        field_violations=[
            error_details_pb2.BadRequest.FieldViolation(
                field=violation.field, description=violation.description
            )
            for violation in error.violations
        ]
    )


def _quota_failure(error: errors.QuotaExceeded) -> error_details_pb2.QuotaFailure:
    violation = error_details_pb2.QuotaFailure.Violation(
        subject=error.subject, description=error.message
    )
    return error_details_pb2.QuotaFailure(violations=[violation])


def _retry_info(seconds: float | None) -> list[error_details_pb2.RetryInfo]:
    if seconds is None:
        return []
    delay = duration_pb2.Duration()
    # Rounded up: a client that comes back a moment too early is refused again.
    delay.FromMilliseconds(math.ceil(min(seconds, _LONGEST_RETRY_S) * 1000))
    return [error_details_pb2.RetryInfo(retry_delay=delay)]
