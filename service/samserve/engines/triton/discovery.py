"""Which pairs a running Triton serves, from what it says of its models."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import structlog
from tritonclient.grpc import model_config_pb2

from samserve.engines.repository import Pair, default_first, encoders, pair_of
from samserve.engines.triton.connection import TritonConnection
from samserve.engines.triton.failures import NoAnswer, Unreachable
from samserve.errors import EngineUnavailable, SamserveError


async def served_pairs(
    connection: TritonConnection, ready: frozenset[str], default_model: str
) -> Mapping[str, Pair]:
    """Read the configurations of the *ready* models and pair them, the default model first.

    They are read every time: weights may be replaced under the same name.

    A pair that does not fit together is logged and left out, because other models on the same
    Triton are not to blame for it.  Raises `EngineUnavailable` if nothing is left, or not the
    default model.
    """
    answers = await asyncio.gather(*(_config(connection, name) for name in sorted(ready)))
    configs = [config for config in answers if config is not None]
    by_name = {config.name: config for config in configs}
    pairs: dict[str, Pair] = {}
    for encoder in encoders(configs):
        try:
            pair = pair_of(encoder, by_name)
        except EngineUnavailable as error:
            structlog.get_logger("samserve.triton").warning("model left out", reason=str(error))
            continue
        pairs[pair.info.name] = pair
    if not pairs:
        raise EngineUnavailable("the model server serves no model that samserve knows")
    return {name: pairs[name] for name in default_first(pairs, default_model)}


async def _config(connection: TritonConnection, model: str) -> model_config_pb2.ModelConfig | None:
    """Read one configuration; None if the model has just been unloaded."""
    try:
        return await connection.config(model)
    except (NoAnswer, Unreachable):
        raise
    except SamserveError:
        return None
