"""The gateways: one connection to each, shared by all callers, and the choice for an image."""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import grpc
import structlog

from samserve.bridge.caller import Caller
from samserve.bridge.settings import GatewaySettings
from samserve.client import Cancelled, Catalog, Client, SamserveClientError, Unavailable
from samserve.errors import Misconfigured
from samserve.telemetry.metrics.bridge import BridgeMetrics

T = TypeVar("T")

# The credential of the current call.  The client asks for it in the task of the call, so that one
# connection serves all callers.
_credential: ContextVar[str] = ContextVar("credential", default="")

# For how long a credential that a gateway has accepted is not verified again.
_ACCEPTED_S = 60.0
_MAX_ACCEPTED = 10_000

_now = time.monotonic


@dataclass(slots=True, eq=False)
class _Gateway:
    target: str
    client: Client
    # Until then it is called only if no other can be.
    avoided_until: float = -math.inf

    def weight(self, key: bytes) -> bytes:
        return hashlib.sha256(self.target.encode() + b"\0" + key).digest()


class Gateways:
    """Calls gateways for callers.

    The gateway of a key is the same in every bridge with the same targets, in any order, and stays
    the same while others come and go (rendezvous hashing).
    """

    def __init__(self, settings: GatewaySettings, metrics: BridgeMetrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._gateways: list[_Gateway] = []
        # When each credential was accepted, by its hash; the earliest first.
        self._accepted: dict[bytes, float] = {}
        self._log = structlog.get_logger("samserve.bridge")

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Keep the connections open while the block runs.  Raises `Misconfigured`."""
        tls = await asyncio.to_thread(_channel_credentials, self._settings)
        async with AsyncExitStack() as stack:
            for target in self._settings.addresses:
                client = Client(
                    target,
                    credentials=tls,
                    server_name=self._settings.server_name,
                    token=_credential.get,
                    plaintext=self._settings.allow_plaintext,
                )
                self._gateways.append(_Gateway(target, await stack.enter_async_context(client)))
            yield

    async def verify(self, caller: Caller) -> None:
        """Check that a gateway accepts the credential of *caller*, once a minute.

        Raises the classes of `samserve.client`, such as `Unauthenticated`.
        """
        owner, now = caller.owner, _now()
        if now - self._accepted.get(owner, -math.inf) < _ACCEPTED_S:
            return
        await self.models(caller)
        self._accepted.pop(owner, None)
        self._accepted[owner] = now
        while len(self._accepted) > _MAX_ACCEPTED:
            del self._accepted[next(iter(self._accepted))]

    async def models(self, caller: Caller) -> Catalog:
        """Return the models of a gateway, and its limits."""
        return await self.call(
            b"", caller, lambda client: client.models(request_id=caller.request_id)
        )

    async def call(self, key: bytes, caller: Caller, use: Callable[[Client], Awaitable[T]]) -> T:
        """Call the gateway of *key*, or the next one while that is unavailable.

        Raises the classes of `samserve.client`; `Unavailable` or `Cancelled` if no gateway takes
        the call.
        """
        token = _credential.set(caller.credential)
        try:
            return await self._first_available(key, use)
        finally:
            _credential.reset(token)

    async def _first_available(self, key: bytes, use: Callable[[Client], Awaitable[T]]) -> T:
        failed: SamserveClientError | None = None
        for gateway in self._in_order(key):
            if gateway.avoided_until > -math.inf:
                # Only this call finds out whether it is available again.
                gateway.avoided_until = _now() + self._settings.retry_interval_s
            try:
                result = await use(gateway.client)
            except (Unavailable, Cancelled) as error:
                # A gateway that stops cancels its calls; all of them may be repeated.
                gateway.avoided_until = _now() + self._settings.retry_interval_s
                self._metrics.count_unavailable(gateway.target)
                self._log.warning(
                    "gateway unavailable", gateway=gateway.target, reason=error.message
                )
                failed = failed or error
            except SamserveClientError:
                gateway.avoided_until = -math.inf
                raise
            else:
                gateway.avoided_until = -math.inf
                return result
        assert failed is not None, "there is at least one gateway"
        raise failed

    def _in_order(self, key: bytes) -> list[_Gateway]:
        now = _now()
        return sorted(
            self._gateways,
            key=lambda each: (each.avoided_until > now, each.weight(key)),
        )


def _channel_credentials(settings: GatewaySettings) -> grpc.ChannelCredentials | None:
    if not settings.tls:
        return None
    return grpc.ssl_channel_credentials(
        root_certificates=_content(settings.ca_file),
        private_key=_content(settings.key_file),
        certificate_chain=_content(settings.cert_file),
    )


def _content(path: Path | None) -> bytes | None:
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        raise Misconfigured(f"{path}: {error.strerror or 'cannot be read'}") from None
