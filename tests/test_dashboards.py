"""The dashboards as files: complete, drawn by the code beside them, and asking only for what exists.

Whether a query is answered is the business of tests/stack/test_dashboards_live.py.
"""

from __future__ import annotations

import configparser
import functools
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from app.metrics import STAGES
from grafana import build
from tests.dashboards import FOLDER, VARIABLE, Asked, Document, asked, documents, faults, panels, variables
from tests.series import of_workers

ROOT = Path(__file__).resolve().parents[1]
BOARDS = documents()
QUERIES = [query for document in BOARDS.values() for query in asked(document)]
PANELS = [(name, panel) for name, document in BOARDS.items() for panel in panels(document)]

GRAFANA = {"__rate_interval", "__url_time_range", "__value"}
"""Variables that Grafana itself defines."""

PROMETHEUS = {"up", "ALERTS", "scrape_duration_seconds", "prometheus_tsdb_head_series"}
"""What Prometheus says of itself and its targets."""

K6 = {
    "k6_vus", "k6_vus_max", "k6_http_reqs_total", "k6_http_req_duration_p95", "k6_iterations_total",
    "k6_dropped_iterations_total", "k6_checks_rate", "k6_kronos_forecasts_total", "k6_kronos_goodput_rate",
    "k6_kronos_refused_rate", "k6_kronos_cache_hit_rate", "k6_kronos_cache_coalesced_rate",
    "k6_kronos_request_duration_p95", "k6_kronos_worker_total_p95", "k6_kronos_outside_worker_p95",
    *(f"k6_kronos_stage_{stage}_p95" for stage in STAGES),
}  # fmt: skip
"""What k6 writes, of that what we draw; tests/stack proves that they arrive."""

CORE = {"timeseries", "stat", "table", "heatmap", "bargauge"}
UNITS = {"s", "reqps", "ops", "percentunit", "short", "bytes"}


@functools.cache
def of_nginx() -> set[str]:
    """Names of the series that the exporter's program declares."""
    text = "".join(path.read_text() for path in (ROOT / "nginx/exporter").rglob("*.mtail"))
    kinds = re.findall(r"(?m)^(?:hidden )?(counter|gauge|histogram) (\w+)", text)
    suffixes = {"counter": [""], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}
    return {name + suffix for kind, name in kinds for suffix in suffixes[kind]}


@functools.cache
def recorded() -> set[str]:
    """Names of the series that Prometheus makes by its rules."""
    groups = [group for path in (ROOT / "prometheus/rules").glob("*.yml") for group in yaml.safe_load(path.read_text())["groups"]]
    return {rule["record"] for group in groups for rule in group["rules"] if "record" in rule}


def metrics(expr: str) -> set[str]:
    """Names of the series a PromQL expression reads."""
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', '""', expr)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", bare)
    bare = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", bare)
    words = re.findall(r"(?<![\w.])([a-zA-Z_:][\w:]*)(?!\w)(?!\s*\()", bare)
    return set(words) - {"or", "and", "unless", "bool", "sum", "avg", "max", "min", "count", "topk", "quantile"}


def query_id(query: Asked) -> str:
    return f"{query.board}-{query.place}"


def test_files_are_what_the_modules_make() -> None:
    """Nobody edits JSON by hand, and nobody forgets to write it: the files are exactly what `grafana.build` makes."""
    assert build.differing() == [], "run: python -m grafana.build"


def test_four_dashboards_with_identities_of_their_own() -> None:
    """Fleet, Worker, Load test and Around; uids, panel ids and titles are unique, and people cannot edit them."""
    uids = {document["uid"] for document in BOARDS.values()}
    assert uids == {"kronos-fleet", "kronos-worker", "kronos-load", "kronos-around"}
    assert len({document["title"] for document in BOARDS.values()}) == 4
    for document in BOARDS.values():
        ids = [panel["id"] for panel in document["panels"]]
        assert len(ids) == len(set(ids)) and min(ids) > 0
        assert document["editable"] is False
        titles = [panel["title"] for panel in panels(document)]
        assert len(titles) == len(set(titles)), titles


@pytest.mark.parametrize("name", BOARDS)
def test_grafana_knows_every_field(name: str) -> None:
    """Grafana's own model reads the file and writes the same again: no field is unknown, misspelt or misplaced."""
    register_default_plugins()
    document = BOARDS[name]
    again = json.loads(JSONEncoder().encode(Dashboard.from_json(document)))
    assert again == document


