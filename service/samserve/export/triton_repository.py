"""Writing the graphs of a model as Triton models that the gateway can discover.

One folder per graph, in Triton's layout::

    <repository>/<name>_encoder/config.pbtxt
    <repository>/<name>_encoder/1/model.onnx
    <repository>/<name>_decoder/config.pbtxt
    <repository>/<name>_decoder/1/model.onnx

with ``model.onnx.data`` next to a model of more than 2 GiB.  A config.pbtxt repeats the tensors
that its graph declares.  Its parameters contain everything that the gateway must know about the
model; there is no other configuration of a model.
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
from samserve.models import families
from samserve.models.digest import bundle_digest, graph_digests
from samserve.models.families.base import Family

ENCODER_MAX_BATCH = 4
DECODER_MAX_BATCH = 8
MODEL_VERSION = "1"
CONFIG_FILE = "config.pbtxt"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")

_DECODER_INSTANCES = """\
# No kind: Triton then uses a GPU if there is one (KIND_AUTO); one file fits both kinds of machines.
# Two instances, because priorities with a single instance occasionally stall for 500 ms.
"""

_DECODER_BATCHING = """\
# Priority 1 is for Predict, for which a person waits, 2 (the default) for everything else. Each has
# its own queue, so that excess requests of one are rejected early and do not delay the other.
# Requests may set shorter timeouts: Triton ignores those unless a longer default is set here.
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
# One instance: without a GPU, Triton defaults to two for this backend, which doubles the weights.
"""

_ENCODER_BATCHING = """\
# No options: with priorities or queue limits, a single instance occasionally stalls for 500 ms.
dynamic_batching { }
"""

_WARM_UP = """\
# The first inference of a graph is slow: Triton runs it before it reports the model as ready.
"""

_POINT_PROMPT_DIMS = {"point_coords": (1, 2, 2), "point_labels": (1, 2)}
"""A point prompt as the gateway sends it: one prompt of a point and its padding."""


@dataclass(frozen=True, slots=True)
class StagedBundle:
    """A model whose graphs are written to a staging folder.

    ``graphs`` and ``interfaces`` are by role.  ``digest`` is that of all weights;
    ``encoder_digest`` is the one in the digest output of every graph.
    """

    name: str
    graphs: Mapping[str, Path]
    interfaces: Mapping[str, GraphInterface]
    digest: str
    encoder_digest: str

    @property
    def folders(self) -> list[str]:
        """The folders of the graphs, which are their names in Triton."""
        return [f"{self.name}_{role}" for role in self.graphs]


@dataclass(frozen=True, slots=True)
class Description:
    """The parts of a configuration that the graph does not determine.

    ``text`` is one printable line, ``parameters`` are further parameters without their prefix.
    """

    text: str
    family: Family = families.SAM1
    parameters: Mapping[str, str] = field(default_factory=dict)
    overlays: Overlays = PLAIN


def write_bundle(
    repository: Path, name: str, models: Mapping[str, onnx.ModelProto], description: Description
) -> None:
    """Write or replace the models ``<name>_encoder`` and ``<name>_decoder``.

    *models* are graphs by role that follow the model contract.  The same arguments give the same
    bytes.  All folders are complete before any of them is visible.
    """
    check_name(name)
    with staging(repository) as stage:
        bundle = stage_bundle(stage.folder, name, models)
        write_configs(bundle, description)
        stage.publish(bundle.folders)


def check_name(name: str) -> None:
    """Raise `ExportError` for a name that is not a valid folder name."""
    if not _NAME.fullmatch(name):
        raise ExportError(
            f"model name {name[:80]!r}: expected at most 128 letters, digits, '_', '-' and '.'"
        )


def stage_bundle(folder: Path, name: str, models: Mapping[str, onnx.ModelProto]) -> StagedBundle:
    """Write the graphs of a model into *folder*.

    The models may be modified: their weights may move to the disk.  Raises `ExportError` if encoder
    and decoder do not match.
    """
    unstamped = {role: without_stamp(model) for role, model in models.items()}
    interfaces = {role: read_interface(model) for role, model in unstamped.items()}
    _check_interfaces(interfaces["encoder"], interfaces["decoder"])
    paths: dict[str, Path] = {}
    for role, model in unstamped.items():
        version = folder / f"{name}_{role}" / MODEL_VERSION
        version.mkdir(parents=True)
        paths[role] = onnx_file.save(model, version)
    digests = graph_digests(paths)
    for path in paths.values():
        stamp(path, digests["encoder"])
    stamped = {
        role: replace(interface, outputs=(*interface.outputs, DIGEST_TENSOR))
        for role, interface in interfaces.items()
    }
    return StagedBundle(name, paths, stamped, bundle_digest(digests), digests["encoder"])


def write_configs(bundle: StagedBundle, description: Description) -> str:
    """Write the configurations of a model next to its graphs, and return the model's digest."""
    if not all(text.isprintable() for text in [description.text, *description.parameters.values()]):
        raise ExportError("the description must be one printable line")
    parameters = _parameters(bundle, description)
    batches = {"encoder": ENCODER_MAX_BATCH, "decoder": DECODER_MAX_BATCH}
    scheduling = _scheduling(description.overlays)
    for role, path in bundle.graphs.items():
        interface = bundle.interfaces[role]
        config = ModelConfig(
            name=f"{bundle.name}_{role}",
            max_batch_size=batches[role],
            interface=interface,
            scheduling=scheduling[role] + _warm_up(interface),
            parameters={**parameters, "samserve.role": role},
        )
        text = config_text(config)
        (path.parents[1] / CONFIG_FILE).write_text(text, encoding="utf-8", newline="\n")
    return bundle.digest


