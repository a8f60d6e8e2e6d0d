"""Which models a running Triton serves, from what it says of their graphs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from tritonclient.grpc import model_config_pb2

from samserve.engines.triton.connection import TritonConnection
from samserve.engines.triton.failures import NoAnswer, Unreachable
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
    """The models by name, the default one first, and why others were left out."""

    bundles: Mapping[str, Bundle[str]]
    left_out: tuple[str, ...] = ()


async def served_bundles(
    connection: TritonConnection,
    ready: frozenset[str],
    default_model: str,
    before: Mapping[str, Bundle[str]],
) -> Served:
    """Read the configurations of the *ready* graphs and gather the graphs of each model.

    They are read every time: weights may be replaced under the same name.  While graphs of two
    encoders are there, the model stays what it was *before*: it is not gone, and its runs say which
    encoder they belong to.

    A model whose graphs do not fit together is left out, because other models on the same Triton
    are not to blame for it.  Raises `EngineUnavailable` if nothing is left, or not the default
    model.
    """
    answers = await asyncio.gather(*(_config(connection, name) for name in sorted(ready)))
    configs = [config for config in answers if config is not None]
    found: dict[str, Bundle[str]] = {}
    changing: dict[str, Bundle[str]] = {}
    left_out: list[str] = []
    for encoder in encoders(configs):
        name = parameter(encoder, "model")
        try:
            found[name] = bundle_of(encoder, configs)
        except EngineUnavailable as error:
            left_out.append(str(error))
            if isinstance(error, MixedWeights) and name in before:
                changing[name] = before[name]
    why = "".join(f"; {reason}" for reason in left_out)
    if not found:
        raise EngineUnavailable(f"the model server serves no model that samserve knows{why}")
    try:
        names = default_first({**changing, **found}, default_model)
    except EngineUnavailable as error:
        raise EngineUnavailable(f"{error}{why}") from None
    return Served({name: found.get(name) or changing[name] for name in names}, tuple(left_out))


async def _config(connection: TritonConnection, model: str) -> model_config_pb2.ModelConfig | None:
    """Read one configuration; None if the model has just been unloaded."""
    try:
        return await connection.config(model)
    except (NoAnswer, Unreachable):
        raise
    except SamserveError:
        return None
