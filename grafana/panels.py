"""Panels as this house draws them, on top of Grafana's own typed builders.

Knows: units, legends, colours, sizes, and what every panel must have (title, unit, description, source). Does not know:
any metric, or dashboards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Final, TypeVar

from grafana_foundation_sdk.builders import bargauge, common, dashboard, heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common as shapes
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

Panel = Builder[models.Panel]
_P = TypeVar("_P", bargauge.Panel, heatmap.Panel, stat.Panel, table.Panel, timeseries.Panel)

SOURCE: Final = shapes.DataSourceRef(type_val="prometheus", uid="${datasource}")
NOTHING: Final = "–"  # where there is no number: no requests in the window, or no such series
GRID: Final = 24  # columns of Grafana's grid
GREEN, ORANGE, RED = "green", "orange", "red"


@dataclass(frozen=True)
class Query:
    """One PromQL expression and the name of its series (``{{label}}`` stands for a label's value)."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Column:
    """One column of a table: its heading, unit, and an expression with one sample for each row.

    ``bad``: from here on the cell is red (in the column's unit).
    """

    name: str
    unit: str
    expr: str
    bad: float | None = None


@dataclass(frozen=True)
class Link:
    """Makes the cells of a label's column links; ``${__value.text}`` in the url is the cell's text."""

    label: str
    title: str
    url: str


def graph(
    title: str,
    unit: str,
    description: str,
    *queries: Query,
    width: int = 12,
    stacked: bool = False,
    full: float | None = None,
    many: bool = False,
) -> timeseries.Panel:
    """Lines over time from 0 (to ``full``). ``stacked``: the series add up. ``many``: one series for each worker, so the
    legend stands at the side, the largest first."""
    panel = _say(timeseries.Panel(), title, unit, description, queries).span(width).height(8)
    legend = common.VizLegendOptions().show_legend(True).display_mode(shapes.LegendDisplayMode.TABLE)
    legend.placement(shapes.LegendPlacement.RIGHT if many else shapes.LegendPlacement.BOTTOM)
    legend.calcs(["lastNotNull"] if many else ["lastNotNull", "mean", "max"]).sort_by("Last *").sort_desc(True)
    tooltip = common.VizTooltipOptions().mode(shapes.TooltipDisplayMode.MULTI).sort(shapes.SortOrder.DESCENDING)
    panel.min(0).line_width(1).fill_opacity(40 if stacked else 8).show_points(shapes.VisibilityMode.AUTO)
    panel.legend(legend).tooltip(tooltip)
    if stacked:
        panel.stacking(common.StackingConfig().mode(shapes.StackingMode.NORMAL))
    return panel if full is None else panel.max(full)


def number(
    title: str, unit: str, description: str, query: Query, *, limits: Sequence[float] = (), low: bool = False, width: int = 4
) -> stat.Panel:
    """The latest value, its course behind it. ``limits``: where orange and red begin; ``low``: small is bad, so they are
    the ends of red and orange."""
    panel = _say(stat.Panel(), title, unit, description, [query]).span(width).height(4)
    panel.min(0).reduce_options(_latest()).graph_mode(shapes.BigValueGraphMode.AREA)
    return panel.color_mode(shapes.BigValueColorMode.VALUE).thresholds(_steps(limits, low))


def bars(title: str, unit: str, description: str, query: Query, *, full: float | None = None, width: int = 12) -> bargauge.Panel:
    """The latest value of each series as a bar."""
    panel = _say(bargauge.Panel(), title, unit, description, [query]).span(width).height(8)
    panel.min(0).reduce_options(_latest()).orientation(shapes.VizOrientation.HORIZONTAL)
    panel.display_mode(shapes.BarGaugeDisplayMode.BASIC).thresholds(_steps(()))
    return panel if full is None else panel.max(full)


def heat(title: str, unit: str, description: str, expr: str, *, width: int = 12) -> heatmap.Panel:
    """How many observations fell into which bucket; ``expr`` is summed by (le)."""
    panel = _say(heatmap.Panel(), title, unit, description, [Query(expr, "{{le}}")], PromQueryFormat.HEATMAP)
    panel.span(width).height(8).min(0).color(heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME))
    return panel.y_axis(heatmap.YAxisConfig().unit(unit)).filter_values(heatmap.FilterValueRange().le(1e-9))


def rows(
    title: str, description: str, columns: Sequence[Column], *, sort: str, link: Link | None = None, width: int = GRID
) -> table.Panel:
    """One row for each set of labels, largest ``sort`` first."""
    queries = [Query(column.expr, column.name) for column in columns]
    panel = _say(table.Panel(), title, "short", description, queries, PromQueryFormat.TABLE).span(width).height(8)
    panel.min(0).with_transformation(models.DataTransformerConfig(id_val="merge", options={}))
    names = {f"Value #{letter}": column.name for letter, column in zip(ascii_uppercase, columns, strict=False)}
    if len(columns) == 1:
        names = {"Value": columns[0].name}  # Grafana numbers the values of several queries only
    tidy = {"excludeByName": {"Time": True}, "indexByName": {}, "renameByName": names}
    panel.with_transformation(models.DataTransformerConfig(id_val="organize", options=tidy))
    for column in columns:
        panel.override_by_name(column.name, _cell(column))
    if link:
        target = {"title": link.title, "url": link.url}
        panel.override_by_name(link.label, [models.DynamicConfigValue(id_val="links", value=[target])])
    return panel.sort_by([common.TableSortByFieldState().display_name(sort).desc(True)])


def _say(
    panel: _P,
    title: str,
    unit: str,
    description: str,
    queries: Sequence[Query],
    shape: PromQueryFormat = PromQueryFormat.TIME_SERIES,
) -> _P:
    panel.title(title).unit(unit).description(description).datasource(SOURCE).no_value(NOTHING)
    for letter, query in zip(ascii_uppercase, queries, strict=False):
        target = prometheus.Dataquery().ref_id(letter).datasource(SOURCE).expr(query.expr).format(shape)
        target.legend_format(query.legend)
        panel.with_target(target.instant() if shape is PromQueryFormat.TABLE else target.range())
    return panel


def _latest() -> common.ReduceDataOptions:
    return common.ReduceDataOptions().calcs(["lastNotNull"])


def _steps(limits: Sequence[float], low: bool = False) -> dashboard.ThresholdsConfig:
    colours = [RED, ORANGE, GREEN] if low else [GREEN, ORANGE, RED]
    if len(limits) == 1:
        colours.remove(ORANGE)
    steps = [models.Threshold(value=at, color=colour) for at, colour in zip([None, *limits], colours, strict=False)]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)


def _cell(column: Column) -> list[models.DynamicConfigValue]:
    made: dict[str, object] = {"unit": column.unit}
    if column.bad is not None:
        made["thresholds"] = _steps([column.bad]).build()
        made["custom.cellOptions"] = {"type": "color-text"}
    return [models.DynamicConfigValue(id_val=name, value=value) for name, value in made.items()]
