"""The parts of README.md and NOTES.md that are generated, and where they belong. `python -m tests.docs` renews them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric

from app import metrics
from app.quota import QuotaCollector
from app.settings import table
from benchmarks import around, limits, tuner_truth
from benchmarks.studies.catalogue import STUDIES
from fleet import load

ROOT = Path(__file__).parents[1]


def metrics_table() -> str:
    """Every metric of the worker as Markdown, in the order of app/metrics.py, and those of app/quota.py."""
    rows = ["| metric | type | what |", "|---|---|---|"]
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            # the labels are not public, and not to be had otherwise before the first sample
            rows.append(_metric(next(iter(metric.describe())), ",".join(metric._labelnames)))
    return "\n".join([*rows, *(_metric(family) for family in QuotaCollector().collect())])


def _metric(family: Metric, labels: str = "") -> str:
    name = f"{family.name}_total" if family.type == "counter" else family.name
    return f"| `{name}{'{' + labels + '}' if labels else ''}` | {family.type} | {family.documentation} |"


@dataclass(frozen=True)
class Dial:
    """One line of .env.example, and the sentences above it."""

    name: str
    default: str
    what: str


def dials() -> list[Dial]:
    """The dials of docker-compose.yml, in the order of .env.example."""
    found: list[Dial] = []
    sentences: list[str] = []
    for line in (ROOT / ".env.example").read_text().splitlines():
        if dial := re.fullmatch(r"#([A-Z_]+)=(.*)", line):
            found.append(Dial(dial[1], dial[2], " ".join(sentences)))
            sentences = []
        else:
            sentences = [*sentences, line.removeprefix("# ")] if line else []
    return found


def dials_table() -> str:
    """Every dial of the containers as Markdown."""
    rows = ["| dial | default | what |", "|---|---|---|"]
    return "\n".join([*rows, *(f"| `{dial.name}` | {dial.default} | {dial.what} |" for dial in dials())])


def engine_table() -> str:
    """What benchmarks/engine.py stored, medians over its rounds."""
    rows = [
        "| configuration | storage | lengths | in flight | ms each | × reference | × oracle | of the roofline |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for path in sorted((ROOT / "reports").glob("*-engine/*.json")):
        for row in json.loads(path.read_text())["rows"]:
            if "dtype" in row:
                ratios = [f"{row[key]:.1f}" if key in row else "–" for key in ("times_reference", "times_oracle")]
                rows.append(
                    f"| {row['size']} | {row['dtype']} | {row['shape']} | {row['in_flight']} | "
                    f"{1e3 * row['per_forecast_s']:.0f} | {' | '.join(ratios)} | {100 * row['fraction']:.0f} % |"
                )
    return "\n".join(rows)


def bfloat16_table() -> str:
    """What benchmarks/bfloat16.py stored."""
    keys = {
        "logit_rms_error": "rms error of logits", "logit_std": "their deviation", "same_best_token": "same best token",
        "kl_nats": "KL, nats", "same_history_tokens": "same history tokens",
    }  # fmt: skip
    rows = [f"| checkpoint | {' | '.join(keys.values())} |", "|---" * (len(keys) + 1) + "|"]
    for path in sorted((ROOT / "reports").glob("*-bfloat16/*.json")):
        found = json.loads(path.read_text())
        rows.append(f"| {path.stem} | {' | '.join(format(found[key], '.3g') for key in keys)} |")
    return "\n".join(rows)


def users_table() -> str:
    """What `benchmarks/fleet.py users` stored."""
    rows = [
        "| workers | s | requests | failed | not bit for bit | per s | p50 s | p95 s | p99 s | cores busy | Pss each, MB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for path in sorted((ROOT / "reports").glob("*-fleet/users-*.json")):
        found = json.loads(path.read_text())
        latency, memory = found["latency_s"], found["memory"].values()
        span = f"{max(m['start_mb'] for m in memory):.0f} → {max(m['end_mb'] for m in memory):.0f}"
        rows.append(
            f"| {found['workers']} | {found['seconds']:.0f} | {found['requests']:,} | {sum(found['errors'].values())} | "
            f"{found['equal_but_not_bit_for_bit']} | {found['rate']:.1f} | {latency['p50']:.2f} | {latency['p95']:.2f} | "
            f"{latency['p99']:.2f} | {found['host_cores_busy']:.2f} | {span} |"
        )
    return "\n".join(rows)


def cost_table() -> str:
    """What `benchmarks/fleet.py cost` stored: the medians of one worker more."""
    rows = ["| model | Pss of the first worker, MB | one worker more, MB | its start to ready, s |", "|---|---|---|---|"]
    for path in sorted((ROOT / "reports").glob("*-fleet/cost-*.json")):
        found = json.loads(path.read_text())
        more = median(found["one_more_worker_mb"]), median(found["one_more_worker_ready_s"])
        rows.append(f"| {path.stem.removeprefix('cost-')} | {found['pss_mb'][0][0]:.0f} | {more[0]:.0f} | {more[1]:.1f} |")
    return "\n".join(rows)


def stack_table() -> str:
    """What the tests of tests/stack measured (each leaves a file in reports/scratch/stack)."""
    rows = ["| test | failed of requests | p50 s | p99 s | slowest s | more |", "|---|---|---|---|---|---|"]
    shared = {"test", "time", "requests", "failed", "failures", "not_bit_for_bit", "latency_s"}
    for path in sorted((ROOT / "reports").glob("*-stack/*.json")):
        found = json.loads(path.read_text())
        latency = found.get("latency_s", {})
        count = f"{found['failed']} of {found['requests']:,}" if "requests" in found else "–"
        more = ", ".join(f"{name} {_short(value)}" for name, value in found.items() if name not in shared)
        times = " | ".join(f"{latency[q]:.3f}" if q in latency else "–" for q in ("p50", "p99", "max"))
        rows.append(f"| {found['test'].removeprefix('test_').replace('_', ' ')} | {count} | {times} | {more} |")
    return "\n".join(rows)


def _short(value: object) -> str:
    """A figure, or of several the smallest and the largest."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list) and value:
        return f"{min(value)}…{max(value)}"
    return str(value)


