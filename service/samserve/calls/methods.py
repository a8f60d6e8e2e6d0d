"""The methods of the service: one row says all that the pipeline needs to know of each."""

from __future__ import annotations

from dataclasses import dataclass

from samserve.context import Priority
from samserve.security.principal import EVERYTHING, Permission
from samserve.settings import AdmissionSettings, DeadlineSettings


@dataclass(frozen=True, slots=True)
class Method:
    """One method, by the name that the protocol has.

    Any one of *permissions* is enough.  *limits* names its settings: the deadline
    ``deadlines.<limits>_s`` of calls whose client set none, the number ``admission.<limits>`` of
    concurrent calls, and, if there is one of this name, the quota of a tenant.  A *small_request*
    has some hundred bytes, without an image or a mask; *streams* tells whether the answer is a
    stream.
    """

    name: str
    permissions: frozenset[Permission]
    limits: str = "other"
    priority: Priority = Priority.INTERACTIVE
    small_request: bool = False
    streams: bool = False

    @property
    def kind(self) -> str:
        """The kind, as metrics name it."""
        return "server_stream" if self.streams else "unary"

    def deadline_s(self, settings: DeadlineSettings) -> float:
        """Return the seconds that a call gets whose client set no deadline."""
        return float(getattr(settings, f"{self.limits}_s"))

    def max_in_flight(self, settings: AdmissionSettings) -> int:
        """Return how many calls may be in flight."""
        return int(getattr(settings, self.limits))


METHODS = (
    Method("Embed", frozenset({Permission.EMBED}), "embed"),
    Method("Predict", frozenset({Permission.PREDICT}), "predict"),
    # All its work waits behind calls that people wait for.
    Method("AutoMask", frozenset({Permission.AUTOMASK}), "automask", Priority.BULK, streams=True),
    Method("DeleteEmbedding", frozenset({Permission.EMBEDDINGS_ADMIN}), small_request=True),
    Method("ListModels", EVERYTHING, small_request=True),
)
