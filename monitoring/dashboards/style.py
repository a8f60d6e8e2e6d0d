"""The visual style of each kind of panel in Grafana."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    heatmap,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.models import common as shapes
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode

from monitoring.dashboards.spec import Kind, Panel


def styled_panel(panel: Panel) -> Any:
    """Return a builder of a panel with everything but its texts and queries."""
    draft = _KINDS[panel.kind](panel)
    for name, color in panel.colors.items():
        fixed = {"mode": "fixed", "fixedColor": color}
        draft.override_by_name(name, [models.DynamicConfigValue("color", fixed)])
    for name, unit in panel.units.items():
        draft.override_by_name(name, [models.DynamicConfigValue("unit", unit)])
    if panel.mappings:
        results = {
            value: models.ValueMappingResult(text=text, color=color, index=index)
            for index, (value, (text, color)) in enumerate(panel.mappings.items())
        }
        draft.mappings([models.ValueMap(results)])
    if panel.maximum is not None:
        draft.max(panel.maximum)
    if panel.kind is not Kind.HEATMAP:
        draft.thresholds(_thresholds(panel))
    return draft


def _lines(panel: Panel) -> timeseries.Panel:
    style = "dashed" if panel.thresholds else "off"
    return (
        timeseries.Panel()
        .min(0)
        .line_width(1)
        .fill_opacity(8)
        .show_points(shapes.VisibilityMode.NEVER)
        .legend(_legend(["lastNotNull", "max"]))
        .tooltip(_tooltip())
        .thresholds_style(
            common.GraphThresholdsStyleConfig().mode(shapes.GraphThresholdsStyleMode(style))
        )
    )


def _stack(panel: Panel) -> timeseries.Panel:
    stacking = common.StackingConfig().mode(shapes.StackingMode.NORMAL).group("A")
    return _lines(panel).fill_opacity(70).line_width(0).stacking(stacking).legend(_legend(["mean"]))


def _stat(panel: Panel) -> stat.Panel:
    return (
        stat.Panel()
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .color_mode(shapes.BigValueColorMode.BACKGROUND)
        .graph_mode(shapes.BigValueGraphMode.NONE)
        .text_mode(shapes.BigValueTextMode.VALUE_AND_NAME)
    )


def _bars(panel: Panel) -> bargauge.Panel:
    return (
        bargauge.Panel()
        .min(0)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .orientation(shapes.VizOrientation.HORIZONTAL)
        .display_mode(shapes.BarGaugeDisplayMode.BASIC)
    )


def _table(panel: Panel) -> table.Panel:
    draft = table.Panel().with_transformation(
        models.DataTransformerConfig(id_val="merge", options={})
    )
    names = dict(panel.columns)
    draft.with_transformation(
        models.DataTransformerConfig(
            id_val="organize",
            options={
                "excludeByName": {"Time": True},
                "indexByName": {name: index for index, name in enumerate(names)},
                "renameByName": names,
            },
        )
    )
    # Only the listed labels are shown.
    shown = "|".join(names.values())
    keep = {"include": {"pattern": f"^({shown})$"}}
    draft.with_transformation(
        models.DataTransformerConfig(id_val="filterFieldsByName", options=keep)
    )
    if panel.sort:
        draft.sort_by([common.TableSortByFieldState().display_name(panel.sort).desc(True)])
    if panel.mappings or panel.thresholds:
        colored = {"type": "color-text"}
        last = list(names.values())[-1]
        draft.override_by_name(last, [models.DynamicConfigValue("custom.cellOptions", colored)])
    return draft


def _heatmap(panel: Panel) -> heatmap.Panel:
    colors = heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(64)
    return (
        heatmap.Panel()
        .calculate(False)
        .color(colors)
        .cell_gap(1)
        .y_axis(heatmap.YAxisConfig().unit(panel.unit))
        .filter_values(heatmap.FilterValueRange().le(1e-9))
        .exemplars_color("rgba(50,116,217,0.9)")
        .show_legend()
        .tooltip(heatmap.HeatmapTooltip().mode(shapes.TooltipDisplayMode.SINGLE).y_histogram(True))
    )


def _states(panel: Panel) -> statetimeline.Panel:
    return (
        statetimeline.Panel()
        .merge_values(True)
        .show_value(shapes.VisibilityMode.AUTO)
        .row_height(0.8)
        .fill_opacity(80)
        .legend(_legend([]))
        .tooltip(_tooltip())
    )


_KINDS: dict[Kind, Callable[[Panel], Any]] = {
    Kind.LINES: _lines,
    Kind.STACK: _stack,
    Kind.STAT: _stat,
    Kind.BARS: _bars,
    Kind.TABLE: _table,
    Kind.HEATMAP: _heatmap,
    Kind.STATES: _states,
}


def _legend(calcs: list[str]) -> common.VizLegendOptions:
    mode = shapes.LegendDisplayMode.TABLE if calcs else shapes.LegendDisplayMode.LIST
    return (
        common.VizLegendOptions()
        .display_mode(mode)
        .placement(shapes.LegendPlacement.BOTTOM)
        .show_legend(True)
        .calcs(calcs)
    )


def _tooltip() -> common.VizTooltipOptions:
    return (
        common.VizTooltipOptions()
        .mode(shapes.TooltipDisplayMode.MULTI)
        .sort(shapes.SortOrder.DESCENDING)
    )


def _thresholds(panel: Panel) -> dashboard.ThresholdsConfig:
    steps = [models.Threshold(value=None, color=panel.base_color)]
    steps += [models.Threshold(value=value, color=color) for value, color in panel.thresholds]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)
