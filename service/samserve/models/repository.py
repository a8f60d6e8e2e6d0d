"""Reads a Triton model repository: the models in it, each a bundle of graphs."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from samserve.errors import EngineUnavailable
from samserve.models import card, families
from samserve.models.digest import DIGEST_OUTPUT, DIGEST_WORDS, MODEL_FILE, digest_words
from samserve.models.tensors import IOU_THRESHOLD, GraphTensors, check_tensors
from samserve.types import DynamicMultimask, ModelInfo, TensorSpec

G = TypeVar("G")
ModelConfig: TypeAlias = model_config_pb2.ModelConfig

_DTYPES: dict[int, np.dtype[Any]] = {
    model_config_pb2.TYPE_FP16: np.dtype(np.float16),
    model_config_pb2.TYPE_FP32: np.dtype(np.float32),
}


FIRST_VERSION = "1"
"""The version folder of an exported graph."""
CONFIG_FILE = "config.pbtxt"

# The largest one that is exported.
_MAX_DELTA = 1000


class MixedWeights(EngineUnavailable):
    """A graph belongs to another encoder than the model's; new weights may be loading."""


@dataclass(frozen=True, slots=True)
class Bundle(Generic[G]):
    """A model: its description, and its graphs by role.

    SAM 1 has an ``encoder`` and a ``decoder``.  A graph is the name of a model in Triton, or the
    path of a file.
    """

    info: ModelInfo
    graphs: Mapping[str, G]
    versions: Mapping[str, str] = field(default_factory=dict)
    """The version folder of each graph, by role; a role without one has that of `FIRST_VERSION`."""


def discover(repository: Path) -> tuple[Bundle[Path], ...]:
    """List the models of a repository in alphabetical order.

    Configurations without samserve's parameters belong to other models and are ignored.  Raises
    `EngineUnavailable` for a repository without a model and for graphs that are inconsistent.
    """
    configs = [in_service(config, repository) for config in read_configs(repository)]
    bundles = [bundle_of(encoder, configs, repository) for encoder in encoders(configs)]
    if not bundles:
        raise EngineUnavailable(f"no model in {repository}")
    return tuple(with_files(bundle, repository) for bundle in bundles)


def discover_each(repository: Path) -> tuple[tuple[Bundle[Path], ...], dict[str, str]]:
    """List the models of a repository like `discover`, without those that cannot be served.

    Returns why they cannot by the name of the model, or of the folder of an invalid configuration.
    """
    configs, bundles, problems = [], [], {}
    for path in sorted(repository.glob(f"*/{CONFIG_FILE}")):
        try:
            configs.append(in_service(read_config(path), repository))
        except (EngineUnavailable, OSError) as error:
            problems[re.sub("_(encoder|decoder)$", "", path.parent.name)] = str(error)
    for encoder in encoders(configs):
        name = parameter(encoder, "model")
        if name in problems:
            continue
        try:
            bundles.append(with_files(bundle_of(encoder, configs, repository), repository))
        except EngineUnavailable as error:
            problems[name] = str(error)
    return tuple(bundles), problems


def read_configs(repository: Path) -> list[ModelConfig]:
    """Read the configurations of a repository, sorted by folder.

    Raises `EngineUnavailable` for a file that is not a configuration.
    """
    return [read_config(path) for path in sorted(repository.glob(f"*/{CONFIG_FILE}"))]


def version_of(config: ModelConfig) -> str:
    """Return the version folder that a configuration describes."""
    return parameter(config, "version") or FIRST_VERSION


def config_of_version(repository: Path, graph: str, version: str) -> Path:
    """Return the configuration of one version of a graph that has been promoted or replaced."""
    return repository / graph / "configs" / f"version-{version}.pbtxt"


def in_service(config: ModelConfig, repository: Path) -> ModelConfig:
    """Return the configuration of the version of a graph that is in service.

    The decoder's configuration names the version of the encoder that it belongs to: so the rename
    of one file puts both networks into service, also if the command that renames it then ends.
    """
    if parameter(config, "role") != "encoder":
        return config
    decoder = repository / f"{parameter(config, 'model')}_decoder" / CONFIG_FILE
    if not decoder.is_file():
        return config
    wanted = parameter(read_config(decoder), "encoder_version")
    if wanted in ("", version_of(config)):
        return config
    return read_config(config_of_version(repository, config.name, wanted))


