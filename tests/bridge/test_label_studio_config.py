"""Label configs, and prompts from the regions of a click."""

from __future__ import annotations

from typing import Any

import pytest
from samserve.bridge.tools.label_studio.prompts import Selection, regions, selections
from samserve.client import Prompt
from samserve.datasets.label_studio.label_config import MAX_CONFIG_CHARS, LabelConfig
from samserve.errors import InvalidRequest
from samserve.types import Size

from tests.tools.label_studio.projects import CONFIG, box, point

SIZE = Size(200, 400)


def parse(inside: str) -> LabelConfig:
    return LabelConfig.parse(f'<View><Image name="image" value="$image"/>{inside}</View>')


def marked(*found: dict[str, Any]) -> list[Selection]:
    return selections(regions({"result": list(found)}))


def prompts(*found: dict[str, Any]) -> list[Prompt]:
    return [each.prompt(SIZE) for each in marked(*found)]


def test_mask_goes_to_the_control_that_has_the_label() -> None:
    config = LabelConfig.parse(CONFIG)

    assert config.image_of("") == ("image", "image")
    brush, polygon = config.output_for("image", "Coin"), config.output_for("image", "Outline")
    assert (brush.name, brush.kind, brush.labels) == ("brush", "brushlabels", ("Coin",))
    assert (polygon.name, polygon.kind) == ("polygon", "polygonlabels")
    assert config.output_for("image", "") is config.outputs("image")[0]
    with pytest.raises(InvalidRequest, match="with the label 'Other'"):
        config.output_for("image", "Other")


def test_names_of_tags_and_attributes_have_any_case() -> None:
    config = parse('<brushLABELS NAME="b" TONAME="image"><LABEL VALUE="x"/></brushLABELS>')

    assert config.output_for("image", "x").name == "b"


def test_alias_replaces_the_value_of_a_label() -> None:
    config = parse(
        '<BrushLabels name="b" toName="image"><Label value="Dog" alias="d"/></BrushLabels>'
    )

    assert config.outputs("image")[0].labels == ("d",)


def test_labels_inside_other_tags_belong_to_the_control() -> None:
    config = parse(
        '<BrushLabels name="b" toName="image"><View><Label value="x"/></View></BrushLabels>'
    )

    assert config.outputs("image")[0].labels == ("x",)


def test_labels_of_the_data_accept_any_label() -> None:
    config = parse('<BrushLabels name="b" toName="image" value="$labels"/>')

    assert config.output_for("image", "anything").name == "b"


def test_attributes_choose_model_tolerance_and_skipped_controls() -> None:
    config = parse(
        '<BrushLabels name="b" toName="image" model_skip="true"><Label value="x"/></BrushLabels>'
        '<PolygonLabels name="p" toName="image" samserve_model="big" samserve_tolerance="2.5">'
        '<Label value="x"/></PolygonLabels>'
    )

    control = config.output_for("image", "x")

    assert (control.name, control.model, control.tolerance) == ("p", "big", 2.5)


@pytest.mark.parametrize("tolerance", ["-1", "x", "nan", "1001"])
def test_tolerance_that_is_no_number_is_refused(tolerance: str) -> None:
    with pytest.raises(InvalidRequest, match="samserve_tolerance"):
        parse(f'<PolygonLabels name="p" toName="image" samserve_tolerance="{tolerance}"/>')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not valid XML"),
        ("<View>", "is not valid XML"),
        ("<View/>" + " " * MAX_CONFIG_CHARS, "characters"),
        ("<View>" * 101 + "</View>" * 101, "deeper than"),
        ("<View>" + "<Label/>" * 20_001 + "</View>", "elements"),
        ('<!DOCTYPE v [<!ENTITY a SYSTEM "file:///etc/passwd">]><v>&a;</v>', "document type"),
        ('<!DOCTYPE v [<!ENTITY a "aaaa">]><v>&a;</v>', "document type"),
    ],
)
def test_hostile_label_config_is_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        LabelConfig.parse(text)


