"""What a machine adds to a model's configuration: its GPUs, its cores, and TensorRT."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class TensorRt(StrEnum):
    """Whether ONNX Runtime hands the image encoder to TensorRT, and in which precision."""

    OFF = "off"
    FP32 = "fp32"
    FP16 = "fp16"


@dataclass(frozen=True, slots=True)
class Overlays:
    """Choices of one machine; without any, Triton takes every GPU it finds, or the CPU.

    ``gpus`` are device numbers, each of which gets the models' instances.  ``tensorrt`` concerns
    the encoder alone: the decoder's zero-length mask input is nothing for it.  ``cpu_cores`` are
    those that Triton has where it has no GPU; 0 leaves the encoder all that ONNX Runtime finds.
    """

    gpus: tuple[int, ...] = ()
    tensorrt: TensorRt = TensorRt.OFF
    cpu_cores: int = 0


PLAIN = Overlays()
"""Nothing of one machine."""

ENGINE_CACHE = "/var/cache/tensorrt"
"""Where Triton keeps the engines that TensorRT builds for minutes at the first start."""


def instance_group(count: int, overlays: Overlays) -> str:
    """Write how many instances there are: on each of the named GPUs, or as Triton chooses."""
    where = ""
    if overlays.gpus:
        where = f" kind: KIND_GPU gpus: [ {', '.join(map(str, overlays.gpus))} ]"
    return f"instance_group [ {{ count: {count}{where} }} ]\n"


ENCODER_INSTANCES, DECODER_INSTANCES = 1, 2
"""How many runs of a network there may be at once, on each GPU or on the CPU."""

_THREADS = """\
# Threads of a run on a CPU. Idle ones wait actively, so that more than there are cores make
# everything slow. On a GPU they have next to nothing to do.
parameters {{ key: "intra_op_thread_count" value {{ string_value: "{}" }} }}
"""


def encoder_threads(overlays: Overlays) -> str:
    """Write how many threads an encode has on a CPU; nothing leaves it all cores."""
    return _THREADS.format(overlays.cpu_cores) if overlays.cpu_cores else ""


def decoder_threads(overlays: Overlays) -> str:
    """Write how many threads a decode has on a CPU: its part of the cores, one if unknown."""
    return _THREADS.format(max(1, overlays.cpu_cores // DECODER_INSTANCES))


def acceleration(overlays: Overlays) -> str:
    """Write the encoder's accelerator, if there is one."""
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
        "# Engines are built at the first start, for minutes, and kept in the cache.\n"
        "optimization {\n  execution_accelerators {\n    gpu_execution_accelerator: [ {\n"
        f'      name: "tensorrt"\n{lines}\n    }} ]\n  }}\n}}\n'
    )
