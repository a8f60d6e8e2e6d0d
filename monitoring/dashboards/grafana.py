"""Conversion of dashboards to Grafana's format."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from string import ascii_uppercase
from typing import Any

from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.builders import prometheus
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.common import DataSourceRef
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from monitoring.dashboards.spec import (
    GRID_COLUMNS,
    INSTANT_KINDS,
    Dashboard,
    Kind,
    Panel,
    Query,
    Variable,
)
from monitoring.dashboards.style import styled_panel
from monitoring.dashboards.variables import GATEWAY, SCOPE
from monitoring.rules import one_line

_PROMETHEUS = DataSourceRef(type_val="prometheus", uid="${datasource}")
_TAG = "samserve"
# The search of Tempo for slow calls in the time range of the dashboard.
_TRACES = {
    "samserve": {
        "datasource": "${tempo}",
        "queries": [
            {
                "refId": "A",
                "queryType": "traceql",
                "query": '{ resource.service.name = "samserve" && traceDuration > 1s }',
            }
        ],
        "range": {"from": "${__from}", "to": "${__to}"},
    }
}


def to_json(page: Dashboard) -> str:
    """Return *page* as Grafana imports it; equal pages give equal text."""
    draft = (
        build.Dashboard(page.title)
        .uid(page.uid)
        .description(one_line(page.description))
        .tags([_TAG])
        .timezone("browser")
        .time("now-1h", "now")
        .refresh("30s")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .readonly()
        .links([_dashboard_links()])
        .annotations(list(_annotations()))
    )
    for variable in _variables(page):
        draft.with_variable(variable)
    content = draft.build()
    content.panels = list(_layout(page))
    return json.dumps(content, cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def round_trip(text: str) -> str:
    """Parse a dashboard into Grafana's types and serialize it; unknown fields are lost."""
    register_default_plugins()
    content = models.Dashboard.from_json(json.loads(text))
    return json.dumps(content, cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def _layout(page: Dashboard) -> Iterator[models.Panel | models.RowPanel]:
    """Yield rows and panels with ids and grid positions, from left to right, line by line."""
    number, y = 0, 0
    for row in page.rows:
        number += 1
        position = models.GridPos(x=0, y=y, w=GRID_COLUMNS, h=1)
        yield models.RowPanel(id_val=number, title=row.title, grid_pos=position, panels=[])
        x, y = 0, y + 1
        for panel in row.panels:
            number += 1
            built = _panel(panel)
            built.id_val = number
            width, height = panel.width or row.width, panel.height or row.height
            built.grid_pos = models.GridPos(x=x, y=y, w=width, h=height)
            yield built
            x = (x + width) % GRID_COLUMNS
            y += 0 if x else height


def _panel(panel: Panel) -> models.Panel:
    draft = (
        styled_panel(panel)
        .title(panel.title)
        .description(one_line(panel.description))
        .unit(panel.unit)
    )
    draft.datasource(_PROMETHEUS)
    for name, query in zip(ascii_uppercase, panel.queries, strict=False):
        draft.with_target(_target(panel.kind, query).ref_id(name))
    if panel.no_value:
        draft.no_value(panel.no_value)
    if panel.traces:
        draft.links([_link_to_traces()])
    built: models.Panel = draft.build()
    return built


def _target(kind: Kind, query: Query) -> prometheus.Dataquery:
    target = prometheus.Dataquery().expr(one_line(query.expr)).datasource(_PROMETHEUS)
    target.legend_format("__auto" if kind is Kind.TABLE else query.legend_format)
    if kind in INSTANT_KINDS:
        target.instant()
    else:
        target.range().exemplar(query.exemplars)
    if kind is Kind.TABLE:
        target.format(PromQueryFormat.TABLE)
    if kind is Kind.HEATMAP:
        target.format(PromQueryFormat.HEATMAP)
    return target


def _variables(page: Dashboard) -> Iterator[Any]:
    yield build.DatasourceVariable("datasource").label("Prometheus").type("prometheus")
    if page.traces:
        yield build.DatasourceVariable("tempo").label("Traces").type("tempo")
    for variable in page.variables:
        yield _query_variable(variable)


def _query_variable(variable: Variable) -> build.QueryVariable:
    all_values = models.VariableOption(selected=True, text="All", value="$__all")
    return (
        build.QueryVariable(variable.name)
        .label(variable.label)
        .query({"query": variable.query, "refId": variable.name})
        .definition(variable.query)
        .datasource(_PROMETHEUS)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(all_values)
    )


def _annotations() -> Sequence[Any]:
    """Return annotations for starts of gateways and for firing alerts."""
    annotations = (
        (
            *("Gateways started", "#5794f2", "{{pod}} {{instance}}"),
            f"changes(process_start_time_seconds{{{GATEWAY}}}[2m]) > 0",
        ),
        (
            *("Alerts fired", "red", "{{alertname}} {{grpc_method}}"),
            f'ALERTS{{alertname=~"Samserve.*",alertstate="firing",{SCOPE}}}',
        ),
    )
    return [
        build.AnnotationQuery()
        .name(name)
        .datasource(_PROMETHEUS)
        .enable(True)
        .icon_color(color)
        .expr(expr)
        .text_format(text)
        for name, color, text, expr in annotations
    ]


def _dashboard_links() -> build.DashboardLink:
    return (
        build.DashboardLink("samserve")
        .type(models.DashboardLinkType.DASHBOARDS)
        .tags([_TAG])
        .as_dropdown(False)
        .include_vars(True)
        .keep_time(True)
    )


def _link_to_traces() -> build.DashboardLink:
    panes = json.dumps(_TRACES, separators=(",", ":"))
    return (
        build.DashboardLink("Traces of calls over one second")
        .type(models.DashboardLinkType.LINK)
        .url(f"/explore?schemaVersion=1&panes={panes}")
        .target_blank(True)
    )
