"""gRPC statuses of failed calls, with `google.rpc` details; `calls.status` has the codes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from google.protobuf import any_pb2, duration_pb2, json_format
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from samserve.calls.status import Failure

DOMAIN = "samserve"
_MAX_RETRY_S = 7 * 24 * 3600.0


def status_of(failure: Failure) -> status_pb2.Status:
    """Build the status that the client receives."""
    status = status_pb2.Status(code=failure.code.value, message=failure.message)
    for detail in _details(failure):
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def readable_details(status: status_pb2.Status) -> list[dict[str, Any]]:
    """Return the details of a status as values of JSON."""
    return [
        {name: value for name, value in json_format.MessageToDict(each).items() if name != "@type"}
        for each in status.details
    ]


def _details(failure: Failure) -> Iterator[Message]:
    yield error_details_pb2.ErrorInfo(
        reason=failure.reason, domain=DOMAIN, metadata=failure.metadata
    )
    if failure.violations:
        violations = [
            error_details_pb2.BadRequest.FieldViolation(
                field=violation.field, description=violation.description
            )
            for violation in failure.violations
        ]
        yield error_details_pb2.BadRequest(field_violations=violations)
    if failure.quota_subject:
        violation = error_details_pb2.QuotaFailure.Violation(
            subject=failure.quota_subject, description=failure.message
        )
        yield error_details_pb2.QuotaFailure(violations=[violation])
    if failure.retry_after_s is not None:
        delay = duration_pb2.Duration()
        # Rounded up: a client that retries too early is rejected again.
        delay.FromMilliseconds(math.ceil(min(failure.retry_after_s, _MAX_RETRY_S) * 1000))
        yield error_details_pb2.RetryInfo(retry_delay=delay)
