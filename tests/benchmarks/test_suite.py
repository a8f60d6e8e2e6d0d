"""Every part of the suite runs, and both sides find the same masks."""

from __future__ import annotations

import re

import pytest

from benchmarks import document, results
from benchmarks.__main__ import measure
from benchmarks.parts import Plan
from benchmarks.parts import families as families_part
from benchmarks.results import Result

pytestmark = pytest.mark.slow

OTHERS = ("embed", "clicks", "large", "memory", "soak", "gateway", "http", "bridge")


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return Plan(tmp_path_factory.mktemp("benchmarks"), threads=1, minutes=0.02, toy=True)


def measured(name: str, plan: Plan) -> Result:
    """Run a part, and return what its file would have."""
    (result,) = results.loads(results.dumps([measure(name, plan)]))
    assert result.part == name
    assert document.tables(result)
    costs = [cost for each in result.comparisons for cost in (*each.ours, *each.theirs)]
    assert all(cost.wall_s > 0 and cost.cpu_s > 0 for cost in costs)
    return result


@pytest.mark.parametrize("name", OTHERS)
def test_part_runs(name: str, plan: Plan) -> None:
    result = measured(name, plan)

    assert result.comparisons or result.figures
    assert all(each.values for each in result.figures)
    assert all(each.values_ms for each in result.latencies)


def test_every_way_to_predict_returns_the_same_masks(plan: Plan) -> None:
    result = measured("predict", plan)

    least = [float(each.agreement.rpartition(" ")[2]) for each in result.comparisons]
    assert len(least) == 4
    assert min(least) > 0.98


def test_browser_decodes_the_masks_of_the_server(plan: Plan) -> None:
    result = measured("web", plan)

    least = [float(each.agreement.rpartition(" ")[2]) for each in result.comparisons]
    assert len(least) == 2
    assert min(least) >= 0.999
    assert all(each.values for each in result.figures)


def test_annotate_finds_the_masks_of_the_loop(plan: Plan) -> None:
    (comparison,) = measured("annotate", plan).comparisons

    assert re.fullmatch(
        r"[1-9]\d* masks, 0 images with other masks, least part of equal pixels 1.000000",
        comparison.agreement,
    )


def test_automask_finds_the_masks_of_the_plain_graph(plan: Plan) -> None:
    result = measured("automask", plan)

    found = [each for each in result.comparisons if "ONNX" in each.baseline]
    assert len(found) == 3
    for each in found:
        ours, theirs = re.findall(r"^(\d+) and (\d+) masks, ", each.agreement)[0]
        assert ours == theirs != "0"
        # The arithmetic of the decoders differs in its last bits, which may change a pixel.
        least = each.agreement.partition("least IoU ")[2]
        assert float(least or 1) > 0.99


@pytest.mark.parametrize(
    "name",
    [
        "sam2.1_hiera_tiny",
        pytest.param("edgetam", marks=pytest.mark.long),
        pytest.param("mobile_sam", marks=pytest.mark.long),
    ],
)
def test_families_are_compared_with_their_libraries(name: str, plan: Plan) -> None:
    result = families_part.run(plan, [name])

    found = {each.operation.rpartition(": ")[2]: each.agreement for each in result.comparisons}
    assert tuple(found) == ("Embed, 160x107", "Predict, 160x107", "AutoMask, 160x107")
    assert float(found["Predict, 160x107"].removeprefix("least IoU ")) > 0.98
    ours, theirs = (int(count) for count in re.findall(r"→(\d+) ", found["AutoMask, 160x107"]))
    assert ours >= 3
    assert abs(ours - theirs) <= max(1, theirs * 0.02)
    assert all(value > 0 for each in result.figures for value in each.values)
