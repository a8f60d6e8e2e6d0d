"""Reading a Triton model repository: which encoder and decoder pairs it holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from samserve.errors import EngineUnavailable
from samserve.models import card
from samserve.models.digest import DIGEST_OUTPUT, DIGEST_WORDS, digest_words
from samserve.types import ModelInfo, TensorSpec

FAMILIES = frozenset({"sam1"})

_DTYPES: dict[int, np.dtype[Any]] = {
    model_config_pb2.TYPE_FP16: np.dtype(np.float16),
    model_config_pb2.TYPE_FP32: np.dtype(np.float32),
}


class MixedWeights(EngineUnavailable):
    """The encoder and the decoder of a model are of different weights; one may be loading."""


@dataclass(frozen=True, slots=True)
class Pair:
    """An encoder and a decoder of the same weights, by the names of their models."""

    info: ModelInfo
    encoder: str
    decoder: str


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A pair and where its two graphs lie."""

    info: ModelInfo
    encoder: Path
    decoder: Path


def discover(repository: Path) -> tuple[ModelFiles, ...]:
    """List the pairs of a repository in alphabetical order.

    Models without samserve's parameters are somebody else's and passed over.  Raises
    `EngineUnavailable` for a repository without a pair and for a pair that does not fit together.
    """
    by_name = read_configs(repository)
    pairs = [pair_of(config, by_name, repository) for config in encoders(by_name.values())]
    if not pairs:
        raise EngineUnavailable(f"no model in {repository}")
    return tuple(
        ModelFiles(pair.info, _graph(repository, pair.encoder), _graph(repository, pair.decoder))
        for pair in pairs
    )


def read_configs(repository: Path) -> dict[str, model_config_pb2.ModelConfig]:
    """Read the configurations of a repository by the names of their models, in that order.

    Raises `EngineUnavailable` for a file that is none.
    """
    configs = [_read(path) for path in sorted(repository.glob("*/config.pbtxt"))]
    return {config.name: config for config in configs}


def encoders(configs: Iterable[model_config_pb2.ModelConfig]) -> list[model_config_pb2.ModelConfig]:
    """Choose the configurations of image encoders that samserve can pair."""
    return [config for config in configs if parameter(config, "role") == "encoder"]


def pair_of(
    encoder: model_config_pb2.ModelConfig,
    by_name: Mapping[str, model_config_pb2.ModelConfig],
    repository: str | Path = "REPOSITORY",
) -> Pair:
    """Find the decoder of an encoder.

    Raises `EngineUnavailable` if they do not fit, `MixedWeights` if they are of different weights.

    *repository* is what an error calls the place where both lie.
    """
    name = parameter(encoder, "model")
    decoder = by_name.get(f"{name}_decoder")
    info = model_info(encoder, name)
    if decoder is None:
        raise EngineUnavailable(f"the decoder of model {name!r} is missing")
    if parameter(decoder, "digest") != info.digest:
        raise MixedWeights(f"the decoder of model {name!r} is of other weights than its encoder")
    if info.family not in FAMILIES:
        raise EngineUnavailable(f"model {name!r} is of unknown family {info.family!r}")
    if not (says_digest(encoder) and says_digest(decoder)):
        raise EngineUnavailable(
            f"model {name!r} does not say with its answers which weights made them; "
            f"add that by: samserve models upgrade {repository}"
        )
    return Pair(info, encoder.name, decoder.name)


def says_digest(config: model_config_pb2.ModelConfig) -> bool:
    """Tell whether a model declares that its answers name their weights."""
    return any(
        (output.name, output.data_type, list(output.dims))
        == (DIGEST_OUTPUT, model_config_pb2.TYPE_INT32, [DIGEST_WORDS])
        for output in config.output
    )


def default_first(names: Iterable[str], default_model: str) -> list[str]:
    """Order models by name, the default one first.

    Raises `EngineUnavailable` if a default is named and not there.
    """
    ordered = sorted(names)
    if default_model and default_model not in ordered:
        raise EngineUnavailable(
            f"the default model {default_model!r} is not there; there are: {', '.join(ordered)}"
        )
    return sorted(ordered, key=lambda name: name != default_model)


def model_info(encoder: model_config_pb2.ModelConfig, name: str) -> ModelInfo:
    """Read what an encoder's configuration says about its pair.

    Raises `EngineUnavailable` if that is not enough to serve it.
    """
    try:
        return _model_info(encoder, name)
    except (KeyError, ValueError) as error:
        raise EngineUnavailable(
            f"the configuration of {encoder.name!r} is incomplete or of a kind not served: {error}"
        ) from error


def _model_info(encoder: model_config_pb2.ModelConfig, name: str) -> ModelInfo:
    digest = parameter(encoder, "digest")
    digest_words(digest)
    return ModelInfo(
        name=name,
        family=parameter(encoder, "family"),
        digest=digest,
        preprocessing=parameter(encoder, "preprocessing"),
        image_size=int(parameter(encoder, "image_size")),
        mask_size=int(parameter(encoder, "mask_size")),
        embedding=_specs(encoder.output),
        description=parameter(encoder, "description"),
        card=card.from_parameters(_parameters(encoder)),
    )


def _read(path: Path) -> model_config_pb2.ModelConfig:
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise EngineUnavailable(f"{path} is not a model configuration: {error}") from error


def _graph(repository: Path, model: str) -> Path:
    path = repository / model / "1" / "model.onnx"
    if not path.is_file():
        raise EngineUnavailable(f"{path} is missing")
    return path


def parameter(config: model_config_pb2.ModelConfig, key: str) -> str:
    """Read one of samserve's parameters, without their prefix; empty if it is not there."""
    name = f"samserve.{key}"
    return str(config.parameters[name].string_value) if name in config.parameters else ""


def _parameters(config: model_config_pb2.ModelConfig) -> dict[str, str]:
    """Give all of samserve's parameters without their prefix."""
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
        # What says the weights is no part of an embedding.
        if output.name != DIGEST_OUTPUT
    )
    if not specs or min(dim for spec in specs for dim in spec.shape) <= 0:
        raise ValueError("embeddings must have fixed sizes")
    return specs
