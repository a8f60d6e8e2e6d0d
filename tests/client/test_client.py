"""The asyncio client with the real server and the fake engine."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco
from samserve.app import Running
from samserve.client import (
    AutoMaskRecord,
    Client,
    EmbeddingNotFound,
    InvalidArgument,
    MaskLike,
    Progress,
    Prompt,
    Summary,
    Unavailable,
)
from samserve.engines.fake import FakeEngine
from samserve.v1.samserve_pb2_grpc import SegmentationServiceStub

from tests.client.conftest import PIXELS
from tests.conftest import serving
from tests.metric_values import total
from tests.support.waiting import until

POINT = Prompt(points=[(32, 24)])


def encoded(pixels: np.ndarray, *, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG", exif=exif)
    return file.getvalue()


def noise(seed: int) -> np.ndarray:
    """An image whose file is over 256 KiB."""
    return np.random.default_rng(seed).integers(0, 256, (400, 400, 3), dtype=np.uint8)


async def test_embed_describes_the_embedding(client: Client) -> None:
    embedding = await client.embed(PIXELS)

    assert embedding.image_size == (48, 64)
    assert (embedding.model, embedding.cached) == ("fake", False)
    assert embedding.expires_at is not None
    assert embedding.expires_at > datetime.now(UTC)
    assert embedding.stored == "local"
    assert "encode" in embedding.timings_ms


async def test_prefetched_embedding_is_pending_until_used(client: Client) -> None:
    pending = await client.prefetch(PIXELS)
    prediction = await client.predict(pending, [POINT])
    cached = await client.prefetch(PIXELS)

    assert (pending.stored, pending.expires_at) == ("pending", None)
    assert prediction.embedding.id == cached.id == pending.id
    assert (cached.stored, cached.cached) == ("local", True)


async def test_durable_embed_fails_without_a_shared_cache(client: Client) -> None:
    with pytest.raises(Unavailable, match="shared cache") as caught:
        await client.embed(PIXELS, durable=True)
    assert caught.value.reason == "CACHE_UNAVAILABLE"


async def test_predict_sends_the_image_if_the_embedding_is_not_found(client: Client) -> None:
    embedding = await client.embed(PIXELS)
    await client.delete_embedding(embedding)
    with pytest.raises(EmbeddingNotFound):
        await client.predict(embedding, [POINT])

    encoded_again = await client.predict(embedding, [POINT], image=PIXELS)
    by_id = await client.predict(embedding.id, [POINT], image=PIXELS)

    assert encoded_again.embedding.id == by_id.embedding.id == embedding.id
    assert (encoded_again.embedding.cached, by_id.embedding.cached) == (False, True)


@pytest.mark.parametrize("by", ["embedding", "id"])
async def test_reencoded_embedding_has_the_same_options(client: Client, by: str) -> None:
    file = encoded(PIXELS, orientation=6)
    embedding = await client.embed(file, orientation="ignore")
    await client.delete_embedding(embedding)

    if by == "embedding":
        prediction = await client.predict(embedding, [POINT], image=file)
    else:
        prediction = await client.predict(embedding.id, [POINT], image=file, orientation="ignore")

    assert prediction.embedding.id == embedding.id
    assert prediction.embedding.image_size == embedding.image_size == PIXELS.shape[:2]
    assert prediction.embedding.orientation == "ignore"


async def test_results_keep_the_orientation_of_the_embedding(client: Client) -> None:
    embedding = await client.embed(encoded(PIXELS, orientation=6), orientation="ignore")

    prediction = await client.predict(embedding, [POINT])
    result = await client.automask_all(embedding, points_per_side=2)

    assert prediction.embedding.orientation == result.summary.embedding.orientation == "ignore"


async def test_predict_does_not_send_the_image_after_other_errors(client: Client) -> None:
    embedding = await client.embed(PIXELS)

    with pytest.raises(InvalidArgument):
        await client.predict(embedding, [Prompt(points=[(-5, 0)])], image=PIXELS)


async def test_path_and_bytes_give_the_same_embedding(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(encoded(PIXELS))

    data = path.read_bytes()
    images = (path, str(path), data, bytearray(data), memoryview(data))
    embeddings = [await client.embed(image) for image in images]

    assert len({embedding.id for embedding in embeddings}) == 1
    assert [embedding.cached for embedding in embeddings] == [False, True, True, True, True]


async def test_arrays_are_rgb_or_grey(client: Client) -> None:
    colour = await client.embed(PIXELS)
    grey = await client.embed(PIXELS[:, :, 0])

    assert colour.image_size == grey.image_size == (48, 64)
    assert colour.id != grey.id


@pytest.mark.parametrize(
    "array",
    [PIXELS.astype(np.float32), PIXELS[:, :, :2], PIXELS[0, 0], PIXELS[None]],
    ids=["not uint8", "two channels", "one axis", "four axes"],
)
async def test_invalid_arrays_raise_value_error(client: Client, array: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"uint8 \[h, w, 3\] RGB or \[h, w\] grey"):
        await client.embed(array)


async def test_orientation_is_applied_unless_ignored(client: Client) -> None:
    file = encoded(PIXELS, orientation=6)

    rotated = await client.embed(file)
    unrotated = await client.embed(file, orientation="ignore")

    assert (rotated.image_size, unrotated.image_size) == ((64, 48), (48, 64))


async def test_missing_file_raises_os_error(client: Client) -> None:
    with pytest.raises(FileNotFoundError):
        await client.embed("no such file")


async def test_large_file_with_a_cached_embedding_is_not_sent_again(
    service: tuple[Running, SegmentationServiceStub], client: Client
) -> None:
    file = encoded(noise(1))

    first = await client.embed(file)
    by_image = await client.predict(file, [POINT])

    assert len(file) > 256 << 10
    assert not first.cached
    assert (by_image.embedding.id, by_image.embedding.cached) == (first.id, True)
    registry, name = service[0].metrics.registry, "grpc_server_handled_total"
    assert total(registry, name, grpc_method="Embed", grpc_code="NOT_FOUND") == 1
    assert total(registry, name, grpc_method="Embed", grpc_code="OK") == 1


async def test_predict_returns_masks_per_prompt_in_order(client: Client) -> None:
    embedding = await client.embed(PIXELS)
    prompts = [POINT, Prompt(box=(10, 10, 40, 40)), Prompt(points=[(5, 5, 1), (60, 40, 0)])]

    prediction = await client.predict(embedding, prompts)

    assert [len(masks) for masks in prediction.results] == [1, 1, 1]
    assert prediction.results[0][0].array[24, 32]
    assert prediction.results[1][0].array[25, 25]
    assert not prediction.results[2][0].array[40, 60]
    assert prediction.embedding.id == embedding.id
    assert "decode" in prediction.timings_ms


@pytest.mark.parametrize(
    ("multimask", "tokens"), [("auto", [1]), ("all", [1, 2, 3]), ("single", [0])]
)
async def test_multimask_selects_the_tokens(
    client: Client, multimask: str, tokens: list[int]
) -> None:
    prediction = await client.predict(PIXELS, [POINT], multimask=multimask)  # type: ignore[arg-type]

    assert [mask.token_index for mask in prediction.results[0]] == tokens


async def test_mask_array_run_lengths_area_and_box_agree(client: Client) -> None:
    prediction = await client.predict(PIXELS, [Prompt(box=(10, 10, 40, 30))])

    mask = prediction.results[0][0]
    rows, columns = np.nonzero(mask.array)
    assert mask.array.shape == (48, 64)
    assert mask.array.dtype == np.bool_
    assert mask.area == mask.array.sum() == coco.area(mask.rle)
    assert mask.bbox == (columns.min(), rows.min(), np.ptp(columns), np.ptp(rows))


async def test_logits_are_returned_on_request_and_usable_as_mask_prompt(client: Client) -> None:
    embedding = await client.embed(PIXELS)

    first = await client.predict(embedding, [POINT], low_res_logits=True)
    logits = first.results[0][0].low_res_logits
    assert logits is not None
    again = await client.predict(embedding, [Prompt(mask=logits)], multimask="single")

    assert (logits.shape, logits.dtype) == ((256, 256), np.float32)
    assert again.results[0][0].low_res_logits is None
    assert again.results[0][0].area > first.results[0][0].area


async def test_binary_mask_is_usable_as_mask_prompt(client: Client) -> None:
    inside = np.zeros((48, 64), dtype=bool)
    inside[10:30, 20:50] = True

    prediction = await client.predict(PIXELS, [Prompt(mask=inside)], multimask="single")

    assert prediction.results[0][0].array[inside].mean() > 0.9


async def test_automask_yields_progress_then_records_then_one_summary(client: Client) -> None:
    embedding = await client.embed(PIXELS)

    kinds = [type(event) async for event in client.automask(embedding, points_per_side=4)]

    assert kinds[0] is Progress
    assert kinds[-1] is Summary
    assert kinds == sorted(kinds, key=[Progress, AutoMaskRecord, Summary].index)
    assert kinds.count(Summary) == 1


async def test_automask_all_collects_the_records(client: Client) -> None:
    seen: list[Progress] = []

    result = await client.automask_all(PIXELS, points_per_side=4, on_progress=seen.append)

    assert len(result.records) == result.summary.mask_count > 0
    assert result.summary.filters[0].name == "pred_iou"
    assert result.records[0].mask.array.shape == (48, 64)
    assert result.records[0].crop_box == (0, 0, 64, 48)
    assert seen[-1].evaluated_points == seen[-1].total_points == 16


async def test_masks_to_exclude_have_any_form(client: Client) -> None:
    everything = await client.automask_all(PIXELS, points_per_side=3)
    in_polygons = await client.automask_all(PIXELS, points_per_side=3, mask_format="polygons")
    masks = [record.mask for record in everything.records]
    forms: list[Sequence[MaskLike]] = [
        masks,
        [mask.rle for mask in masks],
        [coco.encode(np.asfortranarray(mask.decode(), np.uint8)) for mask in masks],
        [mask.decode() for mask in masks],
        [record.mask for record in in_polygons.records],
    ]

    rests = [await client.automask_all(PIXELS, points_per_side=3, exclude=form) for form in forms]

    assert masks
    first, *others = ([record.mask.counts for record in rest.records] for rest in rests)
    assert not set(first) & {mask.counts for mask in masks}
    assert others == [first] * 4


async def test_automask_options_reach_the_server(client: Client) -> None:
    grid = np.array([[0.5, 0.5], [0.1, 0.9]])

    one = await client.automask_all(PIXELS, points_per_side=4, max_masks=1)
    points = [event async for event in client.automask(PIXELS, point_grids=[grid])]
    left = await client.automask_all(
        PIXELS, points_per_side=4, region_of_interest=(0, 0, 32, 48), stability_score_thresh=0
    )

    assert len(one.records) == 1
    assert isinstance(points[0], Progress)
    assert points[0].total_points == 2
    assert all(record.point[0] <= 32 for record in left.records)


async def test_closing_a_search_cancels_it_on_the_server() -> None:
    engine = FakeEngine()
    async with (
        serving(engine=engine) as (service, _),
        Client(service.address) as client,
        aclosing(client.automask(PIXELS, points_per_side=64)) as events,
    ):
        await anext(events)

    assert engine.counts["decode_begun"] < 64 * 64 / 16


async def test_delete_returns_whether_the_embedding_existed(client: Client) -> None:
    embedding = await client.embed(PIXELS)

    deleted = [await client.delete_embedding(embedding) for _ in range(2)]

    assert deleted == [True, False]


async def test_models_returns_models_limits_and_defaults(client: Client) -> None:
    catalog = await client.models()

    model = catalog.models[0]
    assert (model.name, model.default, model.image_side) == ("fake", True, 1024)
    assert {"points", "boxes", "masks", "automask"} <= set(model.capabilities)
    assert catalog.limits["max_prompts"] == 256
    assert catalog.automask_defaults["points_per_side"] == 32
    assert catalog.automask_defaults["crop_n_layers"] == 0


async def test_ready_uses_the_health_service(client: Client) -> None:
    assert await client.ready()


async def test_client_that_is_not_open_raises_runtime_error() -> None:
    client = Client("127.0.0.1:1")

    with pytest.raises(RuntimeError, match="async with"):
        await client.models()


async def test_logits_only_predictions_have_no_pixels(client: Client) -> None:
    embedding = await client.embed(PIXELS)
    full = await client.predict(embedding, [POINT], low_res_logits=True)
    logits_only = await client.predict(embedding, [POINT], low_res_logits="only")
    (mask,) = logits_only.results[0]

    assert np.array_equal(mask.low_res_logits, full.results[0][0].low_res_logits)
    assert mask.predicted_iou == full.results[0][0].predicted_iou
    with pytest.raises(ValueError, match="no pixels"):
        _ = mask.array


async def test_calls_are_balanced_over_all_addresses() -> None:
    async with (
        serving() as (one, _),
        serving() as (other, _),
        Client(f"ipv4:{one.address},{other.address}") as client,
    ):

        async def both_have_served() -> bool:
            await client.models()
            counts = [
                total(each.metrics.registry, "grpc_server_handled_total") for each in (one, other)
            ]
            return min(counts) > 5

        # The second connection may take a moment.
        await until(both_have_served)
