"""Invalid arguments raise at once, with the name of the argument and the valid forms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from samserve.client import Client, Mask, Prompt, SyncClient

from tests.client.conftest import PIXELS
from tests.support.cases import check_all

POINT = Prompt(points=[(1, 1)])
TARGET = "127.0.0.1:1"
"""No server listens here: a call that is sent raises another error."""

Call = Callable[[SyncClient], Any]
Case = tuple[Call, str]


def predict(*prompts: Any, **options: Any) -> Call:
    return lambda client: client.predict("id", [*prompts], **options)


def embed(image: Any = PIXELS, **options: Any) -> Call:
    return lambda client: client.embed(image, **options)


def search(**options: Any) -> Call:
    return lambda client: client.automask_all("id", **options)


def delete(embedding: Any) -> Call:
    return lambda client: client.delete_embedding(embedding)


RUN_LENGTHS = {"size": [4, 4], "counts": "`0"}
NO_PIXELS = Mask((0, 0), "", 0, 0.9, 0.9, 5, (0.0, 0.0, 1.0, 1.0))
# As many values as a square array.
OBLONG = np.zeros((128, 512), np.float32)

VALUE_ERRORS: dict[str, Case] = {
    "path for an id": (
        lambda client: client.predict("photo.jpg", [POINT]),
        r"'photo.jpg' is not an embedding id.*pass an image file as pathlib.Path",
    ),
    "empty id": (lambda client: client.predict("", [POINT]), "Embedding.id"),
    "path for a search": (lambda client: list(client.automask("photo.jpg")), "pathlib.Path"),
    "path to delete": (delete("a/b.png"), "not an embedding id"),
    "URL": (embed("https://a/b.jpg"), "download the image"),
    "zero byte": (embed("a\0b"), "it has a zero byte"),
    "bytes of a name": (embed(model="caf\udce9"), "model must be Uni"),
    "orientation": (embed(b"", orientation="none"), "'exif' or 'ignore'"),
    "orientation of an id": (predict(POINT, orientation="none"), "'exif' or 'ignore'"),
    "multimask": (predict(POINT, multimask=["all"]), "'auto', 'all' or 'single'"),
    "HQ mode": (predict(POINT, hq_mode="on"), "'added', 'only', 'off' or None, got 'on'"),
    "HQ mode of a search": (search(hq_mode=["off"]), r"'off' or None, got \['off'\]"),
    "text switch": (search(use_m2m="yes"), "use_m2m must be True or False, got 'yes'"),
    "logits": (predict(POINT, low_res_logits="onyl"), "True, False or 'only', got 'onyl'"),
    "array": (predict(POINT, low_res_logits=np.zeros(3)), r"or 'only', got float64 \[3\]"),
    "flat points": (predict(Prompt(points=(1, 1))), r"prompts\[0\].points\[0\] must be"),
    "short point": (predict(Prompt(points=[(1, 1), (1,)])), r"points\[1\] must be \(x, y\)"),
    "text point": (predict(Prompt(points=[("a", 1)])), r"points\[0\] must be \(x, y\)"),
    "label": (predict(Prompt(points=[(1, 1, 2)])), r"points\[0\]: the label must be 1"),
    "short box": (predict(Prompt(box=(1, 1, 2))), r"prompts\[0\].box must be \(x0, y0"),
    "text box": (predict(Prompt(box="1,1,2,2")), r"box must be \(x0, y0, x1, y1\)"),
    "mask of bytes": (
        predict(Prompt(mask=np.zeros((4, 4), np.uint8))),
        r"prompts\[0\].mask must be bool .* got uint8 \[4, 4\]",
    ),
    "oblong logits": (predict(Prompt(mask=OBLONG)), r"must be bool .* got float32 \[128, 512\]"),
    "text option": (search(points_per_side="4"), "points_per_side must be an int"),
    "large option": (search(points_per_side=2**40), r"an integer below 2\*\*31"),
    "text threshold": (search(pred_iou_thresh="x"), "must be a number, got 'x'"),
    "flat grid": (
        search(point_grids=np.zeros((4, 2))),
        r"point_grids\[0\] must be float \[k, 2\], got float64 \[2\]",
    ),
    "excluded pixels": (
        search(exclude=[np.zeros((4, 4), bool), np.zeros((4, 4))]),
        r"exclude\[1\] must be bool \[h, w\] of the image's size, got float64 \[4, 4\]",
    ),
    "excluded run lengths": (
        search(exclude=[{"size": [4, 4], "counts": [3, 2, 11]}]),
        r"exclude\[0\] must be .* with compressed run lengths, got \{'counts': \[3, 2, 11",
    ),
    "excluded box": (search(exclude=[NO_PIXELS]), r"exclude\[0\]: this mask has no pixels"),
    "region": (search(region_of_interest=(1, 2, 3)), "region_of_interest must be"),
}
TYPE_ERRORS: dict[str, Case] = {
    "nothing to delete": (delete(None), "an embedding id must be a str"),
    "PIL image": (embed(Image.fromarray(PIXELS)), r"np.asarray converts most images\); got Image"),
    "model": (embed(model=3), "model must be a str"),
    "number for a request": (embed(request_id=5), "request_id must be a str"),
    "one prompt": (lambda client: client.predict("id", POINT), r"write \[prompt\]"),
    "no prompts": (lambda client: client.predict("id", None), "prompts must be a sequence"),
    "no Prompt": (predict(POINT, (1, 1)), r"prompts\[1\] must be a Prompt, got tuple"),
    "number for points": (
        predict(Prompt(points=5)),
        r"prompts\[0\].points must be a sequence, got 5",
    ),
    "mask as a list": (predict(Prompt(mask=[[True]])), r"mask must be a numpy array"),
    "number for grids": (search(point_grids=3), "point_grids must be a seq"),
    "one excluded mask": (search(exclude=RUN_LENGTHS), r"write \[mask\] for a single one"),
    "excluded text": (search(exclude=["mask"]), r"exclude\[0\] must be a Mask.* got str"),
    "unknown option": (search(points_per_sid=4), "known are .*points_per_side"),
}


@pytest.mark.parametrize(("kind", "cases"), [(ValueError, VALUE_ERRORS), (TypeError, TYPE_ERRORS)])
def test_invalid_arguments_of_calls(kind: type[Exception], cases: dict[str, Case]) -> None:
    def check(case: Case) -> None:
        call, text = case
        with pytest.raises(kind, match=text):
            call(client)

    with SyncClient(TARGET) as client:
        check_all(check, cases)


@pytest.mark.parametrize("kind", [Client, SyncClient])
def test_invalid_arguments_of_clients(kind: Any) -> None:
    cases: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
        "http": ({"target": "http://host:50051"}, ValueError, "write host:50051 instead"),
        "https": ({"target": "https://host:50051"}, ValueError, "write host:50051 instead"),
        "no number": ({"target": "host:port"}, ValueError, "the port must be a number"),
        "a path": ({"target": "host/path"}, ValueError, "neither a host name"),
        "no brackets": ({"target": "::1:50051"}, ValueError, r"\[::1\]:50051"),
        "no text": ({"target": None}, TypeError, "HOST:PORT"),
        "nothing": ({"target": ""}, ValueError, "expected HOST:PORT"),
        "no host": ({"target": ":50051"}, ValueError, "a host and a port"),
        "CA": ({"credentials": b"CA"}, TypeError, r"grpc.ssl_channel_credentials\(ca\)"),
        "timeout": ({"timeout_s": -1}, ValueError, "greater than 0"),
        "text timeout": ({"timeout_s": "3"}, ValueError, "greater than 0"),
        "token": ({"token": 5}, TypeError, "token must be a str"),
    }

    def check(case: tuple[dict[str, Any], type[Exception], str]) -> None:
        arguments, error, text = case
        with pytest.raises(error, match=text):
            kind(**{"target": TARGET, **arguments})

    check_all(check, cases)


def test_grpc_target_forms_are_accepted() -> None:
    for target in (
        *("[::1]:50051", "host", "[::1]"),
        "dns:///host:50051",
        "unix:/tmp/socket",
        "ipv4:1.2.3.4:5,1.2.3.5:5",
    ):
        Client(target)


@pytest.mark.parametrize("timeout_s", [float("inf"), 1e18])
async def test_very_long_timeouts_are_accepted(target: str, timeout_s: float) -> None:
    async with Client(target, timeout_s=timeout_s) as client:
        assert (await client.models()).models


async def test_orientation_other_than_the_embedding_s_raises(client: Client) -> None:
    embedding = await client.embed(PIXELS, orientation="ignore")

    with pytest.raises(ValueError, match="the embedding was computed with 'ignore'"):
        await client.predict(embedding, [POINT], orientation="exif")
    with pytest.raises(ValueError, match="the embedding was computed with 'ignore'"):
        await client.automask_all(embedding, orientation="exif")
    prediction = await client.predict(embedding, [POINT], orientation="ignore")
    assert prediction.embedding.orientation == "ignore"


async def test_path_is_an_image_and_str_is_an_id(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    Image.fromarray(PIXELS).save(path)

    by_path = await client.predict(path, [POINT])
    by_id = await client.predict(by_path.embedding.id, [POINT])

    assert by_id.embedding.cached
