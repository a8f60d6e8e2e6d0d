"""Arguments that no request can say are refused at once, by name and with what to give instead."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from samserve.client import Client, Prompt, SyncClient

from tests.client.conftest import PIXELS
from tests.support.together import check_all

CLICK = Prompt(points=[(1, 1)])
TARGET = "127.0.0.1:1"
"""Where no server is: whoever asks it fails otherwise."""

Case = tuple[Callable[[SyncClient], Any], type[Exception], str]


def with_prompt(**parts: Any) -> Callable[[SyncClient], Any]:
    return lambda client: client.predict("id", [Prompt(**parts)])


def with_options(**options: Any) -> Callable[[SyncClient], Any]:
    return lambda client: client.automask_all("id", **options)


CASES: dict[str, Case] = {
    "path for an id": (
        lambda client: client.predict("photo.jpg", [CLICK]),
        *(ValueError, r"'photo.jpg' is not an embedding id.*give an image file as pathlib.Path"),
    ),
    "empty id": (lambda client: client.predict("", [CLICK]), ValueError, "Embedding.id"),
    "path to delete": (
        *(lambda client: client.delete_embedding("a/b.png"), ValueError, "not an embedding id"),
    ),
    "nothing to delete": (
        *(lambda client: client.delete_embedding(None), TypeError, "an embedding id is a str"),
    ),
    "path for a search": (
        *(lambda client: list(client.automask("photo.jpg")), ValueError, "pathlib.Path"),
    ),
    "PIL image": (
        lambda client: client.embed(Image.fromarray(PIXELS)),
        *(TypeError, "np.asarray makes of most images; got Image"),
    ),
    "URL": (lambda client: client.embed("https://a/b.jpg"), ValueError, "download the image"),
    "model": (lambda client: client.embed(PIXELS, model=3), TypeError, "model must be a str"),
    "one prompt": (*(lambda client: client.predict("id", CLICK), TypeError, r"write \[prompt\]"),),
    "no prompts": (
        *(lambda client: client.predict("id", None), TypeError, "prompts must be a sequence"),
    ),
    "a number for points": (
        *(with_prompt(points=5), TypeError, r"prompts\[0\].points must be a sequence, got 5"),
    ),
    "a number for grids": (with_options(point_grids=3), TypeError, "point_grids must be a seq"),
    "bytes of a name": (
        *(lambda client: client.embed(PIXELS, model="caf\udce9"), ValueError, "model must be Uni"),
    ),
    "zero byte": (lambda client: client.embed("a\0b"), ValueError, "it has a zero byte"),
    "number for a request": (
        *(lambda client: client.embed(PIXELS, request_id=5), TypeError, "request_id must be a str"),
    ),
    "array for a word": (
        lambda client: client.predict("id", [CLICK], low_res_logits=np.zeros(3)),
        *(ValueError, r"True, False or 'only', got float64 \[3\]"),
    ),
    "orientation of an id": (
        lambda client: client.predict("id", [CLICK], orientation="none"),
        *(ValueError, "'exif' or 'ignore'"),
    ),
    "no Prompt": (
        lambda client: client.predict("id", [CLICK, (1, 1)]),
        *(TypeError, r"prompts\[1\] must be a Prompt, got tuple"),
    ),
    "flat points": (with_prompt(points=(1, 1)), ValueError, r"prompts\[0\].points\[0\] must be"),
    "short point": (
        with_prompt(points=[(1, 1), (1,)]),
        ValueError,
        r"points\[1\] must be \(x, y\)",
    ),
    "text point": (with_prompt(points=[("a", 1)]), ValueError, r"points\[0\] must be \(x, y\)"),
    "label": (with_prompt(points=[(1, 1, 2)]), ValueError, r"points\[0\]: the label must be 1"),
    "short box": (with_prompt(box=(1, 1, 2)), ValueError, r"prompts\[0\].box must be \(x0, y0"),
    "text box": (with_prompt(box="1,1,2,2"), ValueError, r"box must be \(x0, y0, x1, y1\)"),
    "mask as a list": (with_prompt(mask=[[True]]), TypeError, r"mask must be a numpy array"),
    "mask of bytes": (
        with_prompt(mask=np.zeros((4, 4), np.uint8)),
        *(ValueError, r"prompts\[0\].mask must be bool .* got uint8 \[4, 4\]"),
    ),
    "logits with sides that differ": (
        # As many values as a square has.
        with_prompt(mask=np.zeros((128, 512), np.float32)),
        *(ValueError, r"mask must be bool .* got float32 \[128, 512\]"),
    ),
    "multimask": (
        lambda client: client.predict("id", [CLICK], multimask=["all"]),
        *(ValueError, "'auto', 'all' or 'single'"),
    ),
    "logits": (
        lambda client: client.predict("id", [CLICK], low_res_logits="onyl"),
        *(ValueError, "True, False or 'only', got 'onyl'"),
    ),
    "orientation": (
        lambda client: client.embed(b"", orientation="none"),
        *(ValueError, "'exif' or 'ignore'"),
    ),
    "unknown option": (with_options(points_per_sid=4), TypeError, "there are .*points_per_side"),
    "text option": (
        with_options(points_per_side="4"),
        ValueError,
        "points_per_side must be an int",
    ),
    "large option": (with_options(points_per_side=2**40), ValueError, r"an integer below 2\*\*31"),
    "text threshold": (with_options(pred_iou_thresh="x"), ValueError, "must be a number, got 'x'"),
    "flat grid": (
        with_options(point_grids=np.zeros((4, 2))),
        *(ValueError, r"point_grids\[0\] must be float \[k, 2\], got float64 \[2\]"),
    ),
    "region": (
        with_options(region_of_interest=(1, 2, 3)),
        ValueError,
        "region_of_interest must be",
    ),
}


def test_arguments_of_calls() -> None:
    def check(case: Case) -> None:
        call, kind, text = case
        with pytest.raises(kind, match=text):
            call(client)

    with SyncClient(TARGET) as client:
        check_all(check, CASES)


@pytest.mark.parametrize("kind", [Client, SyncClient])
def test_arguments_of_clients(kind: Any) -> None:
    cases: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
        "http": ({"target": "http://host:50051"}, ValueError, "write host:50051 instead"),
        "https": ({"target": "https://host:50051"}, ValueError, "write host:50051 instead"),
        "no number": ({"target": "host:port"}, ValueError, "the port must be a number"),
        "a path": ({"target": "host/path"}, ValueError, "neither the name of a host"),
        "no brackets": ({"target": "::1:50051"}, ValueError, r"\[::1\]:50051"),
        "no text": ({"target": None}, TypeError, "HOST:PORT"),
        "nothing": ({"target": ""}, ValueError, "expected HOST:PORT"),
        "no host": ({"target": ":50051"}, ValueError, "a host and a port"),
        "CA": ({"credentials": b"CA"}, TypeError, r"grpc.ssl_channel_credentials\(ca\)"),
        "timeout": ({"timeout_s": -1}, ValueError, "over 0 seconds"),
        "text timeout": ({"timeout_s": "3"}, ValueError, "over 0 seconds"),
        "token": ({"token": 5}, TypeError, "token must be a str"),
    }

    def check(case: tuple[dict[str, Any], type[Exception], str]) -> None:
        arguments, error, text = case
        with pytest.raises(error, match=text):
            kind(**{"target": TARGET, **arguments})

    check_all(check, cases)


def test_targets_that_grpc_resolves_are_taken() -> None:
    for target in (
        *("[::1]:50051", "host", "[::1]"),
        "dns:///host:50051",
        "unix:/tmp/socket",
        "ipv4:1.2.3.4:5,1.2.3.5:5",
    ):
        Client(target)


@pytest.mark.parametrize("timeout_s", [float("inf"), 1e18])
async def test_a_timeout_may_be_as_long_as_it_likes(target: str, timeout_s: float) -> None:
    async with Client(target, timeout_s=timeout_s) as client:
        assert (await client.models()).models


async def test_an_embedding_is_not_used_in_another_frame(client: Client) -> None:
    embedding = await client.embed(PIXELS, orientation="ignore")

    with pytest.raises(ValueError, match="the embedding was made with 'ignore'"):
        await client.predict(embedding, [CLICK], orientation="exif")
    with pytest.raises(ValueError, match="the embedding was made with 'ignore'"):
        await client.automask_all(embedding, orientation="exif")
    answer = await client.predict(embedding, [CLICK], orientation="ignore")
    assert answer.embedding.orientation == "ignore"


async def test_a_path_is_an_image_and_a_text_an_id(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    Image.fromarray(PIXELS).save(path)

    answer = await client.predict(path, [CLICK])
    again = await client.predict(answer.embedding.id, [CLICK])

    assert again.embedding.cached
