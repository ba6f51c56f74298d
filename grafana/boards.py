"""A dashboard as data, and the document Grafana makes of it.

Knows: rows, variables, annotations, links between dashboards. Does not know: what a panel shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import dashboard as models

from grafana.panels import SOURCE, Panel

TAG: Final = "kronos"
"""Dashboards that have it are linked with each other."""


@dataclass(frozen=True)
class Mark:
    """Events drawn into every graph: each moment at which ``expr`` is above 0, neighbours joined to a region.

    ``time``: the values are the events' times (ms since 1970) instead.
    """

    name: str
    expr: str
    title: str
    colour: str
    time: bool = False


@dataclass(frozen=True)
class Choice:
    """A variable of a dashboard: the values of a ``label`` of the series ``of``. ``every``: several or all of them."""

    name: str
    title: str
    description: str
    of: str
    label: str
    every: bool = False


@dataclass(frozen=True)
class Board:
    """A dashboard: panels by the title of their row, in the order they are drawn."""

    uid: str
    title: str
    description: str
    rows: Mapping[str, Sequence[Panel]]
    choices: Sequence[Choice] = ()
    marks: Sequence[Mark] = ()


def document(made: Board) -> models.Dashboard:
    """Grafana's document, with links to all others of this house."""
    drawn = dashboard.Dashboard(made.title).uid(made.uid).description(made.description).tags([TAG]).readonly()
    drawn.time("now-15m", "now").refresh("10s").tooltip(models.DashboardCursorSync.CROSSHAIR)
    source = dashboard.DatasourceVariable("datasource").label("Source").type("prometheus")
    drawn.with_variable(source.description("The Prometheus that is asked.").current(_option("Prometheus", "prometheus")))
    for choice in made.choices:
        drawn.with_variable(_variable(choice))
    for mark in made.marks:
        drawn.annotation(_annotation(mark))
    # By tag, not by address: Grafana then knows its own path behind Nginx, and leaves out the dashboard one is on.
    links = dashboard.DashboardLink("Kronos").type(models.DashboardLinkType.DASHBOARDS).tags([TAG]).icon("dashboard")
    drawn.link(links.tooltip("Same time, same variables").keep_time(True).include_vars(True))
    for title, drawings in made.rows.items():
        drawn.with_row(dashboard.Row(title))
        for drawing in drawings:
            drawn.with_panel(drawing)
    finished = drawn.build()
    for number, panel in enumerate(finished.panels or [], start=1):
        panel.id_val = number
    return finished


def _option(text: str, value: str) -> models.VariableOption:
    return models.VariableOption(selected=True, text=text, value=value)


def _variable(choice: Choice) -> dashboard.QueryVariable:
    query = f"label_values({choice.of}, {choice.label})"
    made = dashboard.QueryVariable(choice.name).label(choice.title).description(choice.description).datasource(SOURCE)
    made.query({"query": query, "qryType": 1, "refId": choice.name}).definition(query)
    made.refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(models.VariableSort.NATURAL_ASC)
    if choice.every:
        made.multi(True).include_all(True).all_value(".*").current(_option("All", "$__all"))
    return made


def _annotation(mark: Mark) -> dashboard.AnnotationQuery:
    made = dashboard.AnnotationQuery().name(mark.name).datasource(SOURCE).enable(True).icon_color(mark.colour)
    return made.expr(mark.expr).title_format(mark.title).step("10s").use_value_for_time(mark.time)
