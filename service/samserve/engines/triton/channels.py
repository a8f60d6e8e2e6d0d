"""One set of channels to Triton, all with the same credentials."""

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
"""Control calls are small; one that takes longer means that Triton is not well."""


class Channels:
    """*count* channels that share the requests, and one for everything else.

    Control calls have a channel of their own so that megabytes of tensors never delay them.
    ``headers`` go with every call.  Used from one event loop.
    """

    def __init__(self, url: str, count: int, credentials: Credentials) -> None:
        self.headers = dict(credentials.headers)
        self.control = _client(url, credentials)
        self._data = [_client(url, credentials) for _ in range(count)]
        self._turns = itertools.cycle(self._data)
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Count a call as under way while the block runs."""
        self._calls += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._calls -= 1
            if not self._calls:
                self._idle.set()

    def next(self) -> InferenceServerClient:
        """Take the channel for one request."""
        return next(self._turns)

    async def call(self, method: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T:
        """Await a *method* of `InferenceServerClient` over the channel for control calls."""
        return await method(self.control, *args, headers=self.headers, client_timeout=CONTROL_S)

    async def reach(self) -> None:
        """See that every channel for requests is connected."""
        for client in self._data:
            await client.is_server_live(headers=self.headers, client_timeout=CONTROL_S)

    async def idle(self) -> None:
        """Wait until no call is under way."""
        await self._idle.wait()

    async def close(self) -> None:
        """Close the channels; requests under way end."""
        await asyncio.gather(*(client.close() for client in (self.control, *self._data)))


def _client(url: str, credentials: Credentials) -> InferenceServerClient:
    with ExitStack() as stack:

        def path_of(content: bytes | None) -> str | None:
            # tritonclient wants paths and reads them at once.
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
                # The default is 30 s between two looks at a name, so that a Triton whose name has
                # got another address would be looked for at the old one for as long.
                ("grpc.dns_min_time_between_resolutions_ms", 1000),
                ("grpc.enable_http_proxy", 0),
                # Pings no more often than Triton allows by default. What counts is that gRPC also
                # gives up a connection on which data stays unacknowledged for the timeout: without
                # this, a machine that vanishes would be waited for until the kernel gives up,
                # minutes later.
                ("grpc.keepalive_time_ms", 300_000),
                ("grpc.keepalive_timeout_ms", 10_000),
            ],
        )
