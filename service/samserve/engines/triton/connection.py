"""A thin adapter over `tritonclient.grpc.aio`: its calls, our errors."""

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
    """One inference: tensors as tritonclient has them; *priority* 0 means that none is given."""

    model: str
    inputs: Sequence[InferInput]
    outputs: Sequence[InferRequestedOutput]
    request_id: str = ""
    priority: int = 0


class TritonConnection:
    """The channels to one Triton, which may be exchanged for others while calls are under way.

    All methods raise what `translate` makes of Triton's errors.  With *credentials* None there is
    no channel before `open` tells them.
    """

    def __init__(self, url: str, channels: int, credentials: Credentials | None = PLAIN) -> None:
        self._url = url
        self._count = channels
        self._credentials = credentials
        self._now: Channels | None = None
        self._retired: dict[asyncio.Task[None], Channels] = {}
        if credentials is not None:
            self.open(credentials)

    def open(self, credentials: Credentials) -> None:
        """Make the first channels, whether or not Triton is there."""
        self._credentials = credentials
        self._now = Channels(self._url, self._count, credentials)

    async def reopen(self) -> None:
        """Do as `renew` does, with the same credentials: the url's name is looked up again.

        gRPC itself asks for a name only when a connection has ended, and after an answer without
        addresses only after up to two minutes.
        """
        if self._credentials is not None:
            await self.renew(self._credentials)

    async def renew(self, credentials: Credentials) -> None:
        """Use new channels for what comes; the old ones are closed when their last call has ended.

        If the new ones do not reach Triton this raises, and everything stays as it was.
        """
        new = Channels(self._url, self._count, credentials)
        try:
            await _translated(new.reach())
            # Live is what Triton says to all clients; its models may be for those with a header.
            await _translated(new.call(_INDEX))
        except BaseException:
            await new.close()
            raise
        self._credentials = credentials
        old, self._now = self._now, new
        if old is not None:
            self._retire(old)

    async def infer(
        self, call: InferCall, timeout_s: float, trace: Mapping[str, str] | None = None
    ) -> InferResult:
        """Run one inference; cancelling this cancels the request.

        *timeout_s* ends the call here, and takes the request out of Triton's queue there.  *trace*
        makes what Triton records of it a part of a trace.
        """
        return await self._ask(
            lambda channels: channels.next().infer(
                call.model,
                list(call.inputs),
                outputs=list(call.outputs),
                request_id=call.request_id,
                priority=call.priority,
                timeout=max(1, round(timeout_s * 1e6)),
                client_timeout=timeout_s,
                headers={**channels.headers, **trace} if trace else channels.headers,
            )
        )

    async def ready_models(self) -> frozenset[str]:
        """List the models that Triton would run now."""
        index = await self._control(_INDEX)
        return frozenset(model.name for model in index.models if model.state == "READY")

    async def config(self, model: str) -> model_config_pb2.ModelConfig:
        """Read the configuration of a model, completed by Triton."""
        return (await self._control(InferenceServerClient.get_model_config, model)).config

    async def reach(self) -> None:
        """See that every channel for requests is connected."""
        await self._ask(Channels.reach)

    async def regions(self) -> dict[str, str]:
        """List the system shared-memory regions: their keys by name."""
        status = await self._control(InferenceServerClient.get_system_shared_memory_status)
        return {name: region.key for name, region in status.regions.items()}

    async def register(self, name: str, key: str, nbytes: int) -> None:
        """Let Triton map a segment; `EngineFailure` if it will not, or has done so before."""
        call = InferenceServerClient.register_system_shared_memory
        await self._control(call, name, key, nbytes)

    async def unregister(self, name: str) -> None:
        """Let Triton forget a region, at once or when the requests that use it have ended.

        `EngineFailure` if it is in use and this Triton does not wait for that by itself.
        """
        await self._control(InferenceServerClient.unregister_system_shared_memory, name)

    async def aclose(self) -> None:
        """Close the channels; requests under way end."""
        for closing in self._retired:
            closing.cancel()
        now = [] if self._now is None else [self._now]
        await asyncio.gather(*(each.close() for each in (*self._retired.values(), *now)))

    async def _control(self, method: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> Any:
        return await self._ask(lambda channels: channels.call(method, *args))

    async def _ask(self, call: Callable[[Channels], Coroutine[Any, Any, T]]) -> T:
        channels = self._now
        if channels is None:
            raise Unreachable("the model server was not looked for yet")
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
