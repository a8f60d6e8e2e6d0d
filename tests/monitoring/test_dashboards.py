"""Dashboards: the files match the code, are valid for Grafana, and use existing metrics."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from monitoring.__main__ import drift, generate
from monitoring.dashboards.grafana import round_trip
from monitoring.dashboards.stages import CAUSES
from monitoring.queries import Query, dashboards, panels, queries, substitute
from tests.monitoring.catalogue import STAGES
from tests.monitoring.promql import InvalidQuery, check
from tests.support.cases import check_all

PAGES = list(dashboards())
QUERIES = list(queries())
BY_TITLE = {page["title"]: page for page in PAGES}
PANELS = {f"{page['title']}: {panel['title']}": panel for page in PAGES for panel in panels(page)}


def test_chart_files_match_the_code() -> None:
    assert list(drift()) == []


def test_drift_reports_edited_and_stale_files(tmp_path: Path) -> None:
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


def test_there_are_four_dashboards_with_many_queries() -> None:
    titles = {page["title"] for page in PAGES}

    assert titles == {f"samserve / {name}" for name in ("Overview", "Latency", "Cache", "Triton")}
    assert len(QUERIES) >= 45


def test_dashboards_contain_only_fields_of_the_format() -> None:
    def check_page(page: dict[str, Any]) -> None:
        assert json.loads(round_trip(json.dumps(page))) == page

    check_all(check_page, BY_TITLE)


def test_titles_and_ids_are_unique() -> None:
    uids = [page["uid"] for page in PAGES]

    assert len(set(uids)) == len(uids) == len(BY_TITLE)
    for page in PAGES:
        numbers = [panel["id"] for panel in page["panels"]]
        assert len(set(numbers)) == len(numbers)
        titles = [panel["title"] for panel in page["panels"]]
        assert len(set(titles)) == len(titles)


def test_panels_fill_whole_lines_without_overlap() -> None:
    def check_page(page: dict[str, Any]) -> None:
        cells = [
            {
                (x, y)
                for x in range(position["x"], position["x"] + position["w"])
                for y in range(position["y"], position["y"] + position["h"])
            }
            for position in (panel["gridPos"] for panel in page["panels"])
        ]
        assert not any(one & other for one, other in combinations(cells, 2))
        covered = set().union(*cells)
        assert covered == {(x, y) for x in range(24) for y in range(max(y for _, y in covered) + 1)}

    check_all(check_page, BY_TITLE)


def test_a_panel_has_title_description_unit_and_data_source() -> None:
    def check_panel(panel: dict[str, Any]) -> None:
        assert re.fullmatch(r"[A-Z][\w ,()-]+", panel["title"])
        assert len(panel["description"]) > 40
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])
        references = [target["refId"] for target in panel["targets"]]
        assert references
        assert len(set(references)) == len(references)

    check_all(check_panel, PANELS)


def test_queries_use_existing_metrics_labels_and_values() -> None:
    def check_query(query: Query) -> None:
        labels = check(substitute(query.expr))
        used = set(re.findall(r"{{(\w+)}}", query.legend))
        assert used <= labels

    check_all(check_query, {f"{number} {each.panel}": each for number, each in enumerate(QUERIES)})


def test_table_columns_exist_in_the_query_results() -> None:
    def check_panel(panel: dict[str, Any]) -> None:
        organize = [each for each in panel.get("transformations", []) if each["id"] == "organize"]
        assert bool(organize) == (panel["type"] == "table")
        for each in organize:
            targets = panel["targets"]
            available = {label for target in targets for label in check(substitute(target["expr"]))}
            several = len(targets) > 1
            available |= {f"Value #{target['refId']}" if several else "Value" for target in targets}
            assert set(each["options"]["renameByName"]) <= available

    check_all(check_panel, PANELS)


def test_rates_use_the_rate_interval_or_the_time_range() -> None:
    def check_panel(panel: dict[str, Any]) -> None:
        for target in panel["targets"]:
            windows = set(re.findall(r"\[([^\]]+)\]", target["expr"]))
            assert windows <= {"$__rate_interval", "$__range"}, target["expr"]

    check_all(check_panel, PANELS)


def test_variables_and_annotations_use_existing_metrics() -> None:
    check_all(check_variables_and_annotations, BY_TITLE)


def check_variables_and_annotations(page: dict[str, Any]) -> None:
    """Raise an error if a variable or annotation of a dashboard uses an unknown metric or label."""
    variables = {each["name"]: each for each in page["templating"]["list"]}
    assert {"datasource", "namespace", "release"} <= set(variables)
    for name, variable in variables.items():
        if variable["type"] != "query":
            continue
        query = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
        assert query
        assert query[2] in check(substitute(query[1]))
        options = (variable["allValue"], variable["includeAll"], variable["multi"])
        assert options == (".*", True, True)
        used = any(f"${name}" in each.expr for each in queries() if each.dashboard == page["title"])
        assert used, name
    for annotation in page["annotations"]["list"]:
        labels = set(re.findall(r"{{(\w+)}}", annotation["textFormat"]))
        assert labels <= check(substitute(annotation["expr"]))


def test_every_stage_has_exactly_one_cause() -> None:
    stages = [stage for cause in CAUSES for stage in cause.stages]

    assert sorted(stages) == sorted(STAGES)


def test_call_latency_panels_request_exemplars() -> None:
    titles = {
        panel["title"]
        for panel in PANELS.values()
        for target in panel["targets"]
        if target.get("exemplar")
    }

    assert "Latency distribution" in titles
    assert len(titles) >= 3


@pytest.mark.parametrize(
    ("expr", "message"),
    [
        ("samserve_nothing", "no metric"),
        ('samserve_ready{modle="x"}', "no label"),
        ('samserve_stage_seconds_sum{stage="encod"}', "unknown values"),
        ('samserve_stage_seconds_sum{stage=~"encode|queu"}', "unknown values"),
        ("sum by (stage) (samserve_ready)", "not in"),
        ("samserve_ready / samserve_model_info", "never match"),
        ("samserve_ready / on (model) samserve_model_info", "one side lacks"),
        ('label_replace(samserve_ready, "a", "$1", "model", "(.*)")', "reads model"),
        ("samserve_ready", "job is not one"),
        ('nv_gpu_utilization{job="samserve"}', "job is not one"),
        ('up{job=~"samserve|node"}', "unknown values"),
        ('grpc_server_started_total{job="samserve"}', "no gRPC service"),
    ],
)
def test_invalid_queries_are_detected(expr: str, message: str) -> None:
    with pytest.raises(InvalidQuery, match=message):
        check(expr)


def test_substitute_replaces_variables_like_grafana() -> None:
    expr = 'a{model=~"($model)_x",n=~"${namespace:regex}"}[$__rate_interval] $1 $__range'

    assert substitute(expr, model="m|n", rate_interval="1m", window="6h") == (
        'a{model=~"(m|n)_x",n=~".*"}[1m] $1 6h'
    )
    with pytest.raises(ValueError, match="nothing"):
        substitute("a{b=~'$nothing'}")
