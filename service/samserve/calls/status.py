"""Mapping of exceptions to status codes: the only table, and what an error reveals to a client."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from samserve import errors

INTERNAL_TEXT = "internal error; the server logged the cause with this request id"


class Code(Enum):
    """The status of a call; names and numbers are those of `google.rpc.Code`."""

    OK = 0
    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


_CODES: tuple[tuple[type[errors.SamserveError], Code], ...] = (
    (errors.InvalidRequest, Code.INVALID_ARGUMENT),
    (errors.NotFound, Code.NOT_FOUND),
    (errors.Unauthenticated, Code.UNAUTHENTICATED),
    (errors.PermissionDenied, Code.PERMISSION_DENIED),
    (errors.MethodDisabled, Code.UNIMPLEMENTED),
    (errors.PromotionRefused, Code.FAILED_PRECONDITION),
    (errors.Overloaded, Code.RESOURCE_EXHAUSTED),
    (errors.Unavailable, Code.UNAVAILABLE),
    (errors.DeadlineExceeded, Code.DEADLINE_EXCEEDED),
    (errors.EngineFailure, Code.INTERNAL),
)


def code_of(error: Exception) -> Code:
    """Return the code of an error; INTERNAL if it is not in the table."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), Code.INTERNAL)


@dataclass(frozen=True, slots=True)
class Failure:
    """The failure that a client receives, in any transport.

    An internal error reveals its request id only, which *metadata* always contains.  *violations*
    are those of an invalid request, *quota_subject* is the owner of the exhausted quota, and
    *retry_after_s* is None where waiting does not help.
    """

    code: Code
    reason: str
    message: str
    metadata: Mapping[str, str]
    violations: tuple[errors.FieldViolation, ...] = ()
    quota_subject: str = ""
    retry_after_s: float | None = None

    @classmethod
    def of(cls, error: Exception, request_id: str) -> Failure:
        """Describe *error*."""
        code = code_of(error)
        if code is Code.INTERNAL or not isinstance(error, errors.SamserveError):
            return cls(Code.INTERNAL, "INTERNAL", INTERNAL_TEXT, {"request_id": request_id})
        retry_after_s = None
        if isinstance(error, errors.Overloaded | errors.Unavailable):
            retry_after_s = error.retry_after_s
        return cls(
            code,
            error.reason,
            error.message,
            {**error.metadata, "request_id": request_id},
            violations=error.violations if isinstance(error, errors.InvalidRequest) else (),
            quota_subject=error.subject if isinstance(error, errors.QuotaExceeded) else "",
            retry_after_s=retry_after_s,
        )
