"""What models of each family add to requests and results."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np
import pytest
from samserve.client import Client, HqMode, InvalidArgument, Mask, Model, Prompt, responses
from samserve.engines.fake import FakeEngine
from samserve.types import DynamicMultimask
from samserve.v1 import samserve_pb2 as pb

from tests.client.conftest import PIXELS
from tests.conftest import serving
from tests.support.engines import SMALL_MODEL

POINT = Prompt(points=[(32, 24)])
STABILITY = DynamicMultimask(delta=0.05, thresh=0.98)


@asynccontextmanager
async def client_of(family: str) -> AsyncIterator[Client]:
    model = replace(SMALL_MODEL, family=family, dynamic_multimask=STABILITY)
    async with (
        serving(engine=FakeEngine(model=model)) as (service, _),
        Client(service.address) as client,
    ):
        yield client


@pytest.mark.parametrize(
    ("family", "score"), [("sam1", None), ("sam2", 1 / (1 + math.exp(-4))), ("sam_hq", None)]
)
async def test_each_prompt_has_an_object_score_if_the_family_has_it(
    family: str, score: float | None
) -> None:
    async with client_of(family) as client:
        prediction = await client.predict(PIXELS, [POINT, Prompt(box=(10, 10, 40, 40))])

    expected = None if score is None else pytest.approx(score)
    assert prediction.object_scores == [expected, expected]


async def hq_masks(client: Client, mode: HqMode | None) -> list[Mask]:
    prediction = await client.predict(
        PIXELS, [POINT], multimask="all", hq_mode=mode, low_res_logits=True
    )
    return prediction.results[0]


async def test_hq_mode_adds_the_hq_mask_or_replaces_the_plain_one() -> None:
    async with client_of("sam_hq") as client:
        by_default = await hq_masks(client, None)
        added = await hq_masks(client, "added")
        only = await hq_masks(client, "only")
        plain = await hq_masks(client, "off")

    assert [mask.token_index for mask in by_default + added + only] == [4, 4, 4]
    assert [mask.token_index for mask in plain] == [1, 2, 3]
    best = max(plain, key=lambda mask: mask.predicted_iou)
    assert best.low_res_logits is not None
    assert only[0].low_res_logits is not None
    assert np.array_equal(added[0].low_res_logits, best.low_res_logits + only[0].low_res_logits)
    assert np.array_equal(by_default[0].low_res_logits, added[0].low_res_logits)


async def test_hq_mode_is_rejected_for_other_families() -> None:
    async with client_of("sam2") as client:
        with pytest.raises(InvalidArgument, match="hq_mode"):
            await client.predict(PIXELS, [POINT], hq_mode="off")
        with pytest.raises(InvalidArgument, match=r"options\.hq_mode"):
            await client.automask_all(PIXELS, hq_mode="off")


async def test_automask_options_of_the_families_reach_the_server() -> None:
    async with client_of("sam_hq") as client:

        async def candidates(**options: bool | HqMode) -> int:
            result = await client.automask_all(PIXELS, points_per_side=3, **options)  # type: ignore[arg-type]
            return result.summary.filters[0].in_count

        assert await candidates() == await candidates(hq_mode="only") == 9
        assert await candidates(hq_mode="off") == 27
        assert await candidates(hq_mode="off", multimask_output=False) == 9
        assert await candidates(hq_mode="off", use_m2m=True) == 27


async def test_use_m2m_decodes_each_candidate_again() -> None:
    engine = FakeEngine(model=replace(SMALL_MODEL, family="sam2"))
    async with serving(engine=engine) as (service, _), Client(service.address) as client:

        async def decodes(**options: bool | int) -> int:
            before = engine.counts["decode_begun"]
            await client.automask_all(PIXELS, points_per_side=2, points_per_batch=4, **options)  # type: ignore[arg-type]
            return engine.counts["decode_begun"] - before

        assert await decodes() == 1
        # 4 points with 3 candidates each, in batches of 4.
        assert await decodes(use_m2m=True) == 1 + 3


async def test_models_list_the_defaults_tokens_and_capabilities_of_their_family() -> None:
    models: dict[str, Model] = {}
    for family in ("sam1", "sam2", "sam_hq"):
        async with client_of(family) as client:
            (models[family],) = (await client.models()).models

    assert {name: model.mask_tokens for name, model in models.items()} == {
        "sam1": 4, "sam2": 4, "sam_hq": 5
    }  # fmt: skip
    assert ["hq_mode" in model.capabilities for model in models.values()] == [False, False, True]
    assert models["sam1"].automask_defaults["pred_iou_thresh"] == 0.88
    assert models["sam2"].automask_defaults["pred_iou_thresh"] == 0.8
    assert models["sam2"].automask_defaults["multimask_output"] is True
    assert models["sam2"].automask_defaults["use_m2m"] is False
    assert "hq_mode" not in models["sam_hq"].automask_defaults


def test_models_of_a_server_without_defaults_for_each_have_the_common_ones() -> None:
    message = pb.ListModelsResponse(
        models=[
            pb.Model(name="old"),
            pb.Model(
                name="new",
                automask_defaults=pb.AutoMaskOptions(pred_iou_thresh=0.8, hq_mode=pb.HQ_MODE_ADDED),
            ),
        ],
        automask_defaults=pb.AutoMaskOptions(pred_iou_thresh=0.88, points_per_side=32),
    )

    old, new = responses.catalog(message).models

    assert old.automask_defaults == {"pred_iou_thresh": 0.88, "points_per_side": 32}
    assert old.mask_tokens == 0
    assert new.automask_defaults == {"pred_iou_thresh": 0.8}


def test_the_license_of_the_weights_is_part_of_the_card() -> None:
    message = pb.ListModelsResponse(models=[pb.Model(card=pb.ModelCard(license="Apache-2.0"))])

    (model,) = responses.catalog(message).models

    assert model.card.license == "Apache-2.0"
