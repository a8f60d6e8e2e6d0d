"""Compares the sizes in the settings with the largest embedding that is served."""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from samserve.errors import Misconfigured
from samserve.memory.anonymous import round_up_to_page
from samserve.memory.arena import slot_bytes
from samserve.settings import CacheSettings
from samserve.types import ModelInfo

# Fewer would be evicted while people still use them.
_FEW_LOCAL = 32
# With fewer, reads and writes of different calls wait for each other.
_FEW_IN_FLIGHT = 4


def check_sizes(settings: CacheSettings, models: Mapping[str, ModelInfo]) -> None:
    """Log a warning for each size of the settings that holds few embeddings.

    Raises `Misconfigured` if the local tier cannot hold a single one of each model.
    """
    if not models:
        return
    largest = max(models.values(), key=_slot_bytes)
    nbytes = _slot_bytes(largest)
    if nbytes > settings.local.capacity_bytes:
        raise Misconfigured(
            f"cache.local.capacity_bytes is {settings.local.capacity_bytes}; an embedding of the "
            f"model {largest.name!r} has {nbytes} bytes"
        )
    sizes = [("cache.local.capacity_bytes", settings.local.capacity_bytes, _FEW_LOCAL)]
    if settings.shared.nodes:
        in_flight = settings.shared.max_in_flight_bytes
        sizes.append(("cache.shared.max_in_flight_bytes", in_flight, _FEW_IN_FLIGHT))
    for name, value, few in sizes:
        if value < few * nbytes:
            structlog.get_logger("samserve.cache").warning(
                "setting holds few embeddings",
                setting=name,
                value=value,
                model=largest.name,
                embedding_bytes=nbytes,
                embeddings=value // nbytes,
                recommended=few * nbytes,
            )


def _slot_bytes(model: ModelInfo) -> int:
    return round_up_to_page(slot_bytes(model.embedding))
