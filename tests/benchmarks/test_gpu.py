"""The benchmark of GPUs runs at toy size on a CPU, and its variants agree."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from samserve.export.families.sam1_names import original_names
from samserve.export.families.sam2_sizes import PUBLISHED, library_config

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import automask, networks, rows, suite
from benchmarks.gpu.clock import Clock, OutOfTime
from benchmarks.gpu.device import Device, Timing


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Any:
    output = tmp_path_factory.mktemp("gpu") / "results" / "gpu.json"
    assert command.main(["--toy", "--output", str(output)]) == 0
    return json.loads(output.read_text())


@pytest.mark.slow
def test_all_parts_run_at_toy_size(result: Any) -> None:
    assert result["toy"]
    assert result["left_out"] == []
    assert {row["part"] for row in result["rows"]} == {"decoder", "encoder", "automask"}
    assert all(row["timing"]["median"] > 0 and row["tflop"] > 0 for row in result["rows"])
    assert set(result["operations_per_second"]) == set(suite.TYPES)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "limit"), [("fp32", 1e-5), ("bf16", 0.05), ("fp16", 0.05)])
def test_variants_agree_with_the_plain_one_in_float32(
    result: Any, dtype: str, limit: float
) -> None:
    found = [row for row in result["rows"] if row["dtype"] == dtype and row["part"] != "automask"]
    assert {row["variant"] for row in found} >= {"plain", "rewritten", "fused attention"}
    assert all(row["error"] < limit for row in found)
    assert all(row["signs"] > 0.98 for row in found if row["part"] == "decoder")


@pytest.mark.slow
def test_both_searches_find_the_same_masks_in_float32(result: Any) -> None:
    notes = [
        row["note"]
        for row in result["rows"]
        if row["part"] == "automask" and row["dtype"] == "fp32"
    ]
    assert len(notes) == 2
    assert notes[0] == notes[1]
    assert notes[0].endswith("100.0% in common")


def test_no_part_begins_that_would_exceed_the_limit() -> None:
    clock = Clock(limit=10.0)
    assert clock.allows(5.0)
    assert not clock.allows(11.0)
    report = suite.measure(Clock(limit=-1.0), toy=True, device="cpu")
    assert report.rows == []
    assert len(report.left_out) == 6
    assert all(each in report.to_markdown() for each in report.left_out)


def test_a_part_that_exceeds_the_limit_is_interrupted() -> None:
    def run_forever() -> None:
        with Clock(limit=-100.0).interrupting():
            while True:
                pass

    with pytest.raises(OutOfTime):
        run_forever()


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*, toy: bool) -> list[suite.Part]:
        raise ImportError("no module named transformers")

    monkeypatch.setattr(suite, "parts", fail)
    report = suite.measure(Clock(100.0), toy=True, device="cpu")
    assert report.left_out == ["all networks: no module named transformers"]


def test_a_part_that_fails_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_device: Device) -> list[rows.Row]:
        raise RuntimeError("out of memory\nmore")

    def pass_(_device: Device) -> list[rows.Row]:
        return [rows.Row("encoder", "toy", "plain", "fp32")]

    monkeypatch.setattr(
        suite, "parts", lambda toy: [suite.Part("a", 0, fail), suite.Part("b", 0, pass_)]
    )
    report = suite.measure(Clock(100.0), toy=True, device="cpu")
    assert report.left_out == ["a: RuntimeError: out of memory"]
    assert len(report.rows) == 1


def test_names_of_tensors_are_those_of_the_export() -> None:
    state = networks.sam("toy", "cpu").plain.state_dict()
    _, expected = original_names(state)
    found = networks.original(state)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("size", ["tiny", "small", "base_plus", "large"])
def test_sizes_of_sam_2_are_those_of_the_export(size: str) -> None:
    expected = library_config(PUBLISHED[f"hiera_{size}"]).vision_config
    assert networks.hiera_config(f"sam2.1_{size}").to_dict() == expected.to_dict()


@pytest.mark.parametrize(("variant", "tflop"), [("vit_b", 0.972), ("vit_l", 2.986)])
def test_operations_of_an_encoder_are_those_computed_from_its_shapes(
    variant: str, tflop: float
) -> None:
    with torch.device("meta"):
        encoder = networks.sam(variant, "meta").plain.vision_encoder
        images = torch.zeros(1, 3, 1024, 1024)
        assert rows.operations(lambda: encoder(images)) == pytest.approx(tflop, rel=0.01)


def test_bounds_are_the_larger_of_arithmetic_and_memory() -> None:
    device = Device("cpu", rates={"fp32": 1e12}, bandwidth=2.0**30)
    row = rows.Row("decoder", "sam", "plain", "fp32", 1, tflop=0.5, gib=2.0)
    row.timing = Timing(4000.0, 4000.0, 4000.0, 3, None)
    assert row.shares(device) == {
        "achieved_tflops": 0.125,
        "arithmetic_bound_ms": 500.0,
        "memory_bound_ms": 2000.0,
        "share_of_bound": 0.5,
    }


def test_boxes_and_suppression() -> None:
    masks = torch.zeros(3, 8, 10, dtype=torch.bool)
    masks[0, 1:5, 2:9] = masks[1, 1:5, 2:8] = masks[2, 6:8, 0:2] = True
    boxes = automask.boxes_of(masks)
    assert boxes.tolist() == [[2, 1, 8, 4], [2, 1, 7, 4], [0, 6, 1, 7]]
    kept = automask.suppress(boxes, torch.tensor([0.5, 0.9, 0.1]))
    assert kept.tolist() == [1, 2]
