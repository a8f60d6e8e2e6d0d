"""Errors of gateways and of the bridge as one kind of failure, which each tool writes its way."""

from __future__ import annotations

from samserve.calls.status import INTERNAL_TEXT, Code, Failure
from samserve.client import Cancelled, SamserveClientError, Unavailable
from samserve.errors import FieldViolation, SamserveError

GATEWAY_UNAVAILABLE = "GATEWAY_UNAVAILABLE"
"""The reason of requests while no gateway can be reached."""


def failure_of(error: Exception, request_id: str) -> Failure:
    """Describe *error*; texts that gRPC writes, which contain addresses, are not repeated."""
    if isinstance(error, SamserveError) or not isinstance(error, SamserveClientError):
        return Failure.of(error, request_id)
    code = Code.__members__.get(error.code, Code.INTERNAL)
    if isinstance(error, Unavailable | Cancelled) and not error.reason:
        text = "no samserve server is reachable at the moment; try again"
        about = {"request_id": request_id}
        return Failure(Code.UNAVAILABLE, GATEWAY_UNAVAILABLE, text, about, retry_after_s=1.0)
    if code is Code.INTERNAL:
        return Failure(code, "INTERNAL", INTERNAL_TEXT, {"request_id": request_id})
    return Failure(
        code,
        error.reason or error.code,
        error.message,
        {**error.metadata, "request_id": request_id},
        violations=tuple(
            FieldViolation(each.field, each.description) for each in error.field_violations
        ),
        quota_subject=error.quota_subject,
        retry_after_s=error.retry_after_s,
    )