@pytest.mark.parametrize("name,panel", PANELS, ids=[f"{name}-{panel['id']}" for name, panel in PANELS])
def test_a_panel_explains_itself(name: str, panel: Document) -> None:
    """Title, unit, a description of more than one sentence, the source by variable, from 0, a word for "nothing"."""
    assert panel["type"] in CORE
    assert panel["title"] and len(panel["description"]) > 60 and re.search(r"[.:?] .+\.$", panel["description"])
    defaults = panel["fieldConfig"]["defaults"]
    assert defaults["unit"] in UNITS and defaults["min"] == 0 and defaults["noValue"]
    assert panel["targets"]
    assert [target["refId"] for target in panel["targets"]] == list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(panel["targets"])])
    for target in panel["targets"]:
        assert target["datasource"] == panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert target["expr"] and target["legendFormat"]
        assert target["instant"] is (panel["type"] == "table") and target["range"] is not target["instant"]


@pytest.mark.parametrize("name", BOARDS)
def test_panels_do_not_overlap(name: str) -> None:
    """Every panel lies inside the grid of 24 columns, none on another, and rows of panels fill it."""
    cells: dict[tuple[int, int], str] = {}
    for panel in BOARDS[name]["panels"]:
        at = panel["gridPos"]
        assert at["x"] >= 0 and at["x"] + at["w"] <= 24 and at["w"] > 0 and at["h"] > 0
        for cell in itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])):
            assert cell not in cells, f"{panel['title']} lies on {cells[cell]}"
            cells[cell] = panel["title"]
    height = max(y for _, y in cells) + 1
    assert len(cells) == 24 * height, "there is a gap"


def cell_links(document: Document) -> list[str]:
    """Addresses in the cells of a dashboard's tables."""
    rules = [rule for panel in panels(document) for rule in panel["fieldConfig"].get("overrides", [])]
    return [link["url"] for rule in rules for each in rule["properties"] if each["id"] == "links" for link in each["value"]]


@pytest.mark.parametrize("name", BOARDS)
def test_links_resolve(name: str) -> None:
    """Each dashboard leads to the others by the tag they all carry, keeping time and variables; each address in a cell is
    that of a dashboard, each variable in it is one of that dashboard's."""
    (link,) = BOARDS[name]["links"]
    assert link["type"] == "dashboards" and link["keepTime"] and link["includeVars"] and link["tags"]
    assert all(set(link["tags"]) <= set(document["tags"]) for document in BOARDS.values())
    targets = {f"/d/{document['uid']}": document for document in BOARDS.values()}
    for url in cell_links(BOARDS[name]):
        path, _, parameters = url.partition("?")
        assert path in targets
        assert set(re.findall(r"var-(\w+)=", parameters)) <= variables(targets[path]).keys()


def test_the_table_of_workers_leads_to_the_worker() -> None:
    """The address in the fleet's table opens the worker's dashboard for that worker and that time."""
    assert cell_links(BOARDS["fleet.json"]) == [
        "/d/kronos-worker?var-instance=${__value.text}&${datasource:queryparam}&${__url_time_range}"
    ]


@pytest.mark.parametrize("name", BOARDS)
def test_variables_are_defined_and_used(name: str) -> None:
    """Each variable in any text of a dashboard is defined there or by Grafana; each one defined is used."""
    document = BOARDS[name]
    text = [query.expr for query in asked(document)] + cell_links(document)
    text += [str(panel["datasource"]["uid"]) for panel in panels(document)]
    used = {match[1] for each in text for match in VARIABLE.finditer(each)} - GRAFANA
    assert used == variables(document).keys()


@pytest.mark.parametrize("query", QUERIES, ids=query_id)
def test_metrics_exist(query: Asked) -> None:
    """Every series in every query is made by the workers, Nginx's exporter, Prometheus, its rules or k6."""
    known = of_workers() | of_nginx() | recorded() | PROMETHEUS | K6
    found = metrics(query.expr)
    assert found and found <= known, found - known


@pytest.mark.parametrize("query", QUERIES, ids=query_id)
def test_graphs_stay_readable_with_64_workers(query: Asked) -> None:
    """A query that keeps one series for each worker is a table's, or takes the largest few."""
    kinds = {panel["title"]: panel["type"] for name, panel in PANELS if BOARDS[name]["uid"] == query.board}
    many = re.match(r"sum by \((instance|upstream|worker)\)|process_|scrape_|kronos_\w+[{[]", query.expr)
    if many and kinds.get(query.place) != "table" and '"$instance"' not in query.expr and query.unit != "mark":
        pytest.fail("one series for each worker")


