"""Everything that samserve raises on purpose.

::

    SamserveError
    ├── InvalidRequest            the caller must change the request
    │   ├── ImageUnreadable       the bytes are no image that we read
    │   ├── ImageTooLarge         the image is over a limit
    │   ├── ResponseTooLarge      the asked format would not fit into an answer
    │   └── MetadataTooLarge      what the call carries beside its request is over a limit
    ├── NotFound
    │   ├── EmbeddingNotFound     unknown, expired, evicted or another tenant's: embed again
    │   └── ModelNotFound         no such model is served
    ├── Unauthenticated           no credentials, or none that hold
    ├── PermissionDenied          the caller's roles do not allow it
    ├── Overloaded                a bound is reached: try again after ``retry_after_s``
    │   ├── MemoryExhausted       the system has no room for shared memory
    │   └── QuotaExceeded         a bound of this tenant, or the rate of the whole server
    ├── Unavailable               a part is not there: try again after ``retry_after_s``
    │   ├── EngineUnavailable     the model runtime is not there
    │   │   └── WeightsChanged    it has other weights of the model than those that were asked for
    │   ├── StoreUnavailable      the embedding store is not there (never said of a miss)
    │   └── Misconfigured         a file of the server's configuration cannot be used
    ├── DeadlineExceeded          the call ran out of time
    └── EngineFailure             the model runtime failed; details are logged, not answered

Each class names its ``reason``; (reason, domain ``samserve``) is what clients may rely on, the
text may change.  ``calls/status.py`` is the only place that turns these into codes.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple


class FieldViolation(NamedTuple):
    """What is wrong with one request field, by its protobuf path."""

    field: str
    description: str


class SamserveError(Exception):
    """Root of the tree; ``metadata`` repeats every number of the text for programs."""

    reason: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, *, metadata: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = dict(metadata or {})


class InvalidRequest(SamserveError):
    """A field of the request is wrong; ``violations`` say which and what its limit is."""

    reason = "INVALID_ARGUMENT"

    def __init__(
        self, field: str, description: str, *, metadata: dict[str, str] | None = None
    ) -> None:
        super().__init__(f"{field}: {description}", metadata=metadata)
        self.violations: tuple[FieldViolation, ...] = (FieldViolation(field, description),)


class Violations:
    """Collects what is wrong with a request, so that one answer says all of it.

    Of a request in which very much is wrong it says `MOST`.
    """

    MOST = 16
    _TOLD = 4

    def __init__(self) -> None:
        self._found: list[InvalidRequest] = []

    def collect(self) -> _Collecting:
        """Keep an `InvalidRequest` that ends the block, for `check`, and go on after it."""
        return _Collecting(self)

    def check(self) -> None:
        """Raise what was collected, as one error."""
        if not self._found:
            return
        first = self._found[0]
        violations = [each for error in self._found for each in error.violations][: self.MOST]
        if len(violations) == 1:
            raise first
        error = InvalidRequest(*violations[0], metadata=first.metadata)
        error.violations = tuple(violations)
        texts = [": ".join(violation) for violation in violations[: self._TOLD]]
        more = len(violations) - len(texts)
        error.message = "; ".join([*texts, f"and {more} more"] if more else texts)
        error.args = (error.message,)
        raise error

    def add(self, error: InvalidRequest) -> None:
        """Keep an error; raises all of them as soon as there are enough."""
        self._found.append(error)
        if sum(len(each.violations) for each in self._found) >= self.MOST:
            self.check()


class _Collecting:
    """The block of `Violations.collect`; a class, as it is entered for every point."""

    __slots__ = ("_violations",)

    def __init__(self, violations: Violations) -> None:
        self._violations = violations

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        # Kinds of their own, an image that cannot be read for instance, are answers of their own.
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
    """The answer in the asked format is over the response limit."""

    reason = "RESPONSE_TOO_LARGE"


class MetadataTooLarge(InvalidRequest):
    """The metadata of the call, credentials included, is over the limit."""

    reason = "METADATA_TOO_LARGE"


class NotFound(SamserveError):
    """Something named in the request is not here."""


class EmbeddingNotFound(NotFound):
    """The id is unknown, expired, evicted or another tenant's; one answer for all four."""

    reason = "EMBEDDING_NOT_FOUND"


class ModelNotFound(NotFound):
    """No model of that name is served."""

    reason = "MODEL_NOT_FOUND"


class Unauthenticated(SamserveError):
    """The call carries no credentials, or none that hold; what was sent is never repeated."""

    reason = "UNAUTHENTICATED"


class PermissionDenied(SamserveError):
    """The caller is known, but none of its roles allows the call."""

    reason = "PERMISSION_DENIED"


class Overloaded(SamserveError):
    """A bound on concurrent work or memory is reached; nothing was begun.

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
    """The system has no room for the memory that was asked for."""

    reason = "MEMORY_EXHAUSTED"


class QuotaExceeded(Overloaded):
    """A quota is used up; ``subject`` says whose: ``tenant:NAME`` or ``server``."""

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
    """A part that the call needs cannot be reached; the call may be repeated."""

    retry_after_s: ClassVar[float] = 1.0


class EngineUnavailable(Unavailable):
    """The model runtime cannot be reached or is not ready."""

    reason = "ENGINE_UNAVAILABLE"


class WeightsChanged(EngineUnavailable):
    """The runtime has other weights of the model than those that the call is about.

    What a run of such weights has computed is thrown away.  The engine has looked at its models
    since: if that shows other weights, the call can be done for these.
    """


class StoreUnavailable(Unavailable):
    """The embedding store cannot be reached."""

    reason = "STORE_UNAVAILABLE"


class Misconfigured(Unavailable):
    """A file that the server is configured to use is not there or says nothing sensible.

    Raised at start only; the text names the file and the place in it, never its values.
    """

    reason = "MISCONFIGURED"


class DeadlineExceeded(SamserveError):
    """The call's time is over; ``stage`` in the metadata says what it was doing."""

    reason = "DEADLINE_EXCEEDED"


class EngineFailure(SamserveError):
    """The model runtime failed on a valid input; the cause is chained for the log."""

    reason = "INTERNAL"