def http_table() -> str:
    """What benchmarks/http.py stored."""
    rows = ["| stage | p50, µs |", "|---|---|"]
    for path in sorted((ROOT / "reports").glob("*-http/*.json")):
        rows += [f"| {stage} | {value:.0f} |" for stage, value in json.loads(path.read_text())["microseconds"].items()]
    return "\n".join(rows)


def truth_table() -> str:
    """What benchmarks/tuner_truth.py stored."""
    [path] = (ROOT / "reports").glob("*-tuner/truth.json")
    return f"```\n{tuner_truth.table(msgspec.json.decode(path.read_bytes(), type=list[tuner_truth.Score]))}\n```"


def prediction_log_table() -> str:
    """What benchmarks/prediction_log.py stored."""
    rows = [
        "| records in the log | offer, µs | processor, µs | one file rewritten: rows | processor, µs |",
        "|---|---|---|---|---|",
    ]
    [path] = (ROOT / "reports").glob("*-prediction-log/growth.json")
    for row in json.loads(path.read_text())["growth"]:
        naive = f"{row['file']:,} | {row['rewritten']:,.0f}" if "file" in row else "– | –"
        rows.append(f"| {row['records']:,} | {row['offer']:.1f} | {row['processor']:.0f} | {naive} |")
    return "\n".join(rows)


def around_table(model: str) -> str:
    """What benchmarks/around.py stored: medians, and ratios to `off` in the same round."""
    [path] = (ROOT / "reports").glob(f"*-around/{model}.json")
    rows = ["| around the prediction | p50, ms | × p50 | × p95 | × processor |", "|---|---|---|---|---|"]
    for name, row in json.loads(path.read_text())["variants"].items():
        ratios = ("{:.2f} [{:.2f}, {:.2f}]".format(*row[f"{figure}_ratio"]) for figure in around.FIGURES)
        rows.append(f"| {name} | {row['p50_ms']:.3g} | {' | '.join(ratios)} |")
    return "\n".join(rows)


def overload_table() -> str:
    """What benchmarks/overload.py stored, a file for each longest wait."""
    head = (
        "longest wait s", "added as", "goodput", "who", "asked", "answered", "refused", "failed", "answer p50, p99 s",
        "refusal p50, p99 ms", "p99 as before after s",
    )  # fmt: skip
    rows = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    runs = [json.loads(path.read_text()) for path in (ROOT / "reports").glob("*-overload/*.json")]
    for found in sorted(runs, key=lambda run: run["longest_wait_s"]):
        for added in ("bulk", "interactive"):
            rows += _overload_rows(found["longest_wait_s"], added, found[f"added {added}"])
    return "\n".join(rows)


def _overload_rows(longest_wait_s: float, added: str, phase: dict[str, Any]) -> list[str]:
    rows = []
    for who, seen in (("half the capacity, interactive", phase["base"]), (f"2.5 capacities, {added}", phase["more"])):
        answer, refusal = seen["answer_s"], seen["refusal_s"]
        late = f"{1e3 * refusal['p50']:.0f}, {1e3 * refusal['p99']:.0f}" if refusal else "–"
        soon = f"{answer['p50']:.2f}, {answer['p99']:.2f}" if answer else "–"
        again = "–" if seen is phase["more"] else "not seen" if phase["recovered_s"] is None else f"{phase['recovered_s']:.1f}"
        rows.append(
            f"| {longest_wait_s:g} | {added} | {100 * phase['goodput']:.0f} % | {who} | {seen['asked']:,} | "
            f"{100 * seen['share']:.1f} % | {seen['refused']:,} | {sum(seen['failed'].values())} | {soon} | {late} | {again} |"
        )
    return rows


