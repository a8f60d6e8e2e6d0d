"""The exceptions that samserve raises.

::

    SamserveError
    ├── InvalidRequest            the client must change the request
    │   ├── ImageUnreadable       the bytes are not an image of a supported format
    │   ├── ImageTooLarge         the image exceeds a limit
    │   ├── ResponseTooLarge      the response in the requested format would exceed its limit
    │   └── MetadataTooLarge      the metadata of the call exceeds its limit
    ├── NotFound
    │   ├── EmbeddingNotFound     unknown, expired, evicted or another tenant's: embed again
    │   ├── ModelNotFound         no such model is served
    │   └── DecoderNotFound       no decoder with this digest may be downloaded
    ├── Unauthenticated           missing or invalid credentials
    │   ├── SessionRequired       a call over HTTP without a session, where the page has sessions
    │   └── SessionTokenInvalid   the token of the page's address is wrong, or was used
    ├── PermissionDenied          the caller's roles do not allow the call
    │   ├── HostNotAllowed        the HTTP listener is addressed by a name that is not its own
    │   └── OriginNotAllowed      a web page of another origin calls the HTTP listener
    ├── MethodDisabled            the operator has not enabled the method
    ├── PromotionRefused          the version of the model cannot be put into service
    ├── Overloaded                a limit is reached: retry after ``retry_after_s``
    │   ├── MemoryExhausted       no shared memory is available
    │   └── QuotaExceeded         a quota of the tenant, or the rate limit of the server
    ├── Unavailable               a component is unavailable: retry after ``retry_after_s``
    │   ├── EngineUnavailable     the engine is unavailable
    │   │   └── WeightsChanged    the engine serves other weights of the model than requested
    │   ├── CacheUnavailable      the cache is unavailable (never raised for a miss)
    │   └── Misconfigured         a configuration file cannot be used
    ├── DeadlineExceeded          the deadline of the call has passed
    └── EngineFailure             an inference failed; details are logged, not returned

Each class names its ``reason``.  Clients may rely on (reason, domain ``samserve``); the text may
change.  Only ``calls/status.py`` maps these exceptions to status codes.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple


class FieldViolation(NamedTuple):
    """What is wrong with one request field, by its protobuf path."""

    field: str
    description: str


class SamserveError(Exception):
    """The root of the tree; ``metadata`` repeats every number of the text for programs."""

    reason: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, *, metadata: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = dict(metadata or {})


class InvalidRequest(SamserveError):
    """A field of the request is invalid; ``violations`` name the fields and their limits."""

    reason = "INVALID_ARGUMENT"

    def __init__(
        self, field: str, description: str, *, metadata: dict[str, str] | None = None
    ) -> None:
        super().__init__(f"{field}: {description}", metadata=metadata)
        self.violations: tuple[FieldViolation, ...] = (FieldViolation(field, description),)


class Violations:
    """Collects the violations of a request, so that one response reports all of them.

    At most `MAX_VIOLATIONS` are reported.
    """

    MAX_VIOLATIONS = 16
    _MAX_IN_TEXT = 4

    def __init__(self) -> None:
        self._found: list[InvalidRequest] = []

    def collect(self) -> _Collecting:
        """Catch an `InvalidRequest` that ends the block and keep it for `check`."""
        return _Collecting(self)

    def check(self) -> None:
        """Raise the collected errors as one."""
        if not self._found:
            return
        first = self._found[0]
        violations = [each for error in self._found for each in error.violations]
        violations = violations[: self.MAX_VIOLATIONS]
        if len(violations) == 1:
            raise first
        error = InvalidRequest(*violations[0], metadata=first.metadata)
        error.violations = tuple(violations)
        texts = [": ".join(violation) for violation in violations[: self._MAX_IN_TEXT]]
        more = len(violations) - len(texts)
        error.message = "; ".join([*texts, f"and {more} more"] if more else texts)
        error.args = (error.message,)
        raise error

    def add(self, error: InvalidRequest) -> None:
        """Keep an error; raise all of them once there are `MAX_VIOLATIONS`."""
        self._found.append(error)
        if sum(len(each.violations) for each in self._found) >= self.MAX_VIOLATIONS:
            self.check()


class _Collecting:
    """The block of `Violations.collect`; a class, as it is entered for every point."""

    __slots__ = ("_violations",)

    def __init__(self, violations: Violations) -> None:
        self._violations = violations

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        # Subclasses, such as an unreadable image, end the call with an error of their own.
        if type(error) is not InvalidRequest:
            return False
        self._violations.add(error)
        return True


class ImageUnreadable(InvalidRequest):
    """The bytes are not a complete image of a supported format."""

    reason = "IMAGE_UNREADABLE"


class ImageTooLarge(InvalidRequest):
    """The image has more pixels, or a longer side, than the server accepts."""

    reason = "IMAGE_TOO_LARGE"


class ResponseTooLarge(InvalidRequest):
    """The response in the requested format exceeds the response limit."""

    reason = "RESPONSE_TOO_LARGE"


class MetadataTooLarge(InvalidRequest):
    """The metadata of the call, credentials included, exceeds its limit."""

    reason = "METADATA_TOO_LARGE"


class NotFound(SamserveError):
    """The request names something that does not exist."""


class EmbeddingNotFound(NotFound):
    """The id is unknown, expired, evicted or another tenant's; one error for all four."""

    reason = "EMBEDDING_NOT_FOUND"


