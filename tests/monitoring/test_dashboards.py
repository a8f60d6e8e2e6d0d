"""Dashboards: what Grafana gets is what the code makes, complete, and about metrics that exist."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from monitoring.__main__ import drift, generate
from monitoring.dashboards.grafana import read_again
from monitoring.dashboards.stages import CAUSES
from monitoring.queries import Query, dashboards, panels, queries, substitute
from tests.monitoring.catalogue import STAGES
from tests.monitoring.promql import Wrong, check
from tests.support.together import check_all

PAGES = list(dashboards())
QUERIES = list(queries())
BY_TITLE = {page["title"]: page for page in PAGES}
PANELS = {f"{page['title']}: {panel['title']}": panel for page in PAGES for panel in panels(page)}


def test_files_of_the_chart_are_what_the_code_makes() -> None:
    assert list(drift()) == []


def test_a_file_that_was_edited_or_left_over_is_noticed(tmp_path: Path) -> None:
    generate(tmp_path)
    assert list(drift(tmp_path)) == []
    page = tmp_path / "dashboards" / "samserve-cache.json"
    page.write_text(page.read_text().replace("samserve / Cache", "Edited"))
    (tmp_path / "rules" / "old.yaml").write_text("groups: []\n")

    changes = "\n".join(drift(tmp_path))

    assert '-  "title": "Edited",' in changes
    assert "-groups: []" in changes
    generate(tmp_path)
    assert list(drift(tmp_path)) == []


def test_there_are_four_pages_with_many_questions() -> None:
    titles = {page["title"] for page in PAGES}

    assert titles == {f"samserve / {name}" for name in ("Overview", "Latency", "Cache", "Triton")}
    assert len(QUERIES) >= 45


def test_nothing_is_in_a_page_that_its_format_does_not_know() -> None:
    def check_page(page: dict[str, Any]) -> None:
        assert json.loads(read_again(json.dumps(page))) == page

    check_all(check_page, BY_TITLE)


def test_pages_and_panels_have_names_of_their_own() -> None:
    uids = [page["uid"] for page in PAGES]

    assert len(set(uids)) == len(uids) == len(BY_TITLE)
    for page in PAGES:
        numbers = [panel["id"] for panel in page["panels"]]
        assert len(set(numbers)) == len(numbers)
        titles = [panel["title"] for panel in page["panels"]]
        assert len(set(titles)) == len(titles)


def test_panels_fill_whole_lines_and_lie_on_no_other() -> None:
    def check_page(page: dict[str, Any]) -> None:
        cells = [
            {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            for place in (panel["gridPos"] for panel in page["panels"])
        ]
        assert not any(one & other for one, other in combinations(cells, 2))
        covered = set().union(*cells)
        assert covered == {(x, y) for x in range(24) for y in range(max(y for _, y in covered) + 1)}

    check_all(check_page, BY_TITLE)


def test_a_panel_asks_a_question_and_says_how_to_read_the_answer() -> None:
    def check_panel(panel: dict[str, Any]) -> None:
        assert panel["title"].endswith("?")
        assert len(panel["description"]) > 40
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])
        references = [target["refId"] for target in panel["targets"]]
        assert references
        assert len(set(references)) == len(references)

    check_all(check_panel, PANELS)


def test_a_query_names_what_there_is() -> None:
    def check_query(query: Query) -> None:
        labels = check(substitute(query.expr))
        named = set(re.findall(r"{{(\w+)}}", query.legend))
        assert named <= labels

    check_all(check_query, {f"{number} {each.panel}": each for number, each in enumerate(QUERIES)})


def test_a_table_shows_columns_that_its_queries_have() -> None:
    def check_panel(panel: dict[str, Any]) -> None:
        organize = [each for each in panel.get("transformations", []) if each["id"] == "organize"]
        assert bool(organize) == (panel["type"] == "table")
        for each in organize:
            targets = panel["targets"]
            there = {label for target in targets for label in check(substitute(target["expr"]))}
            several = len(targets) > 1
            there |= {f"Value #{target['refId']}" if several else "Value" for target in targets}
            assert set(each["options"]["renameByName"]) <= there

    check_all(check_panel, PANELS)


def test_rates_follow_the_scrape_interval_or_the_time_shown() -> None:
    def check_panel(panel: dict[str, Any]) -> None:
        for target in panel["targets"]:
            windows = set(re.findall(r"\[([^\]]+)\]", target["expr"]))
            assert windows <= {"$__rate_interval", "$__range"}, target["expr"]

    check_all(check_panel, PANELS)


def test_choices_and_marks_are_about_metrics_that_exist() -> None:
    check_all(check_choices_and_marks, BY_TITLE)


def check_choices_and_marks(page: dict[str, Any]) -> None:
    """Raise an error if a page lets people choose, or marks, what is not there."""
    choices = {each["name"]: each for each in page["templating"]["list"]}
    assert {"datasource", "namespace", "release"} <= set(choices)
    for name, choice in choices.items():
        if choice["type"] != "query":
            continue
        asked = re.fullmatch(r"label_values\((.+), (\w+)\)", choice["query"]["query"])
        assert asked
        assert asked[2] in check(substitute(asked[1]))
        assert (choice["allValue"], choice["includeAll"], choice["multi"]) == (".*", True, True)
        used = any(
            f"${name}" in query.expr for query in queries() if query.dashboard == page["title"]
        )
        assert used, name
    for mark in page["annotations"]["list"]:
        named = set(re.findall(r"{{(\w+)}}", mark["textFormat"]))
        assert named <= check(substitute(mark["expr"]))


def test_every_stage_has_one_cause_and_a_place_in_the_picture() -> None:
    stages = [stage for cause in CAUSES for stage in cause.stages]

    assert sorted(stages) == sorted(STAGES)


def test_exemplars_are_asked_for_where_calls_are_measured() -> None:
    on = {
        panel["title"]
        for panel in PANELS.values()
        for target in panel["targets"]
        if target.get("exemplar")
    }

    assert "Are all calls slow, or some?" in on
    assert len(on) >= 3


@pytest.mark.parametrize(
    ("expr", "told"),
    [
        ("samserve_nothing", "no metric"),
        ('samserve_ready{modle="x"}', "no label"),
        ('samserve_stage_seconds_sum{stage="encod"}', "never"),
        ('samserve_stage_seconds_sum{stage=~"encode|queu"}', "never"),
        ("sum by (stage) (samserve_ready)", "not in"),
        ("samserve_ready / samserve_model_info", "never match"),
        ("samserve_ready / on (model) samserve_model_info", "has not"),
        ('label_replace(samserve_ready, "a", "$1", "model", "(.*)")', "reads model"),
        ("samserve_ready", "job is none"),
        ('nv_gpu_utilization{job="samserve"}', "job is none"),
        ('up{job=~"samserve|node"}', "never"),
        ('grpc_server_started_total{job="samserve"}', "which gRPC service"),
    ],
)
def test_what_is_not_there_is_noticed(expr: str, told: str) -> None:
    with pytest.raises(Wrong, match=told):
        check(expr)


def test_variables_are_put_in_as_grafana_does() -> None:
    asked = 'a{model=~"($model)_x",n=~"${namespace:regex}"}[$__rate_interval] $1 $__range'

    assert substitute(asked, model="m|n", rate_interval="1m", window="6h") == (
        'a{model=~"(m|n)_x",n=~".*"}[1m] $1 6h'
    )
    with pytest.raises(ValueError, match="nothing"):
        substitute("a{b=~'$nothing'}")
