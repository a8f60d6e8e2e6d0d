"""A thin adapter over `tritonclient.grpc.aio`: its calls, our errors."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from tritonclient.grpc import InferInput, InferRequestedOutput, InferResult, model_config_pb2
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from samserve.engines.triton.failures import translate

T = TypeVar("T")

# Control calls are small; one that takes longer means that Triton is not well.
_CONTROL_S = 2.0


@dataclass(frozen=True, slots=True, eq=False)
class InferCall:
    """One inference: tensors as tritonclient has them; *priority* 0 means that none is given."""

    model: str
    inputs: Sequence[InferInput]
    outputs: Sequence[InferRequestedOutput]
    request_id: str = ""
    priority: int = 0


class TritonConnection:
    """Channels to one Triton: *channels* that share the requests, and one for everything else.

    Control calls have a channel of their own so that megabytes of tensors never delay them.  All
    methods raise what `translate` makes of Triton's errors.
    """

    def __init__(self, url: str, channels: int) -> None:
        self._control = _client(url)
        self._data = [_client(url) for _ in range(channels)]
        self._turns = itertools.cycle(self._data)

    async def infer(self, call: InferCall, timeout_s: float) -> InferResult:
        """Run one inference; cancelling this cancels the request.

        *timeout_s* ends the call here, and takes the request out of Triton's queue there.
        """
        return await _translated(
            next(self._turns).infer(
                call.model,
                list(call.inputs),
                outputs=list(call.outputs),
                request_id=call.request_id,
                priority=call.priority,
                timeout=max(1, round(timeout_s * 1e6)),
                client_timeout=timeout_s,
            )
        )

    async def ready_models(self) -> frozenset[str]:
        """List the models that Triton would run now."""
        index = await self._ask(self._control.get_model_repository_index(client_timeout=_CONTROL_S))
        return frozenset(model.name for model in index.models if model.state == "READY")

    async def config(self, model: str) -> model_config_pb2.ModelConfig:
        """Read the configuration of a model, completed by Triton."""
        answer = await self._ask(
            self._control.get_model_config(model, client_timeout=_CONTROL_S),
        )
        return answer.config

    async def reach(self) -> None:
        """See that every channel for requests is connected."""
        for client in self._data:
            await self._ask(client.is_server_live(client_timeout=_CONTROL_S))

    async def regions(self) -> dict[str, str]:
        """List the system shared-memory regions: their keys by name."""
        status = await self._ask(
            self._control.get_system_shared_memory_status(client_timeout=_CONTROL_S)
        )
        return {name: region.key for name, region in status.regions.items()}

    async def register(self, name: str, key: str, nbytes: int) -> None:
        """Let Triton map a segment; `EngineFailure` if it will not, or has done so before."""
        await self._ask(
            self._control.register_system_shared_memory(
                name, key, nbytes, client_timeout=_CONTROL_S
            )
        )

    async def unregister(self, name: str) -> None:
        """Let Triton forget a region, at once or when the requests that use it have ended.

        `EngineFailure` if it is in use and this Triton does not wait for that by itself.
        """
        await self._ask(
            self._control.unregister_system_shared_memory(name, client_timeout=_CONTROL_S)
        )

    async def aclose(self) -> None:
        """Close the channels; requests under way end."""
        await asyncio.gather(*(client.close() for client in [self._control, *self._data]))

    async def _ask(self, call: Coroutine[Any, Any, T]) -> T:
        return await _translated(call)


async def _translated(call: Coroutine[Any, Any, T]) -> T:
    try:
        return await call
    except InferenceServerException as error:
        raise translate(error) from error


def _client(url: str) -> InferenceServerClient:
    return InferenceServerClient(
        url,
        channel_args=[
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", -1),
            # Channels of one process would otherwise share one connection.
            ("grpc.use_local_subchannel_pool", 1),
            # The default is up to two minutes between attempts.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 1000),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.enable_http_proxy", 0),
            # Pings no more often than Triton allows by default. What counts is that gRPC also gives
            # up a connection on which data stays unacknowledged for the timeout: without this, a
            # machine that vanishes would be waited for until the kernel gives up, minutes later.
            ("grpc.keepalive_time_ms", 300_000),
            ("grpc.keepalive_timeout_ms", 10_000),
        ],
    )
