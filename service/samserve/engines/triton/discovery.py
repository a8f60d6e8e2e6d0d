"""Which pairs a running Triton serves, from what it says of its models."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import structlog

from samserve.engines.repository import Pair, default_first, encoders, pair_of
from samserve.engines.triton.connection import TritonConnection
from samserve.errors import EngineUnavailable


async def served_pairs(
    connection: TritonConnection, ready: frozenset[str], default_model: str
) -> Mapping[str, Pair]:
    """Read the configurations of the *ready* models and pair them, the default model first.

    A pair that does not fit together is logged and left out, because other models on the same
    Triton are not to blame for it.  Raises `EngineUnavailable` if nothing is left, or not the
    default model.
    """
    configs = await asyncio.gather(*(connection.config(name) for name in sorted(ready)))
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
