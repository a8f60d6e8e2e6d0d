"""A set of gRPC channels to Triton, all with the same credentials."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from tritonclient.grpc.aio import InferenceServerClient

from samserve.engines.triton.credentials import Credentials
from samserve.system.memfd import as_path

T = TypeVar("T")

CONTROL_S = 2.0
"""Control calls are small; if one takes longer, Triton is unhealthy."""


class Channels:
    """*count* channels for inference requests, and one for control calls.

    Control calls have a separate channel so that megabytes of tensors never delay them.
    ``headers`` are sent with every call.  To be used from one event loop.
    """

    def __init__(self, url: str, count: int, credentials: Credentials) -> None:
        self.headers = dict(credentials.headers)
        self.control = _client(url, credentials)
        self._data = [_client(url, credentials) for _ in range(count)]
        self._round_robin = itertools.cycle(self._data)
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Count a call as in flight while the block runs."""
        self._in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._idle.set()

    def next(self) -> InferenceServerClient:
        """Return the channel for the next inference request."""
        return next(self._round_robin)

    async def call(
        self,
        method: Callable[..., Coroutine[Any, Any, T]],
        *args: Any,
        timeout_s: float = CONTROL_S,
        **kwargs: Any,
    ) -> T:
        """Call a *method* of `InferenceServerClient` over the control channel."""
        return await method(
            self.control, *args, headers=self.headers, client_timeout=timeout_s, **kwargs
        )

    async def ensure_connected(self) -> None:
        """Check that every channel for inference requests is connected."""
        for client in self._data:
            await client.is_server_live(headers=self.headers, client_timeout=CONTROL_S)

    async def idle(self) -> None:
        """Wait until no call is in flight."""
        await self._idle.wait()

    async def close(self) -> None:
        """Close the channels; requests in flight fail."""
        await asyncio.gather(*(client.close() for client in (self.control, *self._data)))


def _client(url: str, credentials: Credentials) -> InferenceServerClient:
    with ExitStack() as stack:

        def path_of(content: bytes | None) -> str | None:
            # tritonclient accepts paths only and reads the files immediately.
            return None if content is None else stack.enter_context(as_path(content))

        return InferenceServerClient(
            url,
            ssl=credentials.tls,
            root_certificates=path_of(credentials.roots),
            certificate_chain=path_of(credentials.certificates),
            private_key=path_of(credentials.key),
            channel_args=[
                ("grpc.max_send_message_length", -1),
                ("grpc.max_receive_message_length", -1),
                # Channels of one process would otherwise share one connection.
                ("grpc.use_local_subchannel_pool", 1),
                # The default is up to two minutes between attempts.
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.min_reconnect_backoff_ms", 1000),
                ("grpc.max_reconnect_backoff_ms", 1000),
                # The default is 30 s between two DNS lookups; for that time, gRPC would try to
                # reach a Triton whose name has a new address at the old one.
                ("grpc.dns_min_time_between_resolutions_ms", 1000),
                ("grpc.enable_http_proxy", 0),
                # Pings are not more frequent than Triton allows by default. The timeout matters
                # more: gRPC also closes a connection on which data stays unacknowledged for that
                # long. Otherwise a lost machine would only be noticed when the kernel gives up,
                # minutes later.
                ("grpc.keepalive_time_ms", 300_000),
                ("grpc.keepalive_timeout_ms", 10_000),
            ],
        )
