"""Requests to tritonserver with NVIDIA's client, and its metrics."""

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
    """Open a client with its own connection."""
    options = [("grpc.use_local_subchannel_pool", 1), *NO_LIMITS]
    with triton_client.InferenceServerClient(server.grpc_address, channel_args=options) as client:
        yield client


@contextmanager
def verbose(server: TritonServer) -> Iterator[None]:
    """Enable the server's verbose log of requests while the block runs."""
    with client(server) as connection:
        connection.update_log_settings({"log_verbose_level": 1})
        try:
            yield
        finally:
            connection.update_log_settings({"log_verbose_level": 0})


NO_LIMITS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


def inline(tensors: Mapping[str, np.ndarray]) -> list[triton_client.InferInput]:
    """Return the tensors as inputs that are sent inside the message."""
    return [_inline(name, array) for name, array in tensors.items()]


def _inline(name: str, array: np.ndarray) -> triton_client.InferInput:
    tensor = triton_client.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    return tensor.set_data_from_numpy(array)


def infer(
    server: TritonServer,
    model: str,
    tensors: Mapping[str, np.ndarray],
    outputs: Sequence[str] | None = None,
    **options: Any,
) -> Tensors:
    """Send one request and return its outputs: all, or the requested ones."""
    wanted = None if outputs is None else [triton_client.InferRequestedOutput(o) for o in outputs]
    with client(server) as connection:
        result = connection.infer(model, inline(tensors), outputs=wanted, **options)
    return {o.name: result.as_numpy(o.name) for o in result.get_response().outputs}


def prompts(seed: int = 0, *, count: int = 1, masks: int = 0) -> Tensors:
    """Return inputs of the decoder: prompts of two points on noise."""
    generator = np.random.default_rng(seed)
    return {
        "image_embedding": generator.standard_normal((1, 256, 64, 64)).astype(np.float16),
        "point_coords": generator.uniform(0, 1024, (1, count, 2, 2)).astype(np.float32),
        "point_labels": np.ones((1, count, 2), np.float32),
        "mask_input": generator.standard_normal((1, masks, 256, 256)).astype(np.float32),
    }


def metric(server: TritonServer, name: str, model: str) -> int:
    """Return the value of a counter for a model; it lags behind the responses."""
    pattern = rf'^{name}{{model="{model}",version="1"}} (\d+)$'
    match = re.search(pattern, server.metrics_text(), re.MULTILINE)
    assert match is not None, f"no metric {name} of {model}"
    return int(match[1])


def is_queued(server: TritonServer, model: str, count: int) -> bool:
    """Return whether exactly *count* requests are queued for a model."""
    return metric(server, "nv_inference_pending_request_count", model) == count


def wait_for_metric(server: TritonServer, name: str, model: str, at_least: int) -> int:
    """Wait until the counter has reached a value, and return it."""
    until_sync(lambda: metric(server, name, model) >= at_least)
    return metric(server, name, model)