def encoders(configs: Iterable[ModelConfig]) -> list[ModelConfig]:
    """Return the configurations of image encoders; each one defines a bundle."""
    return [config for config in configs if parameter(config, "role") == "encoder"]


def graphs_of(encoder: ModelConfig, configs: Iterable[ModelConfig]) -> dict[str, ModelConfig]:
    """Return the graphs of an encoder's model by role: those named ``<model>_<role>``.

    Raises `EngineUnavailable` if there is no decoder.
    """
    model = parameter(encoder, "model")
    graphs = {"encoder": encoder}
    for config in configs:
        role = parameter(config, "role")
        if config.name == f"{model}_{role}":
            graphs.setdefault(role, config)
    if "decoder" not in graphs:
        raise EngineUnavailable(f"the decoder of model {model!r} is missing")
    return graphs


def bundle_of(
    encoder: ModelConfig,
    configs: Collection[ModelConfig],
    repository: str | Path = "REPOSITORY",
) -> Bundle[str]:
    """Collect the graphs of an encoder's model.

    Raises `EngineUnavailable` if they are inconsistent, `MixedWeights` if one belongs to another
    encoder.

    *repository* is the name of the repository in error messages.
    """
    graphs = graphs_of(encoder, configs)
    _check_encoder(graphs, repository)
    info = model_info(encoder, graphs["decoder"])
    _check_preprocessing(info)
    if not all(reports_digest(config) for config in graphs.values()):
        raise EngineUnavailable(
            f"model {info.name!r} does not report the digest of its weights with its results; "
            f"add it with: samserve models upgrade {repository}"
        )
    for role, config in graphs.items():
        check_tensors(role, _tensors(config), info)
    return Bundle(
        info,
        {role: config.name for role, config in graphs.items()},
        {role: version_of(config) for role, config in graphs.items()},
    )


def _tensors(config: ModelConfig) -> GraphTensors:
    return GraphTensors(
        {tensor.name: tuple(tensor.dims) for tensor in config.input},
        {tensor.name: tuple(tensor.dims) for tensor in config.output},
    )


def _check_preprocessing(info: ModelInfo) -> None:
    """Reject a model that was exported for another preprocessing than that of this version."""
    supported = families.of(info).preprocessing
    if info.preprocessing != supported:
        raise EngineUnavailable(
            f"model {info.name!r} needs preprocessing {info.preprocessing!r}; this version of "
            f"samserve has {supported!r}"
        )


def _check_encoder(graphs: Mapping[str, ModelConfig], repository: str | Path) -> None:
    encoder = graphs["encoder"]
    present, digest = encoder_digest(encoder), parameter(encoder, "digest")
    for role, config in graphs.items():
        expected = encoder_digest(config)
        if expected == present:
            continue
        if parameter(config, "digest") == digest and digest in (expected, present):
            raise MixedWeights(
                f"model {parameter(encoder, 'model')!r} is only partly upgraded: load all of its "
                f"graphs again, or complete the upgrade with: samserve models upgrade {repository}"
            )
        raise MixedWeights(
            f"{config.name!r} has other weights: this {role} belongs to the encoder "
            f"{expected[:12]}, not to {present[:12]}"
        )


def encoder_digest(config: ModelConfig) -> str:
    """Return the digest of the encoder whose embeddings a graph produces or consumes.

    Earlier exports do not distinguish encoders from models and have the digest of the model only.
    """
    return parameter(config, "encoder_digest") or parameter(config, "digest")


def reports_digest(config: ModelConfig) -> bool:
    """Return whether a graph declares the output that identifies its encoder."""
    return any(
        (output.name, output.data_type, list(output.dims))
        == (DIGEST_OUTPUT, model_config_pb2.TYPE_INT32, [DIGEST_WORDS])
        for output in config.output
    )