class ModelNotFound(NotFound):
    """No model of that name is served."""

    reason = "MODEL_NOT_FOUND"


class DecoderNotFound(NotFound):
    """No served model has a decoder with this digest that clients may download."""

    reason = "DECODER_NOT_FOUND"


class Unauthenticated(SamserveError):
    """The credentials of the call are missing or invalid; the text never repeats them."""

    reason = "UNAUTHENTICATED"


class SessionRequired(Unauthenticated):
    """A call over HTTP without the credential of a session, on a server with the web page."""

    reason = "SESSION_REQUIRED"


class SessionTokenInvalid(Unauthenticated):
    """The token in the address of the web page is not the current one, or has been used."""

    reason = "SESSION_TOKEN_INVALID"


class PermissionDenied(SamserveError):
    """The caller is known, but none of its roles allows the call."""

    reason = "PERMISSION_DENIED"


class HostNotAllowed(PermissionDenied):
    """The header `Host` names none of the names of the HTTP listener."""

    reason = "HOST_NOT_ALLOWED"


class OriginNotAllowed(PermissionDenied):
    """The page that sends the request is not of an allowed origin."""

    reason = "ORIGIN_NOT_ALLOWED"


class MethodDisabled(SamserveError):
    """The operator has not enabled the method."""

    reason = "METHOD_DISABLED"


class PromotionRefused(SamserveError):
    """The version of the model cannot be put into service; the one in service stays."""

    reason = "PROMOTION_REFUSED"


class Overloaded(SamserveError):
    """A limit on concurrent work or memory is reached; no work has begun.

    ``retry_after_s`` is None where waiting does not help.
    """

    reason = "OVERLOADED"

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float | None = 1.0,
        metadata: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message, metadata=metadata)
        self.retry_after_s = retry_after_s


class MemoryExhausted(Overloaded):
    """The requested memory is not available on this system."""

    reason = "MEMORY_EXHAUSTED"


class QuotaExceeded(Overloaded):
    """A quota is exhausted; ``subject`` names its owner: ``tenant:NAME`` or ``server``."""

    reason = "QUOTA_EXCEEDED"

    def __init__(
        self,
        message: str,
        *,
        subject: str,
        retry_after_s: float | None,
        metadata: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message, retry_after_s=retry_after_s, metadata=metadata)
        self.subject = subject


class Unavailable(SamserveError):
    """A component that the call needs is unavailable; the call may be retried."""

    retry_after_s: ClassVar[float] = 1.0


class EngineUnavailable(Unavailable):
    """The engine is unreachable or not ready."""

    reason = "ENGINE_UNAVAILABLE"


class WeightsChanged(EngineUnavailable):
    """The engine serves other weights of the model than those that the call is about.

    The result of an inference with such weights is discarded.  The engine has refreshed its list of
    models since: if the list shows other weights, the call can be repeated with these.
    """


class CacheUnavailable(Unavailable):
    """The cache is unavailable."""

    reason = "CACHE_UNAVAILABLE"


class Misconfigured(Unavailable):
    """A file that the server is configured to use is missing or invalid.

    Raised at startup only; the text names the file and the position in it, never its values.
    """

    reason = "MISCONFIGURED"


class DeadlineExceeded(SamserveError):
    """The deadline of the call has passed; ``stage`` in the metadata names the current stage."""

    reason = "DEADLINE_EXCEEDED"


class EngineFailure(SamserveError):
    """An inference failed on a valid input; the cause is chained for the log."""

    reason = "INTERNAL"
