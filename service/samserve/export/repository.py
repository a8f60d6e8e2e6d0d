"""Writing a pair of ONNX files as two Triton models that the gateway can discover.

One folder per model, as Triton wants it::

    <repository>/<name>_encoder/config.pbtxt
    <repository>/<name>_encoder/1/model.onnx
    <repository>/<name>_decoder/config.pbtxt
    <repository>/<name>_decoder/1/model.onnx

A config.pbtxt repeats the tensors that its graph declares and carries, as parameters, all that the
gateway must know; nothing about a model is configured anywhere else.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from samserve.export.config_text import TRITON_TYPES, ModelConfig, config_text
from samserve.export.errors import ExportError
from samserve.export.graph import GraphInterface, GraphTensor, read_interface
from samserve.identity import pair_digest

PREPROCESSING = "sam1-1"
"""Version of what happens to a picture before the encoder: resize, place, normalise, zero."""

ENCODER_MAX_BATCH = 4
DECODER_MAX_BATCH = 8
MODEL_VERSION = "1"
MODEL_FILE = "model.onnx"
CONFIG_FILE = "config.pbtxt"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")

_DECODER_SCHEDULING = """\
# No kind: Triton then takes a GPU where there is one (KIND_AUTO); one file serves both machines.
# Two instances, because priorities with a single instance stall for 500 ms now and then.
instance_group [ { count: 2 } ]
# Priority 1 is a person waiting for Predict, 2 (the default) everything else. Each has a queue of
# its own, so that a flood of one is refused early and leaves the other alone. The timeout lets
# requests bring a shorter one: Triton ignores theirs unless there is a longer one here.
dynamic_batching {
  priority_levels: 2
  default_priority_level: 2
  default_queue_policy {
    timeout_action: REJECT
    default_timeout_microseconds: 60000000
    allow_timeout_override: true
    max_queue_size: 256
  }
}
"""

_ENCODER_SCHEDULING = """\
# One instance: without a GPU Triton takes two for this backend, and so the weights twice.
instance_group [ { count: 1 } ]
# Plain on purpose: with priorities or queue limits one instance stalls for 500 ms now and then.
dynamic_batching { }
"""

_WARM_UP = """\
# The first run of a graph is slow: Triton makes it before it calls the model ready.
"""

_CLICK_DIMS = {"point_coords": (1, 2, 2), "point_labels": (1, 2)}
"""A click as the gateway sends it: one prompt of a point and its padding."""


@dataclass(frozen=True, slots=True)
class _Pair:
    """The two files of a model and what they say of themselves."""

    encoder: bytes
    decoder: bytes
    encoder_interface: GraphInterface
    decoder_interface: GraphInterface


def write_pair(
    repository: Path,
    name: str,
    encoder: bytes,
    decoder: bytes,
    *,
    description: str,
    family: str = "sam1",
) -> None:
    """Write, or replace, the models ``<name>_encoder`` and ``<name>_decoder``.

    ``encoder`` and ``decoder`` are ONNX files that obey the model contract. The same arguments
    give the same bytes. Both folders are complete before either of them appears.
    """
    _check_text(name, description)
    pair = _Pair(encoder, decoder, read_interface(encoder), read_interface(decoder))
    _check_pair(pair)
    parameters = _parameters(name, family, description, pair)
    configs = {
        "encoder": ModelConfig(
            name=f"{name}_encoder",
            max_batch_size=ENCODER_MAX_BATCH,
            interface=pair.encoder_interface,
            scheduling=_ENCODER_SCHEDULING + _warm_up(pair.encoder_interface),
            parameters={**parameters, "samserve.role": "encoder"},
        ),
        "decoder": ModelConfig(
            name=f"{name}_decoder",
            max_batch_size=DECODER_MAX_BATCH,
            interface=pair.decoder_interface,
            scheduling=_DECODER_SCHEDULING + _warm_up(pair.decoder_interface),
            parameters={**parameters, "samserve.role": "decoder"},
        ),
    }
    _write_models(repository, [(configs["encoder"], encoder), (configs["decoder"], decoder)])


def _parameters(name: str, family: str, description: str, pair: _Pair) -> dict[str, str]:
    image_size = pair.encoder_interface.input("image").dims[1]
    mask_size = pair.decoder_interface.input("mask_input").dims[-1]
    return {
        "samserve.family": family,
        "samserve.model": name,
        "samserve.digest": pair_digest(pair.encoder, pair.decoder),
        "samserve.preprocessing": PREPROCESSING,
        "samserve.image_size": str(image_size),
        "samserve.mask_size": str(mask_size),
        "samserve.description": description,
    }


def _warm_up(interface: GraphInterface) -> str:
    """A request of zeros: a blank picture, or a click without a mask (zero masks)."""
    inputs = "\n".join(f"  {_warm_up_input(tensor)}" for tensor in interface.inputs)
    return f'{_WARM_UP}model_warmup {{\n  name: "first"\n  batch_size: 1\n{inputs}\n}}\n'


def _warm_up_input(tensor: GraphTensor) -> str:
    click = _CLICK_DIMS.get(tensor.name)
    # Axes that are open, the batch axis apart, are those of prompts; of masks there are none.
    dims = click or [max(dim, 0) for dim in tensor.dims[1:]]
    data_type = TRITON_TYPES[tensor.elem_type]
    value = f"{{ data_type: {data_type} dims: {list(dims)} zero_data: true }}"
    return f"inputs {{ key: {json.dumps(tensor.name)} value: {value} }}"


def _check_text(name: str, description: str) -> None:
    if not _NAME.fullmatch(name):
        raise ExportError(f"model name {name!r}: only letters, digits, '_', '-' and '.'")
    if not description.isprintable():
        raise ExportError("the description must be one printable line")


def _check_pair(pair: _Pair) -> None:
    """Refuse a decoder that does not take what the encoder gives, and sizes left open."""
    for embedding in pair.encoder_interface.outputs:
        if pair.decoder_interface.input(embedding.name) != embedding:
            raise ExportError(f"encoder and decoder disagree about {embedding.name!r}")
    sizes = [*pair.encoder_interface.input("image").dims[1:3]]
    sizes += pair.decoder_interface.input("mask_input").dims[-2:]
    if min(sizes) <= 0:
        raise ExportError("image and mask_input must have fixed heights and widths")


def _write_models(repository: Path, models: list[tuple[ModelConfig, bytes]]) -> None:
    """Write every model into a staging folder on the same disk, then rename them into place."""
    repository.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=repository))
    try:
        for config, model in models:
            version = staging / config.name / MODEL_VERSION
            version.mkdir(parents=True)
            (version / MODEL_FILE).write_bytes(model)
            text = config_text(config)
            (staging / config.name / CONFIG_FILE).write_text(text, encoding="utf-8", newline="\n")
        for config, _ in models:
            _swap(staging / config.name, repository / config.name, staging / f"{config.name}.old")
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _swap(staged: Path, target: Path, aside: Path) -> None:
    # A folder cannot be renamed over one that has files: the old one steps aside first.
    if target.exists():
        target.rename(aside)
    staged.rename(target)
