"""Sizes of the settings beside the largest embedding that is served."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from samserve.cache.sizing import check_sizes
from samserve.engines.fake import MODEL
from samserve.errors import Misconfigured
from samserve.settings import CacheSettings
from samserve.types import ModelInfo, TensorSpec
from structlog.testing import capture_logs

HALF = np.dtype(np.float16)
MIB = 1 << 20
SAM_2 = replace(
    MODEL,
    name="sam2",
    embedding=(
        TensorSpec("high_res_0", HALF, (32, 256, 256)),
        TensorSpec("high_res_1", HALF, (64, 128, 128)),
        TensorSpec("image_embedding", HALF, (256, 64, 64)),
    ),
)
MODELS = {MODEL.name: MODEL, "sam2": SAM_2}


def warnings(models: dict[str, ModelInfo], **sections: Any) -> list[dict[str, Any]]:
    with capture_logs() as logged:
        check_sizes(CacheSettings(**sections), models)
    return [
        {key: event[key] for key in ("setting", "model", "embeddings", "recommended")}
        for event in logged
    ]


def test_defaults_hold_enough_embeddings_of_every_family() -> None:
    assert warnings(MODELS, shared={"nodes": "127.0.0.1:7000"}) == []


def test_a_small_local_tier_is_reported_with_the_largest_model() -> None:
    few = {"setting": "cache.local.capacity_bytes", "model": "sam2", "embeddings": 31}

    assert warnings(MODELS, local={"capacity_bytes": 255 * MIB}) == [
        {**few, "recommended": 256 * MIB}
    ]
    assert warnings({MODEL.name: MODEL}, local={"capacity_bytes": 255 * MIB}) == []


def test_few_bytes_in_flight_are_reported_if_there_is_a_shared_tier() -> None:
    small = {"max_in_flight_bytes": 31 * MIB}
    few = {"setting": "cache.shared.max_in_flight_bytes", "model": "sam2", "embeddings": 3}

    assert warnings(MODELS, shared={**small, "nodes": "127.0.0.1:7000"}) == [
        {**few, "recommended": 32 * MIB}
    ]
    assert warnings(MODELS, shared=small) == []


def test_a_local_tier_smaller_than_one_embedding_is_an_error() -> None:
    settings = CacheSettings(local={"capacity_bytes": 8 * MIB - 1})  # type: ignore[arg-type]

    with pytest.raises(Misconfigured, match=r"capacity_bytes is 8388607; .*'sam2' has 8388608"):
        check_sizes(settings, MODELS)
