"""Discovers the models that Triton serves, from the configurations of their graphs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from tritonclient.grpc import model_config_pb2

from samserve.engines.triton.connection import TritonConnection
from samserve.engines.triton.failures import RequestTimeout, Unreachable
from samserve.errors import EngineUnavailable, SamserveError
from samserve.models.repository import (
    Bundle,
    MixedWeights,
    bundle_of,
    default_first,
    encoders,
    parameter,
)


@dataclass(frozen=True, slots=True)
class Served:
    """The models by name, the default one first, and why others were skipped."""

    bundles: Mapping[str, Bundle[str]]
    skipped: tuple[str, ...] = ()


async def served_bundles(
    connection: TritonConnection,
    ready: Mapping[str, str],
    default_model: str,
    before: Mapping[str, Bundle[str]],
) -> Served:
    """Read the configurations of the *ready* graphs and collect the graphs of each model.

    *ready* has a ready version of each graph.  The configurations are read every time: weights may
    be replaced under the same name.  While a model has graphs of two encoders, it stays what it was
    *before*: it is still served, and its runs report the encoder that they belong to.

    A model whose graphs are inconsistent is skipped, so that other models on the same Triton are
    still served.  Raises `EngineUnavailable` if no model is left, or if the default model is
    missing.
    """
    responses = await asyncio.gather(*(_config(connection, name) for name in sorted(ready)))
    configs = [config for config in responses if config is not None]
    found: dict[str, Bundle[str]] = {}
    changing: dict[str, Bundle[str]] = {}
    skipped: list[str] = []
    for encoder in encoders(configs):
        name = parameter(encoder, "model")
        try:
            found[name] = _versioned(bundle_of(encoder, configs), configs, ready)
        except EngineUnavailable as error:
            skipped.append(str(error))
            if isinstance(error, MixedWeights) and name in before:
                changing[name] = before[name]
    details = "".join(f"; {reason}" for reason in skipped)
    if not found:
        raise EngineUnavailable(f"Triton serves no samserve model{details}")
    try:
        names = default_first({**changing, **found}, default_model)
    except EngineUnavailable as error:
        raise EngineUnavailable(f"{error}{details}") from None
    return Served({name: found.get(name) or changing[name] for name in names}, tuple(skipped))


def _versioned(
    bundle: Bundle[str], configs: Iterable[model_config_pb2.ModelConfig], ready: Mapping[str, str]
) -> Bundle[str]:
    """Name the version of each graph: the one that its configuration describes.

    Raises `MixedWeights` while Triton has loaded other versions than the configuration describes.
    """
    versions = {}
    by_name = {config.name: config for config in configs}
    for role, name in bundle.graphs.items():
        config = by_name[name]
        loaded = config.version_policy.specific.versions
        # Without the parameter it is the version before the first promotion.
        version = parameter(config, "version") or (str(min(loaded)) if loaded else "")
        lowest = int(ready.get(name) or 0)
        other = bool(loaded) and bool(version) and int(version) not in loaded
        if other or (version and int(version) < lowest):
            raise MixedWeights(f"another version of {name!r} is being put into service")
        versions[role] = version or ready[name]
    return replace(bundle, versions=versions)


async def _config(connection: TritonConnection, model: str) -> model_config_pb2.ModelConfig | None:
    """Return one configuration; None if the model has just been unloaded."""
    try:
        return await connection.config(model)
    except (RequestTimeout, Unreachable):
        raise
    except SamserveError:
        return None
