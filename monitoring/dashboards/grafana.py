"""From what a dashboard is made of to Grafana's format."""

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

from monitoring.dashboards.looks import look
from monitoring.dashboards.spec import GRID, LATEST, Dashboard, Kind, Panel, Query, Variable
from monitoring.dashboards.variables import HERE, OURS
from monitoring.rules import tidy

_PROMETHEUS = DataSourceRef(type_val="prometheus", uid="${datasource}")
_TAG = "samserve"
# What is found in a Tempo when somebody asks for the slow calls of the time that is shown.
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
    """Write *page* as Grafana imports it; equal pages give equal text."""
    draft = (
        build.Dashboard(page.title)
        .uid(page.uid)
        .description(tidy(page.description))
        .tags([_TAG])
        .timezone("browser")
        .time("now-1h", "now")
        .refresh("30s")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .readonly()
        .links([_link_to_others()])
        .annotations(list(_annotations()))
    )
    for variable in _variables(page):
        draft.with_variable(variable)
    content = draft.build()
    content.panels = list(_placed(page))
    return json.dumps(content, cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def read_again(text: str) -> str:
    """Read a dashboard as Grafana's types and write it: what they do not know is lost."""
    register_default_plugins()
    content = models.Dashboard.from_json(json.loads(text))
    return json.dumps(content, cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def _placed(page: Dashboard) -> Iterator[models.Panel | models.RowPanel]:
    """Yield rows and panels with their numbers and places: from left to right, line by line."""
    number, y = 0, 0
    for row in page.rows:
        number += 1
        place = models.GridPos(x=0, y=y, w=GRID, h=1)
        yield models.RowPanel(id_val=number, title=row.title, grid_pos=place, panels=[])
        x, y = 0, y + 1
        for panel in row.panels:
            number += 1
            drawn = _panel(panel)
            drawn.id_val = number
            width, height = panel.width or row.width, panel.height or row.height
            drawn.grid_pos = models.GridPos(x=x, y=y, w=width, h=height)
            yield drawn
            x = (x + width) % GRID
            y += 0 if x else height


def _panel(panel: Panel) -> models.Panel:
    draft = look(panel).title(panel.title).description(tidy(panel.description)).unit(panel.unit)
    draft.datasource(_PROMETHEUS)
    for name, query in zip(ascii_uppercase, panel.queries, strict=False):
        draft.with_target(_target(panel.kind, query).ref_id(name))
    if panel.empty:
        draft.no_value(panel.empty)
    if panel.traces:
        draft.links([_link_to_traces()])
    built: models.Panel = draft.build()
    return built


def _target(kind: Kind, query: Query) -> prometheus.Dataquery:
    target = prometheus.Dataquery().expr(tidy(query.expr)).datasource(_PROMETHEUS)
    target.legend_format("__auto" if kind is Kind.TABLE else query.name)
    if kind in LATEST:
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
        yield _choice(variable)


def _choice(variable: Variable) -> build.QueryVariable:
    everything = models.VariableOption(selected=True, text="All", value="$__all")
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
        .current(everything)
    )


def _annotations() -> Sequence[Any]:
    """Mark when gateways started and alerts fired: what changed is the first thing to ask."""
    marks = (
        (
            *("Gateways started", "#5794f2", "{{pod}} {{instance}}"),
            f"changes(process_start_time_seconds{{{OURS}}}[2m]) > 0",
        ),
        (
            *("Alerts fired", "red", "{{alertname}} {{grpc_method}}"),
            f'ALERTS{{alertname=~"Samserve.*",alertstate="firing",{HERE}}}',
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
        for name, color, text, expr in marks
    ]


def _link_to_others() -> build.DashboardLink:
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
        build.DashboardLink("Calls of more than a second in the traces")
        .type(models.DashboardLinkType.LINK)
        .url(f"/explore?schemaVersion=1&panes={panes}")
        .target_blank(True)
    )