def test_config_without_place_for_masks_says_what_is_missing() -> None:
    with pytest.raises(InvalidRequest, match="<Image>"):
        LabelConfig.parse("<View/>").image_of("")
    with pytest.raises(InvalidRequest, match="of the name"):
        parse("").image_of("other")
    with pytest.raises(InvalidRequest, match="<BrushLabels> or <PolygonLabels>"):
        parse('<BrushLabels name="b" toName="other"/>').outputs("image")


def test_all_points_of_a_label_are_one_object() -> None:
    (found,) = prompts(point("a", 25, 50), point("b", 50, 100, positive=False))

    assert (found.points, found.box) == ([(100.0, 100.0, 1), (200.0, 200.0, 0)], None)


def test_labels_are_different_objects() -> None:
    found = marked(point("a", 1, 1), point("b", 2, 2, label="Outline"), point("c", 3, 3))

    assert [(each.label, len(each.points)) for each in found] == [("Coin", 2), ("Outline", 1)]


def test_every_box_is_an_object() -> None:
    found = prompts(box("a", 10, 20, 30, 40), box("b", 0, 0, 100, 100))

    assert [each.box for each in found] == [(40, 40, 160, 120), (0, 0, 400, 200)]


def test_points_refine_the_smallest_box_around_them_or_the_only_box() -> None:
    outer, inner = box("outer", 0, 0, 80, 80), box("inner", 10, 10, 20, 20)

    assert [len(each.points) for each in marked(outer, point("p", 15, 15), inner)] == [0, 1]
    assert [len(each.points) for each in marked(inner, point("p", 90, 90, positive=False))] == [1]
    alone = marked(outer, inner, point("p", 90, 90))
    assert [(each.box is None, len(each.points)) for each in alone] == [
        *((False, 0), (False, 0), (True, 1)),
    ]


def test_points_on_the_background_alone_are_no_object() -> None:
    assert marked(point("a", 1, 1, positive=False)) == []


def test_rotated_box_is_the_box_around_it() -> None:
    rotated = box("a", 50, 50, 10, 20)
    rotated["value"]["rotation"] = 90

    (found,) = prompts(rotated)

    assert found.box == pytest.approx((160, 100, 200, 140))


def test_coordinates_outside_are_moved_to_the_edge() -> None:
    assert prompts(point("a", -5, 120))[0].points == [(0.0, 200.0, 1)]
    assert prompts(box("a", -10, 50, 200, 100))[0].box == (0, 100, 400, 200)


def test_id_of_a_mask_stays_while_points_are_added() -> None:
    one, two, other = (
        marked(point("a", 1, 1)),
        marked(point("a", 1, 1), point("b", 2, 2)),
        marked(point("c", 1, 1)),
    )

    assert one[0].id == two[0].id != other[0].id
    unnamed = point("", 1, 1)
    assert marked(unnamed)[0].id != marked(unnamed)[0].id


@pytest.mark.parametrize("name", ["x", "y"])
@pytest.mark.parametrize("value", [None, "1", True, float("nan"), 1e30])
def test_coordinates_that_are_no_percentage_are_refused(name: str, value: object) -> None:
    broken = point("a", 1, 1)
    broken["value"][name] = value

    with pytest.raises(InvalidRequest, match=f"{name} is not a percentage"):
        marked(broken)


@pytest.mark.parametrize("context", [{"result": "x"}, {"result": [1]}, {"result": [{}] * 1001}])
def test_context_that_is_no_list_of_regions_is_refused(context: object) -> None:
    with pytest.raises(InvalidRequest, match=r"params\.context\.result"):
        regions(context)


@pytest.mark.parametrize("context", [None, {}, {"result": None}, {"result": []}, "text", 5])
def test_context_without_regions_has_none(context: object) -> None:
    assert regions(context) == []


def test_regions_of_other_kinds_are_ignored() -> None:
    brush = {**point("a", 1, 1), "type": "brushlabels"}

    assert regions({"result": [brush, {"type": "keypointlabels"}]}) == []
