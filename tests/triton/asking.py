"""Requests to tritonserver by NVIDIA's client, and its metrics."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import tritonclient.grpc as triton_client
from tritonclient.utils import np_to_triton_dtype

from harness.triton.server import TritonServer
from tests.support.waiting import until_sync

Tensors = dict[str, np.ndarray]


@contextmanager
def client(server: TritonServer) -> Iterator[triton_client.InferenceServerClient]:
    """Connect, with a connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1), *NO_LIMITS]
    with triton_client.InferenceServerClient(server.grpc_address, channel_args=options) as found:
        yield found


@contextmanager
def verbose(server: TritonServer) -> Iterator[None]:
    """Have the server log what it does with each request."""
    with client(server) as connection:
        connection.update_log_settings({"log_verbose_level": 1})
        try:
            yield
        finally:
            connection.update_log_settings({"log_verbose_level": 0})


NO_LIMITS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


def inline(tensors: Mapping[str, np.ndarray]) -> list[triton_client.InferInput]:
    """The tensors as inputs that travel inside the message."""
    return [_inline(name, array) for name, array in tensors.items()]


def _inline(name: str, array: np.ndarray) -> triton_client.InferInput:
    found = triton_client.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    return found.set_data_from_numpy(array)


def ask(
    server: TritonServer,
    model: str,
    tensors: Mapping[str, np.ndarray],
    outputs: Sequence[str] | None = None,
    **options: Any,
) -> Tensors:
    """Send one request and return its outputs: all, or those that were asked for."""
    wanted = None if outputs is None else [triton_client.InferRequestedOutput(o) for o in outputs]
    with client(server) as connection:
        result = connection.infer(model, inline(tensors), outputs=wanted, **options)
    return {o.name: result.as_numpy(o.name) for o in result.get_response().outputs}


def picture(seed: int = 0) -> Tensors:
    """Inputs of the encoder: noise of which the lower part is padding."""
    generator = np.random.default_rng(seed)
    return {
        "image": generator.integers(0, 256, (1, 1024, 1024, 3), dtype=np.uint8),
        "image_size": np.array([[768, 1024]], np.int32),
    }


def prompts(seed: int = 0, *, count: int = 1, masks: int = 0) -> Tensors:
    """Inputs of the decoder: clicks of two points on noise."""
    generator = np.random.default_rng(seed)
    return {
        "image_embedding": generator.standard_normal((1, 256, 64, 64)).astype(np.float16),
        "point_coords": generator.uniform(0, 1024, (1, count, 2, 2)).astype(np.float32),
        "point_labels": np.ones((1, count, 2), np.float32),
        "mask_input": generator.standard_normal((1, masks, 256, 256)).astype(np.float32),
    }


def metric(server: TritonServer, name: str, model: str) -> int:
    """The value of a counter for a model; it lags behind the answers."""
    pattern = rf'^{name}{{model="{model}",version="1"}} (\d+)$'
    match = re.search(pattern, server.metrics_text(), re.MULTILINE)
    assert match is not None, f"no metric {name} of {model}"
    return int(match[1])


def is_queued(server: TritonServer, model: str, count: int) -> bool:
    """Whether so many requests wait for a model."""
    return metric(server, "nv_inference_pending_request_count", model) == count


def settled_metric(server: TritonServer, name: str, model: str, at_least: int) -> int:
    """Wait until the counter has arrived at a value, and return it."""
    until_sync(lambda: metric(server, name, model) >= at_least)
    return metric(server, name, model)