@pytest.mark.parametrize("name,panel", PANELS, ids=[f"{name}-{panel['id']}" for name, panel in PANELS])
def test_tables_name_their_columns(name: str, panel: Document) -> None:
    """Each rule for a column meets one: a column's heading, or a label that its queries keep."""
    if panel["type"] != "table":
        return
    merge, tidy = panel["transformations"]
    assert merge["id"] == "merge" and tidy["id"] == "organize"
    renamed = tidy["options"]["renameByName"]
    several = len(panel["targets"]) > 1
    values = {f"Value #{target['refId']}" if several else "Value": target["legendFormat"] for target in panel["targets"]}
    assert renamed == values
    labels = set(re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", " ".join(t["expr"] for t in panel["targets"])))))
    for rule in panel["fieldConfig"]["overrides"]:
        assert rule["matcher"]["options"] in {*renamed.values(), *labels}
    assert {each["displayName"] for each in panel["options"]["sortBy"]} <= set(renamed.values())


SAMPLE = {"metric": {"instance": "10.0.0.2:8000"}, "value": [0, "0.5"]}


@pytest.mark.parametrize(
    "samples,fault",
    [
        ([SAMPLE], ""),
        ([], "no data"),
        ([SAMPLE, {**SAMPLE, "value": [0, "NaN"]}], "nan"),
        ([{**SAMPLE, "value": [0, "+Inf"]}], "inf"),
        ([{**SAMPLE, "value": [0, "1.2"]}], "1.2 percentunit"),
        ([{**SAMPLE, "value": [0, "-1"]}], "-1"),
        ([{**SAMPLE, "metric": {}}], "the legend needs instance"),
    ],
)
def test_an_implausible_answer_is_seen(samples: list[dict[str, Any]], fault: str) -> None:
    """The judge of the live test finds each kind of bad answer, and lets a good one pass."""
    found = faults(Asked("board", "panel", "percentunit", "up", "{{instance}}"), samples)
    assert (found == []) if not fault else (len(found) == 1 and fault in found[0])


def read_yaml(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text())


def test_the_source_is_the_fleets_prometheus() -> None:
    """Panels ask the source that is provisioned, and $__rate_interval is reckoned from the real scrape interval."""
    (source,) = read_yaml("grafana/provisioning/datasources/prometheus.yml")["datasources"]
    assert source["url"] == "http://prometheus:9090/prometheus/"
    assert source["isDefault"] and not source["editable"]
    for document in BOARDS.values():
        assert variables(document)["datasource"]["current"]["value"] == source["uid"]
        assert variables(document)["datasource"]["query"] == source["type"]
    scraped = read_yaml("prometheus/prometheus.yml")["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scraped


def test_dashboards_are_provisioned_and_fixed() -> None:
    """Grafana reads the folder that Compose mounts, allows no change in the browser, and opens with Fleet."""
    (provider,) = read_yaml("grafana/provisioning/dashboards/fleet.yml")["providers"]
    assert provider["allowUiUpdates"] is False and provider["disableDeletion"] is True
    mount = next(each for each in read_yaml("docker-compose.yml")["services"]["grafana"]["volumes"] if "grafana:" in each)
    assert mount == "./grafana:/etc/grafana:ro"
    inside = Path(provider["options"]["path"])
    assert (ROOT / "grafana" / inside.relative_to("/etc/grafana")) == FOLDER / "dashboards"
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(FOLDER / "grafana.ini")
    home = Path(settings["dashboards"]["default_home_dashboard_path"])
    assert home.parent == inside and BOARDS[home.name]["uid"] == "kronos-fleet"


def test_grafana_is_closed() -> None:
    """No account with a known password, nothing sent outside, nothing fetched at the start, lookers cannot change."""
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(FOLDER / "grafana.ini")
    assert settings["security"].getboolean("disable_initial_admin_creation")
    assert settings["auth.anonymous"]["org_role"] == "Viewer"
    assert settings["plugins"].getboolean("preinstall_disabled") and not settings["plugins"].getboolean("plugin_admin_enabled")
    assert not any(settings["analytics"].getboolean(key) for key in settings["analytics"])
    environment = read_yaml("docker-compose.yml")["services"]["grafana"]["environment"]
    assert environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "${GRAFANA_ADMIN_PASSWORD:+false}"
