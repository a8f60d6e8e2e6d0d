"""Models whose weights do not fit in one file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from samserve.export import onnx_file
from samserve.export.onnx_file import save
from samserve.export.stamp import without_stamp
from samserve.export.triton_repository import Description, write_bundle
from samserve.models.digest import bundle_digest, graph_digests
from samserve.models.repository import discover

from tests.export.config_check import contents, unstamped
from tests.export.conftest import Pair, session, small_only
from tests.oracle.onnx_sam import without_threshold

pytestmark = small_only

SMALL = 1_000_000


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    found = [tmp_path / name for name in ("one", "two")]
    for folder in found:
        folder.mkdir()
    return found


def test_a_model_with_external_weights_gives_the_same_results(
    pair: Pair, folders: list[Path]
) -> None:
    path = save(onnx.load(pair.decoder_path), folders[0], max_bytes=SMALL)
    random = np.random.default_rng(0)
    feeds = {
        "image_embedding": random.normal(size=(1, 256, pair.grid, pair.grid)).astype("f2"),
        "point_coords": np.full((1, 1, 2, 2), 100, np.float32),
        "point_labels": np.array([[[1, -1]]], np.float32),
        "mask_input": np.zeros((1, 0, 4 * pair.grid, 4 * pair.grid), np.float32),
        **without_threshold(pair.decoder),
    }

    outputs = [session(model).run(None, feeds) for model in (path, pair.decoder_path)]

    assert sorted(contents(folders[0])) == ["model.onnx", "model.onnx.data"]
    assert path.stat().st_size < SMALL
    assert path.with_name("model.onnx.data").stat().st_mode == path.stat().st_mode
    assert path.with_name("model.onnx.data").stat().st_size > 4 * SMALL
    for split, single in zip(*outputs, strict=True):
        np.testing.assert_array_equal(split, single)


def test_the_same_model_gives_the_same_files(pair: Pair, folders: list[Path]) -> None:
    for folder in folders:
        save(onnx.load(pair.decoder_path), folder, max_bytes=SMALL)

    assert contents(folders[0]) == contents(folders[1])


def test_a_small_model_is_a_single_file(pair: Pair, folders: list[Path]) -> None:
    path = save(without_stamp(onnx.load(pair.decoder_path)), folders[0])

    assert list(contents(folders[0])) == ["model.onnx"]
    assert path.read_bytes() == unstamped(pair.decoder_path)


def test_the_digest_covers_all_files(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(save, "__kwdefaults__", {"max_bytes": SMALL})
    models = {"encoder": onnx.load(pair.encoder_path), "decoder": onnx.load(pair.decoder_path)}
    write_bundle(tmp_path, "split", models, Description("split"))
    (files,) = discover(tmp_path)
    data = files.graphs["decoder"].with_name(onnx_file.DATA_FILE)

    assert files.info.digest == bundle_digest(graph_digests(files.graphs))
    data.write_bytes(data.read_bytes()[:-1] + b"\0")
    assert files.info.digest != bundle_digest(graph_digests(files.graphs))
