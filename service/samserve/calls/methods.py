"""The methods of the service: one row for each, with its permissions, limits and priority."""

from __future__ import annotations

from dataclasses import dataclass

from samserve.context import Priority
from samserve.security.principal import ALL_PERMISSIONS, Permission
from samserve.settings import AdmissionSettings, DeadlineSettings


@dataclass(frozen=True, slots=True)
class Method:
    """One method, by its name in the protocol.

    Any one of *permissions* is sufficient.  *limits* is part of the names of its settings: the
    deadline ``deadlines.<limits>_s`` of calls whose client set none, the number
    ``admission.max_concurrent_<limits>`` of concurrent calls, and, if there is one, a tenant's
    quota of that name.  A *small_request* has some hundred bytes, without an image or a mask;
    *streams* is whether the response is a stream.
    """

    name: str
    permissions: frozenset[Permission]
    limits: str = "other"
    priority: Priority = Priority.INTERACTIVE
    small_request: bool = False
    streams: bool = False

    @property
    def kind(self) -> str:
        """The kind of RPC, by its name in metrics."""
        return "server_stream" if self.streams else "unary"

    @property
    def concurrency_limit(self) -> str:
        """The name of the setting, and of the quota, that limits concurrent calls."""
        return f"max_concurrent_{self.limits}"

    def deadline_s(self, settings: DeadlineSettings) -> float:
        """Return the deadline in seconds of a call whose client set none."""
        return float(getattr(settings, f"{self.limits}_s"))

    def max_in_flight(self, settings: AdmissionSettings) -> int:
        """Return the maximum number of concurrent calls."""
        return int(getattr(settings, self.concurrency_limit))


METHODS = (
    Method("Embed", frozenset({Permission.EMBED}), "embed"),
    Method("Predict", frozenset({Permission.PREDICT}), "predict"),
    # All its work has a lower priority than interactive calls.
    Method("AutoMask", frozenset({Permission.AUTOMASK}), "automask", Priority.BULK, streams=True),
    Method("DeleteEmbedding", frozenset({Permission.EMBEDDINGS_ADMIN}), small_request=True),
    Method("ListModels", ALL_PERMISSIONS, small_request=True),
)