def _scheduling(overlays: Overlays) -> dict[str, str]:
    return {
        "encoder": _ENCODER_INSTANCES
        + instance_group(ENCODER_INSTANCES, overlays)
        + encoder_threads(overlays)
        + _ENCODER_BATCHING
        + acceleration(overlays),
        "decoder": _DECODER_INSTANCES
        + instance_group(DECODER_INSTANCES, overlays)
        + decoder_threads(overlays)
        + _DECODER_BATCHING,
    }


def _parameters(bundle: StagedBundle, description: Description) -> dict[str, str]:
    image_size = bundle.interfaces["encoder"].input("image").dims[1]
    mask_size = bundle.interfaces["decoder"].input("mask_input").dims[-1]
    others = {f"samserve.{key}": value for key, value in description.parameters.items()}
    return {
        "samserve.family": description.family.name,
        "samserve.model": bundle.name,
        "samserve.digest": bundle.digest,
        "samserve.encoder_digest": bundle.encoder_digest,
        "samserve.preprocessing": description.family.preprocessing,
        "samserve.image_size": str(image_size),
        "samserve.mask_size": str(mask_size),
        "samserve.description": description.text,
        **others,
    }


def _warm_up(interface: GraphInterface) -> str:
    """Return a warm-up request of zeros: a blank image, or a point prompt without a mask."""
    inputs = "\n".join(f"  {_warm_up_input(tensor)}" for tensor in interface.inputs)
    return f'{_WARM_UP}model_warmup {{\n  name: "first"\n  batch_size: 1\n{inputs}\n}}\n'


def _warm_up_input(tensor: GraphTensor) -> str:
    point_dims = _POINT_PROMPT_DIMS.get(tensor.name)
    # The remaining dynamic axis is that of mask prompts, of which there are none.
    dims = point_dims or [max(dim, 0) for dim in tensor.dims[1:]]
    data_type = TRITON_TYPES[tensor.elem_type]
    value = f"{{ data_type: {data_type} dims: {list(dims)} zero_data: true }}"
    return f"inputs {{ key: {json.dumps(tensor.name)} value: {value} }}"


def _check_interfaces(encoder: GraphInterface, decoder: GraphInterface) -> None:
    """Raise `ExportError` if the decoder does not accept the embedding, or a size is dynamic."""
    for embedding in encoder.outputs:
        if decoder.input(embedding.name) != embedding:
            raise ExportError(f"encoder and decoder disagree about {embedding.name!r}")
    sizes = [*encoder.input("image").dims[1:3], *decoder.input("mask_input").dims[-2:]]
    if min(sizes) <= 0:
        raise ExportError("image and mask_input must have fixed heights and widths")
