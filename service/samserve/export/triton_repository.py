"""Writing a pair of ONNX models as two Triton models that the gateway can discover.

One folder per model, as Triton wants it::

    <repository>/<name>_encoder/config.pbtxt
    <repository>/<name>_encoder/1/model.onnx
    <repository>/<name>_decoder/config.pbtxt
    <repository>/<name>_decoder/1/model.onnx

with ``model.onnx.data`` beside a model of more than 2 GiB.  A config.pbtxt repeats the tensors that
its graph declares and carries, as parameters, all that the gateway must know; nothing about a model
is configured anywhere else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx

from samserve.export import onnx_file
from samserve.export.config_text import TRITON_TYPES, ModelConfig, config_text
from samserve.export.errors import ExportError
from samserve.export.graph import GraphInterface, GraphTensor, read_interface
from samserve.export.overlays import (
    DECODER_INSTANCES,
    ENCODER_INSTANCES,
    PLAIN,
    Overlays,
    acceleration,
    decoder_threads,
    encoder_threads,
    instance_group,
)
from samserve.export.staging import staging
from samserve.export.stamp import DIGEST_TENSOR, stamp, without_stamp
from samserve.models.digest import pair_digest

PREPROCESSING = "sam1-1"
"""Version of what happens to a picture before the encoder: resize, place, normalise, zero."""

FAMILY = "sam1"
ENCODER_MAX_BATCH = 4
DECODER_MAX_BATCH = 8
MODEL_VERSION = "1"
CONFIG_FILE = "config.pbtxt"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")

_DECODER_INSTANCES = """\
# No kind: Triton then takes a GPU where there is one (KIND_AUTO); one file serves both machines.
# Two instances, because priorities with a single instance stall for 500 ms now and then.
"""

_DECODER_BATCHING = """\
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

_ENCODER_INSTANCES = """\
# One instance: without a GPU Triton takes two for this backend, and so the weights twice.
"""

_ENCODER_BATCHING = """\
# Plain on purpose: with priorities or queue limits one instance stalls for 500 ms now and then.
dynamic_batching { }
"""

_WARM_UP = """\
# The first run of a graph is slow: Triton makes it before it calls the model ready.
"""

_CLICK_DIMS = {"point_coords": (1, 2, 2), "point_labels": (1, 2)}
"""A click as the gateway sends it: one prompt of a point and its padding."""


@dataclass(frozen=True, slots=True)
class StagedPair:
    """A pair whose graphs are written, into a folder that nobody reads yet.

    ``digest`` is that of the weights; both graphs say it with every answer.
    """

    name: str
    encoder: Path
    decoder: Path
    encoder_interface: GraphInterface
    decoder_interface: GraphInterface
    digest: str

    @property
    def folders(self) -> list[str]:
        """The names of its two models."""
        return [f"{self.name}_encoder", f"{self.name}_decoder"]


@dataclass(frozen=True, slots=True)
class Description:
    """What a configuration says beyond its graph.

    ``text`` is one printable line for people, ``facts`` are further parameters without their
    prefix.
    """

    text: str
    family: str = FAMILY
    facts: Mapping[str, str] = field(default_factory=dict)
    overlays: Overlays = PLAIN


def write_pair(
    repository: Path,
    name: str,
    encoder: onnx.ModelProto,
    decoder: onnx.ModelProto,
    description: Description,
) -> None:
    """Write, or replace, the models ``<name>_encoder`` and ``<name>_decoder``.

    ``encoder`` and ``decoder`` are models that obey the model contract.  The same arguments give
    the same bytes.  Both folders are complete before either of them appears.
    """
    check_name(name)
    with staging(repository) as stage:
        pair = stage_pair(stage.folder, name, encoder, decoder)
        write_configs(pair, description)
        stage.publish(pair.folders)


