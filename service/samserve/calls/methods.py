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
    *streams* is whether the response is a stream, *client_streams* whether the request is one.
    """

    name: str
    permissions: frozenset[Permission]
    limits: str = "other"
    priority: Priority = Priority.INTERACTIVE
    small_request: bool = False
    streams: bool = False
    client_streams: bool = False

    @property
    def kind(self) -> str:
        """The kind of RPC, by its name in metrics."""
        if self.client_streams:
            return "client_stream"
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
    Method(
        "GetEmbedding",
        frozenset({Permission.EMBEDDINGS_READ}),
        "embedding_files",
        small_request=True,
        streams=True,
    ),
    Method(
        "PutEmbedding",
        frozenset({Permission.EMBEDDINGS_WRITE}),
        "embedding_files",
        client_streams=True,
    ),
    # Loading a large model takes minutes; draining waits for the longest call.
    Method(
        "PromoteModel",
        frozenset({Permission.MODELS_ADMIN}),
        "promotion",
        Priority.BULK,
        small_request=True,
    ),
    Method("ListModels", ALL_PERMISSIONS, small_request=True),
)

DOWNLOAD_DECODER = Method(
    "DownloadDecoder", frozenset({Permission.DECODERS_READ}), small_request=True, streams=True
)
"""The download of a decoder from the HTTP listener: a call like the others, and not an RPC."""