def default_first(names: Iterable[str], default_model: str) -> list[str]:
    """Order models by name, the default one first.

    Raises `EngineUnavailable` if the default model is not among them.
    """
    ordered = sorted(names)
    if default_model and default_model not in ordered:
        raise EngineUnavailable(
            f"the default model {default_model!r} is missing; available: {', '.join(ordered)}"
        )
    return sorted(ordered, key=lambda name: name != default_model)


def model_info(encoder: ModelConfig, decoder: ModelConfig) -> ModelInfo:
    """Read the description of a model from its configurations.

    Properties of the whole model, and of masks, come from the decoder, which may be replaced while
    its encoder stays.

    Raises `EngineUnavailable` if the configurations are insufficient to serve it.
    """
    try:
        return _model_info(encoder, decoder)
    except (KeyError, ValueError) as error:
        raise EngineUnavailable(
            f"the configuration of {encoder.name!r} or {decoder.name!r} is incomplete or not "
            f"supported: {error}"
        ) from error


def _model_info(encoder: ModelConfig, decoder: ModelConfig) -> ModelInfo:
    digest, of_encoder = parameter(decoder, "digest"), encoder_digest(encoder)
    for value in (digest, of_encoder):
        digest_words(value)
    return ModelInfo(
        name=parameter(encoder, "model"),
        family=parameter(encoder, "family"),
        digest=digest,
        encoder_digest=of_encoder,
        preprocessing=parameter(encoder, "preprocessing"),
        image_size=int(parameter(encoder, "image_size")),
        mask_size=int(parameter(decoder, "mask_size")),
        embedding=_specs(encoder.output),
        description=parameter(decoder, "description"),
        card=card.from_parameters(_parameters(decoder)),
        dynamic_multimask=_dynamic_multimask(decoder),
        skips_masks=any(each.name == IOU_THRESHOLD for each in decoder.input),
    )


def _dynamic_multimask(decoder: ModelConfig) -> DynamicMultimask | None:
    texts = [parameter(decoder, f"multimask_stability_{name}") for name in ("delta", "thresh")]
    if not any(texts):
        return None
    if not all(texts):
        raise ValueError("of multimask_stability_delta and _thresh only one is set")
    delta, thresh = (float(text) for text in texts)
    # NaN is in no range.
    if not (0 <= delta <= _MAX_DELTA and 0 <= thresh <= 1):
        raise ValueError(
            f"multimask_stability_delta must be from 0 to {_MAX_DELTA:g} and "
            f"multimask_stability_thresh from 0 to 1; got {delta:g} and {thresh:g}"
        )
    return DynamicMultimask(delta, thresh)


def read_config(path: Path) -> ModelConfig:
    """Read one configuration.  Raises `EngineUnavailable` for a file that is not one."""
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), ModelConfig())
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise EngineUnavailable(f"{path} is not a model configuration: {error}") from error


def with_files(bundle: Bundle[str], repository: Path) -> Bundle[Path]:
    """Return the files of the graphs.  Raises `EngineUnavailable` for a missing one."""
    files = {
        role: _file(repository, name, bundle.versions[role]) for role, name in bundle.graphs.items()
    }
    return Bundle(bundle.info, files, bundle.versions)


def _file(repository: Path, model: str, version: str) -> Path:
    path = repository / model / version / MODEL_FILE
    if not path.is_file():
        raise EngineUnavailable(f"{path} is missing")
    return path


def parameter(config: ModelConfig, key: str) -> str:
    """Return one of samserve's parameters by its name without the prefix; empty if missing."""
    return _parameters(config).get(key, "")


def _parameters(config: ModelConfig) -> dict[str, str]:
    """Return all of samserve's parameters without their prefix."""
    prefix = "samserve."
    return {
        name.removeprefix(prefix): value.string_value
        for name, value in config.parameters.items()
        if name.startswith(prefix)
    }


def _specs(outputs: Iterable[model_config_pb2.ModelOutput]) -> tuple[TensorSpec, ...]:
    specs = tuple(
        TensorSpec(output.name, _DTYPES[output.data_type], tuple(output.dims))
        for output in outputs
        # The output that identifies the weights is not part of an embedding.
        if output.name != DIGEST_OUTPUT
    )
    if not specs or min(dim for spec in specs for dim in spec.shape) <= 0:
        raise ValueError("embeddings must have fixed shapes")
    return specs