def check_name(name: str) -> None:
    """Refuse, with `ExportError`, a name that is no folder's."""
    if not _NAME.fullmatch(name):
        raise ExportError(
            f"model name {name[:80]!r}: only letters, digits, '_', '-' and '.', at most 128 of them"
        )


def stage_pair(
    folder: Path, name: str, encoder: onnx.ModelProto, decoder: onnx.ModelProto
) -> StagedPair:
    """Write the graphs of a pair into *folder*; raises `ExportError` if they do not fit.

    The models may be changed: their weights move to the disk.
    """
    models = without_stamp(encoder), without_stamp(decoder)
    interfaces = [read_interface(model) for model in models]
    _check_pair(*interfaces)
    paths = []
    for role, model in zip(("encoder", "decoder"), models, strict=True):
        version = folder / f"{name}_{role}" / MODEL_VERSION
        version.mkdir(parents=True)
        paths.append(onnx_file.save(model, version))
    digest = pair_digest(*paths)
    for path in paths:
        stamp(path, digest)
    stamped = [
        replace(interface, outputs=(*interface.outputs, DIGEST_TENSOR)) for interface in interfaces
    ]
    return StagedPair(name, paths[0], paths[1], stamped[0], stamped[1], digest)


def write_configs(pair: StagedPair, description: Description) -> str:
    """Write the configurations of a pair beside its graphs, and give the pair's digest."""
    if not all(text.isprintable() for text in [description.text, *description.facts.values()]):
        raise ExportError("the description must be one printable line")
    parameters = _parameters(pair, description)
    overlays = description.overlays
    _write_config(
        pair.encoder,
        ModelConfig(
            name=f"{pair.name}_encoder",
            max_batch_size=ENCODER_MAX_BATCH,
            interface=pair.encoder_interface,
            scheduling=_ENCODER_INSTANCES
            + instance_group(ENCODER_INSTANCES, overlays)
            + encoder_threads(overlays)
            + _ENCODER_BATCHING
            + acceleration(overlays)
            + _warm_up(pair.encoder_interface),
            parameters={**parameters, "samserve.role": "encoder"},
        ),
    )
    _write_config(
        pair.decoder,
        ModelConfig(
            name=f"{pair.name}_decoder",
            max_batch_size=DECODER_MAX_BATCH,
            interface=pair.decoder_interface,
            scheduling=_DECODER_INSTANCES
            + instance_group(DECODER_INSTANCES, overlays)
            + decoder_threads(overlays)
            + _DECODER_BATCHING
            + _warm_up(pair.decoder_interface),
            parameters={**parameters, "samserve.role": "decoder"},
        ),
    )
    return pair.digest


def _write_config(graph: Path, config: ModelConfig) -> None:
    path = graph.parents[1] / CONFIG_FILE
    path.write_text(config_text(config), encoding="utf-8", newline="\n")


def _parameters(pair: StagedPair, description: Description) -> dict[str, str]:
    image_size = pair.encoder_interface.input("image").dims[1]
    mask_size = pair.decoder_interface.input("mask_input").dims[-1]
    facts = {f"samserve.{key}": value for key, value in description.facts.items()}
    return {
        "samserve.family": description.family,
        "samserve.model": pair.name,
        "samserve.digest": pair.digest,
        "samserve.preprocessing": PREPROCESSING,
        "samserve.image_size": str(image_size),
        "samserve.mask_size": str(mask_size),
        "samserve.description": description.text,
        **facts,
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


def _check_pair(encoder: GraphInterface, decoder: GraphInterface) -> None:
    """Refuse a decoder that does not take what the encoder gives, and sizes left open."""
    for embedding in encoder.outputs:
        if decoder.input(embedding.name) != embedding:
            raise ExportError(f"encoder and decoder disagree about {embedding.name!r}")
    sizes = [*encoder.input("image").dims[1:3], *decoder.input("mask_input").dims[-2:]]
    if min(sizes) <= 0:
        raise ExportError("image and mask_input must have fixed heights and widths")
