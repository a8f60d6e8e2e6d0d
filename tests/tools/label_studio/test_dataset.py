"""A data set goes to a real Label Studio as tasks, is corrected there, and comes back."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from samserve.core import run_lengths
from samserve.datasets.formats import WriteOptions
from samserve.datasets.label_studio.reading import read
from samserve.datasets.label_studio.writing import write_folder
from samserve.datasets.types import Annotation, Category, DataSet, ImageRecord, Origin
from samserve.types import Size

from harness.label_studio import LabelStudioServer
from tests.datasets.tool_records import mask_of
from tests.tools.label_studio.conftest import COINS_SIZE
from tests.tools.label_studio.labeling import Labeling

pytestmark = [pytest.mark.long, pytest.mark.asyncio(loop_scope="module")]

SIZE = Size(*COINS_SIZE)
NAME = "coins.png"
CENTRES = ((44, 124), (102, 125), (154, 127))
BOX = (76, 170, 128, 222)


def disc(x: int, y: int) -> np.ndarray:
    rows, columns = np.mgrid[: SIZE.height, : SIZE.width]
    found: np.ndarray = np.hypot(rows - y, columns - x) < 20
    return found


async def test_predictions_come_back_accepted_corrected_and_added(
    server: LabelStudioServer, labeling: Labeling, coins: bytes, tmp_path: Path
) -> None:
    # The images of a project are where its tasks say: here, where another one has them.
    storage = server.create_project("Images", "<View></View>")
    server.upload(storage, {NAME: coins})
    url: str = next(iter(server.tasks(storage)[0]["data"].values()))
    annotations = tuple(
        Annotation(run_lengths.encode(disc(*each)), id=number, category_id=1, predicted_iou=0.9)
        for number, each in enumerate(CENTRES, 1)
    )
    data = DataSet(
        [ImageRecord(NAME, SIZE, annotations)], (Category(1, "coin"), Category(2, "button"))
    )
    options = WriteOptions(image_url_prefix=url.removesuffix(NAME))
    write_folder(data, tmp_path / "out", options)
    config = (tmp_path / "out" / "label_config.xml").read_text()
    tasks = (tmp_path / "out" / "tasks.json").read_bytes()

    project = server.create_project("Data set", config)
    server.call(
        "POST", f"/api/projects/{project}/import", files={"tasks.json": ("tasks.json", tasks)}
    )
    (task,) = server.tasks(project)
    await labeling.show(project, task["id"])
    await labeling.relabel_first("brush", "button")
    await labeling.draw_box("box", "coin", *BOX)
    await labeling.save()

    path = tmp_path / "export.json"
    path.write_bytes(content(server.export(project, "JSON")))
    (image,) = read(path).images
    exported = read(path)
    names = {each.id: each.name for each in exported.categories}
    assert (image.file_name, image.size) == (NAME, SIZE)
    made = {each.id: each for each in image.annotations}
    box = made.pop(None)
    assert (box.origin, names[box.category_id or 0]) == (Origin.ADDED, "coin")
    assert box.box == pytest.approx((BOX[0], BOX[1], 52, 52), abs=1.5)
    assert sorted(each.origin.value for each in made.values() if each.origin) == [
        *("accepted", "accepted", "corrected"),
    ]
    for number, centre in enumerate(CENTRES, 1):
        own = made[number]
        corrected = own.origin is Origin.CORRECTED
        assert names[own.category_id or 0] == ("button" if corrected else "coin")
        assert own.predicted_iou == 0.9
        np.testing.assert_array_equal(mask_of(own, SIZE), disc(*centre))

    # JSON-MIN has the same, without origins.
    path = tmp_path / "min.json"
    path.write_bytes(content(server.export(project, "JSON_MIN")))
    (short,) = read(path).images
    assert (short.file_name, short.size, len(short.annotations)) == (NAME, SIZE, 4)


def content(exported: bytes) -> bytes:
    """Return the JSON of an export, which may be in an archive."""
    if not exported.startswith(b"PK"):
        json.loads(exported)
        return exported
    archive = zipfile.ZipFile(io.BytesIO(exported))
    (name,) = [each for each in archive.namelist() if each.endswith(".json")]
    return archive.read(name)
