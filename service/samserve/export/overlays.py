"""Machine-specific parts of a model's configuration: GPUs, CPU cores and TensorRT."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class TensorRt(StrEnum):
    """Whether ONNX Runtime runs the image encoder with TensorRT, and in which precision."""

    OFF = "off"
    FP32 = "fp32"
    FP16 = "fp16"


@dataclass(frozen=True, slots=True)
class Overlays:
    """Settings for one machine; by default, Triton uses every GPU it finds, or the CPU.

    ``gpus`` are device numbers, each of which gets the models' instances.  ``tensorrt`` applies to
    the encoder only: TensorRT does not support the decoder's zero-length mask input.  ``cpu_cores``
    is the number of cores of Triton on a machine without a GPU; 0 lets the encoder use all.
    """

    gpus: tuple[int, ...] = ()
    tensorrt: TensorRt = TensorRt.OFF
    cpu_cores: int = 0


PLAIN = Overlays()
"""No machine-specific settings."""

ENGINE_CACHE = "/var/cache/tensorrt"
"""Folder for the engines that TensorRT builds at the first start, which takes minutes."""


def instance_group(count: int, overlays: Overlays) -> str:
    """Return the instance group: on each of the named GPUs, or where Triton chooses."""
    placement = ""
    if overlays.gpus:
        placement = f" kind: KIND_GPU gpus: [ {', '.join(map(str, overlays.gpus))} ]"
    return f"instance_group [ {{ count: {count}{placement} }} ]\n"


ENCODER_INSTANCES, DECODER_INSTANCES = 1, 2
"""Maximum number of concurrent inferences of a network, on each GPU or on the CPU."""

_THREADS = """\
# Threads of an inference on a CPU. Idle threads busy-wait, so that more threads than cores slow
# everything down. On a GPU they are hardly used.
parameters {{ key: "intra_op_thread_count" value {{ string_value: "{}" }} }}
"""


def encoder_threads(overlays: Overlays) -> str:
    """Return the encoder's threads on a CPU; empty if it may use all cores."""
    return _THREADS.format(overlays.cpu_cores) if overlays.cpu_cores else ""


def decoder_threads(overlays: Overlays) -> str:
    """Return the decoder's threads on a CPU: the cores per instance, one if unknown."""
    return _THREADS.format(max(1, overlays.cpu_cores // DECODER_INSTANCES))


def acceleration(overlays: Overlays) -> str:
    """Return the encoder's accelerator; empty if there is none."""
    if overlays.tensorrt is TensorRt.OFF:
        return ""
    settings = {
        "precision_mode": overlays.tensorrt.value.upper(),
        "max_workspace_size_bytes": str(4 << 30),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": ENGINE_CACHE,
    }
    lines = "\n".join(
        f'      parameters {{ key: "{key}" value: "{value}" }}' for key, value in settings.items()
    )
    return (
        "# Engines are built at the first start, which takes minutes, and kept in the cache.\n"
        "optimization {\n  execution_accelerators {\n    gpu_execution_accelerator: [ {\n"
        f'      name: "tensorrt"\n{lines}\n    }} ]\n  }}\n}}\n'
    )