def limits_table() -> str:
    """What benchmarks/limits.py stored."""
    [folder] = (ROOT / "reports").glob("*-limits")
    return limits.table(folder)


def study_tables(study: str) -> str:
    """The tables of a study of benchmarks/capacity.py, but for the one with every run; headings are those of NOTES.md."""
    [path] = (ROOT / "reports").glob(f"*-capacity-{study}/table.md")
    tables = path.read_text().partition("\n## Runs\n")[0].partition("\n\n")[2].partition("\n\n")[2]
    return re.sub(r"^## (.*)$", r"*\1*", tables, flags=re.MULTILINE).strip()


def campaign_tables(name: str) -> str:
    """The answer of a campaign of ``fleet tune``, from its summary."""
    [path] = (ROOT / "reports").glob(f"*-{name}/report.md")
    text = path.read_text().partition("## How it was measured")[0].partition("\n\n")[2]
    return re.sub(r"^## (.*)$", r"*\1*", text, flags=re.MULTILINE).strip()


def repeated_table() -> str:
    """What benchmarks/repeated.py stored."""
    [path] = (ROOT / "reports").glob("????-??-??-repeated/table.md")
    return path.read_text()


def pools_table() -> str:
    """What benchmarks/pools.py stored: bodies and answers in each way, relative to inline in the same round."""
    cases = _pools()["bodies"]
    ways = ["yielding", "both", "pool", "executor"]
    rows = [f"| work | inline, ms | bystander p99, ms | {' | '.join(ways)} |", "|---" * (len(ways) + 3) + "|"]
    for work in dict.fromkeys(case.rpartition(", ")[0] for case in cases if case.endswith(", inline")):
        base = cases[f"{work}, inline"]
        found = [cases.get(f"{work}, {way}", {}) for way in ways]
        cells = [f"{row['× own ms']:.2g} / {row['× bystander p99 ms']:.2g}" if row else "–" for row in found]
        rows.append(f"| {work} | {base['own ms']:.2g} | {base['bystander p99 ms']:.2g} | {' | '.join(cells)} |")
    return "\n".join(rows)


def pool_sizes_table() -> str:
    """What benchmarks/pools.py stored of one thread and more."""
    cases = _pools()["sizes"]
    rows = ["| work | threads | done per s | bystander p99, ms | engine's steps per s |", "|---|---|---|---|---|"]
    for case, row in cases.items():
        work, _, threads = case.rpartition(", ")
        figures = (f"{row[name]:,.0f}" for name in ("per s", "bystander p99 ms", "steps per s"))
        rows.append(f"| {work} | {threads} | {' | '.join(figures)} |")
    return "\n".join(rows)


def pool_parts_table() -> str:
    """What benchmarks/pools.py stored of saturation and of log lines."""
    found = _pools()
    rows = ["| part | way | figures | ratios |", "|---|---|---|---|"]
    for part in ("saturation", "log"):
        for way, row in found[part].items():
            figures = ", ".join(f"{name} {value:.3g}" for name, value in row.items() if not name.startswith("×"))
            ratios = ", ".join(f"{name} {value:.2g}" for name, value in row.items() if name.startswith("×"))
            rows.append(f"| {part} | {way} | {figures} | {ratios or '–'} |")
    return "\n".join(rows)


def _pools() -> dict[str, dict[str, dict[str, float]]]:
    [path] = (ROOT / "reports").glob("*-pools/pools.json")
    medians: dict[str, dict[str, dict[str, float]]] = json.loads(path.read_text())["medians"]
    return medians


GENERATED: dict[str, Callable[[], str]] = {
    "pools": pools_table, "pool-sizes": pool_sizes_table, "pool-parts": pool_parts_table,
    "settings": table, "dials": dials_table, "load": load.dials_table, "metrics": metrics_table,
    "engine": engine_table, "bfloat16": bfloat16_table, "stack": stack_table,
    "users": users_table, "cost": cost_table, "http": http_table,
    "truth": truth_table, "limits": limits_table, "prediction-log": prediction_log_table,
    "overload": overload_table,
    "around-demo": partial(around_table, "demo"), "around-none": partial(around_table, "none"),
    "campaign": partial(campaign_tables, "five-workers"), "repeated": repeated_table,
    **{f"study-{study}": partial(study_tables, study) for study in STUDIES},
}  # fmt: skip
DOCUMENTS = ("README.md", "NOTES.md")


def renewed(text: str) -> str:
    """The document with every generated part as it should be."""
    for name in re.findall(r"<!-- /([\w-]+) -->", text):
        make = GENERATED[name]
        before, opening, rest = re.split(rf"(<!-- {name}\b[^>]*-->\n)", text, maxsplit=1)
        text = before + opening + make().strip() + "\n" + rest[rest.index(f"<!-- /{name} -->") :]
    return text


if __name__ == "__main__":
    for document in DOCUMENTS:
        path = ROOT / document
        path.write_text(renewed(path.read_text()))
