"""A thin adapter for `tritonclient.grpc.aio` that raises the errors of this package."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from tritonclient.grpc import InferInput, InferRequestedOutput, InferResult, model_config_pb2
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from samserve.engines.triton.channels import Channels
from samserve.engines.triton.credentials import PLAIN, Credentials
from samserve.engines.triton.failures import Unreachable, translate

T = TypeVar("T")

_INDEX = InferenceServerClient.get_model_repository_index


@dataclass(frozen=True, slots=True, eq=False)
class InferCall:
    """One inference request: tensors in the types of tritonclient; *priority* 0 means none.

    *version* is a version folder of the model: never the one that Triton loaded last.
    """

    model: str
    version: str
    inputs: Sequence[InferInput]
    outputs: Sequence[InferRequestedOutput]
    request_id: str = ""
    priority: int = 0


class TritonConnection:
    """The channels to one Triton, which can be replaced while calls are in flight.

    All methods raise the result of `translate` for Triton's errors.  With *credentials* None there
    is no channel until `open` is called.
    """

    def __init__(self, url: str, channels: int, credentials: Credentials | None = PLAIN) -> None:
        self._url = url
        self._count = channels
        self._credentials = credentials
        self._current: Channels | None = None
        self._retired: dict[asyncio.Task[None], Channels] = {}
        if credentials is not None:
            self.open(credentials)

    def open(self, credentials: Credentials) -> None:
        """Create the first channels, whether or not Triton is reachable."""
        self._credentials = credentials
        self._current = Channels(self._url, self._count, credentials)

    async def reopen(self) -> None:
        """Do as `renew` does, with the same credentials: the url's host name is resolved again.

        gRPC itself resolves a name only when a connection has ended, and after a DNS response
        without addresses only after up to two minutes.
        """
        if self._credentials is not None:
            await self.renew(self._credentials)

    async def renew(self, credentials: Credentials) -> None:
        """Use new channels for later calls; the old ones are closed once their last call has ended.

        Raises an error and changes nothing if the new channels do not reach Triton.
        """
        new = Channels(self._url, self._count, credentials)
        try:
            await _translated(new.ensure_connected())
            # Liveness is public; the model repository may be restricted to clients with a header.
            await _translated(new.call(_INDEX))
        except BaseException:
            await new.close()
            raise
        self._credentials = credentials
        old, self._current = self._current, new
        if old is not None:
            self._retire(old)

    async def infer(
        self, call: InferCall, timeout_s: float, trace: Mapping[str, str] | None = None
    ) -> InferResult:
        """Run one inference; cancelling this cancels the request.

        *timeout_s* ends the call, and removes the request from Triton's queue.  *trace* holds the
        headers that make Triton's spans part of a trace.
        """
        return await self._call(
            lambda channels: channels.next().infer(
                call.model,
                list(call.inputs),
                model_version=call.version,
                outputs=list(call.outputs),
                request_id=call.request_id,
                priority=call.priority,
                timeout=max(1, round(timeout_s * 1e6)),
                client_timeout=timeout_s,
                headers={**channels.headers, **trace} if trace else channels.headers,
            )
        )

    async def ready_models(self) -> Mapping[str, str]:
        """Return the models that are ready in Triton, each with its lowest ready version."""
        index = await self._control(_INDEX)
        ready = [each for each in index.models if each.state == "READY"]
        ready.sort(key=lambda each: int(each.version or 0), reverse=True)
        return {each.name: each.version for each in ready}

    async def load(self, model: str, config: str, timeout_s: float) -> None:
        """Load a model with a *config* in JSON; that of its file if it is empty.

        Versions that are loaded already are not loaded again if only the version policy differs.
        """
        call = InferenceServerClient.load_model
        options = {"config": config} if config else {}
        await self._call(
            lambda channels: channels.call(call, model, timeout_s=timeout_s, **options)
        )

    async def config(self, model: str) -> model_config_pb2.ModelConfig:
        """Return the configuration of a model, as completed by Triton."""
        return (await self._control(InferenceServerClient.get_model_config, model)).config

    async def ensure_connected(self) -> None:
        """Check that every channel for inference requests is connected."""
        await self._call(Channels.ensure_connected)

    async def regions(self) -> dict[str, str]:
        """Return the keys of the system shared-memory regions, by name."""
        status = await self._control(InferenceServerClient.get_system_shared_memory_status)
        return {name: region.key for name, region in status.regions.items()}

    async def register(self, name: str, key: str, nbytes: int) -> None:
        """Register a segment with Triton; `EngineFailure` if rejected or already registered."""
        call = InferenceServerClient.register_system_shared_memory
        await self._control(call, name, key, nbytes)

    async def unregister(self, name: str) -> None:
        """Unregister a region, immediately or when the requests that use it have ended.

        Raises `EngineFailure` if it is in use and this version of Triton does not defer that.
        """
        await self._control(InferenceServerClient.unregister_system_shared_memory, name)

    async def aclose(self) -> None:
        """Close the channels; requests in flight fail."""
        for closing in self._retired:
            closing.cancel()
        current = [] if self._current is None else [self._current]
        await asyncio.gather(*(each.close() for each in (*self._retired.values(), *current)))

    async def _control(self, method: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> Any:
        return await self._call(lambda channels: channels.call(method, *args))

    async def _call(self, call: Callable[[Channels], Coroutine[Any, Any, T]]) -> T:
        channels = self._current
        if channels is None:
            raise Unreachable("the connection to Triton is not open yet")
        with channels.in_use():
            return await _translated(call(channels))

    def _retire(self, channels: Channels) -> None:
        closing = asyncio.create_task(_close_when_idle(channels))
        self._retired[closing] = channels
        closing.add_done_callback(self._retired.pop)


async def _close_when_idle(channels: Channels) -> None:
    await channels.idle()
    await channels.close()


async def _translated(call: Coroutine[Any, Any, T]) -> T:
    try:
        return await call
    except InferenceServerException as error:
        raise translate(error) from error
