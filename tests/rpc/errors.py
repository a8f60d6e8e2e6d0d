"""The results of calls, and the errors that clients receive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2


@dataclass(frozen=True)
class Failure:
    """A failed call: code, text, `ErrorInfo`, and the content of other details."""

    code: grpc.StatusCode
    text: str
    reason: str
    metadata: dict[str, str]
    fields: list[str]
    descriptions: list[str]
    retry_after_s: float | None
    quota_subject: str


async def finish(call: Any) -> Any:
    """Await a call, or read a stream; return the response, or all messages."""
    return [message async for message in call] if hasattr(call, "__aiter__") else await call


async def error_of(call: Any) -> grpc.aio.AioRpcError:
    """Await a call, or read a stream, that must fail; return its error."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await finish(call)
    return caught.value


async def failure_of(call: Any) -> Failure:
    """Await a call that must fail and read its error."""
    return read(await error_of(call))


def read(error: grpc.aio.AioRpcError) -> Failure:
    """Read the details of an error."""
    trailing = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailing["grpc-status-details-bin"])
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    retry, quota = error_details_pb2.RetryInfo(), error_details_pb2.QuotaFailure()
    unpacked = [
        kind
        for kind in (info, bad, retry, quota)
        for detail in status.details
        if detail.Unpack(kind)
    ]
    assert len(unpacked) == len(status.details)
    assert info.domain == "samserve"
    assert info.metadata["request_id"] == trailing["x-request-id"]
    return Failure(
        code=error.code(),
        text=error.details() or "",
        reason=info.reason,
        metadata=dict(info.metadata),
        fields=[violation.field for violation in bad.field_violations],
        descriptions=[violation.description for violation in bad.field_violations],
        retry_after_s=retry.retry_delay.ToMilliseconds() / 1000 if retry in unpacked else None,
        quota_subject=quota.violations[0].subject if quota.violations else "",
    )
