"""How fast one worker's engine is on one thread, against the naive oracle, the reference and the machine.

    taskset -c 0 python -m benchmarks.engine --sizes mini small --reference CHECKOUT --out reports/…/engine.json

Random weights, 400 candles in and 120 out (ragged: 200–600 and 60–180, the same work on average). Everything is
measured in interleaved rounds and ratios are taken within a round; absolute figures mean nothing elsewhere.
`small` runs twice: with a context that holds 400 + 120, and with its own 512, where the last steps roll and
recompute their window. The last line is one JSON document. `--reference` is a checkout of the reference
implementation (with what it imports installed); it is run on the same weights.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from app.admission import Limits
from app.engine import Engine
from app.model.config import PUBLISHED
from app.model.modules import random_checkpoint
from app.model.native.runner import NativeRunner
from app.model.weights import Checkpoint
from app.permit import Ticket
from app.work import Forecast, Outcome
from benchmarks import machine, roofline
from tests import oracle

LOOKBACK, HORIZON = 400, 120
IN_FLIGHT = (1, 4, 8, 16, 32)
ROOMY_CONTEXT = 1024
ITEM_BYTES = {"float32": 4, "bfloat16": 2}
TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def make_checkpoints(sizes: list[str]) -> dict[str, Checkpoint]:
    """Checkpoints by the name under which they are reported."""
    made = {}
    for size in sizes:
        checkpoint = random_checkpoint(PUBLISHED[size], seed=0)
        if checkpoint.max_context < LOOKBACK + HORIZON - 1:
            made[f"{size} rolling at {checkpoint.max_context}"] = checkpoint
            checkpoint = dataclasses.replace(checkpoint, max_context=ROOMY_CONTEXT)
        made[size] = checkpoint
    return made


def make_work(rng: np.random.Generator, *, ragged: bool) -> Forecast:
    lookback = int(rng.integers(LOOKBACK // 2, LOOKBACK * 3 // 2)) if ragged else LOOKBACK
    horizon = int(rng.integers(HORIZON // 2, HORIZON * 3 // 2)) if ragged else HORIZON
    stamps = _stamps(lookback + horizon)
    history = rng.standard_normal((lookback, 6)).astype(np.float32)
    return Forecast(history, stamps[:lookback], stamps[lookback:], seed=int(rng.integers(1 << 30)))


def _stamps(count: int) -> np.ndarray[Any, np.dtype[np.int16]]:
    minutes = 5 * np.arange(count)
    fields = (minutes % 60, minutes // 60 % 24, minutes // 1440 % 7, 1 + minutes // 1440 % 28, np.full(count, 6))
    return np.stack(fields, 1).astype(np.int16)


def run_engine(engine: Engine, work: list[Forecast], in_flight: int) -> dict[str, float]:
    """Closed loop: `in_flight` forecasts at once until all work is done. Seconds per forecast, latencies."""
    began = time.perf_counter()
    waiting = list(reversed(work))
    tickets: list[Ticket] = []
    outcomes: list[Outcome] = []
    with engine.reserve() as permit:
        while waiting or tickets:
            while waiting and len(tickets) < in_flight:
                tickets.append(permit.submit(waiting.pop(), time.monotonic() + 3600))
            outcomes.append(tickets.pop(0).future.result())
    seconds = time.perf_counter() - began
    latencies = [sum(outcome.stages.values()) for outcome in outcomes]
    return {
        "per_forecast_s": seconds / len(work),
        "p50_s": statistics.median(latencies),
        "max_s": max(latencies),
        **{f"stage_{name}_s": _mean_stage(outcomes, name) for name in outcomes[0].stages},
    }


def _mean_stage(outcomes: list[Outcome], name: str) -> float:
    return statistics.fmean(outcome.stages[name] for outcome in outcomes)


def run_oracle(checkpoint: Checkpoint, work: Forecast) -> float:
    """Seconds of one forecast by the naive oracle (whole window recomputed at every step)."""
    began = time.perf_counter()
    oracle.generate(
        checkpoint, work.history, work.history_stamps, work.future_stamps, temperature=1.0, top_k=0, top_p=0.9,
        sample_count=1, seed=work.seed,
    )  # fmt: skip
    return time.perf_counter() - began


def load_reference(folder: Path, checkpoint: Checkpoint) -> Callable[[Forecast], float]:
    """The reference implementation on the same weights: a function from work to seconds."""
    sys.path.insert(0, str(folder))
    from model import Kronos, KronosTokenizer  # type: ignore[import-not-found]  # the checkout's own package
    from model.kronos import auto_regressive_inference  # type: ignore[import-not-found]

    tokenizer = KronosTokenizer(**checkpoint.tokenizer_config.as_dict()).eval()
    tokenizer.load_state_dict(checkpoint.tokenizer.state_dict())
    model = Kronos(**checkpoint.model_config.as_dict()).eval()
    model.load_state_dict(checkpoint.model.state_dict())

    def run(work: Forecast) -> float:
        x = torch.from_numpy(work.history)[None]
        past, future = (torch.from_numpy(s.astype(np.float32))[None] for s in (work.history_stamps, work.future_stamps))
        began = time.perf_counter()
        with torch.no_grad():
            auto_regressive_inference(
                tokenizer, model, x, past, future, checkpoint.max_context, len(work.future_stamps),
                5, 1.0, 0, 0.9, 1, False,
            )  # fmt: skip
        return time.perf_counter() - began

    return run


def bench(name: str, checkpoint: Checkpoint, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All rows of one checkpoint: each round measures everything once, in the same order."""
    engines = {}
    for dtype in options.dtypes:
        runner = NativeRunner(checkpoint, num_slots=options.slots, dtype=dtype)
        engines[dtype] = Engine(runner, limits=Limits(max_work=10**9))
        engines[dtype].start()
        engines[dtype].prewarm()
    reference = load_reference(options.reference, checkpoint) if options.reference else None
    baselines: dict[str, list[float]] = {"oracle": [], "reference": []}
    measured: dict[tuple[str, str, int], list[dict[str, float]]] = {}
    for number in range(options.rounds):
        rng = np.random.default_rng(number)
        if not options.no_oracle:
            baselines["oracle"].append(run_oracle(checkpoint, make_work(rng, ragged=False)))
        if reference:
            baselines["reference"].append(reference(make_work(rng, ragged=False)))
        for shape in ("uniform",) if "rolling" in name else ("uniform", "ragged"):
            for in_flight in options.in_flight:
                work = [make_work(rng, ragged=shape == "ragged") for _ in range(max(4, 2 * in_flight))]
                for dtype, engine in engines.items():
                    row = run_engine(engine, work, in_flight)
                    row["roofline_s"] = roofline_seconds(checkpoint, dtype, in_flight, options.slots)
                    for baseline, seconds in baselines.items():
                        if seconds:
                            row[f"times_{baseline}"] = seconds[-1] / row["per_forecast_s"]
                    row["fraction"] = row["roofline_s"] / row["per_forecast_s"]
                    measured.setdefault((dtype, shape, in_flight), []).append(row)
                    print(_line(name, dtype, shape, in_flight, row), flush=True)
    for engine in engines.values():
        engine.stop()
    return [
        {"size": name, "dtype": dtype, "shape": shape, "in_flight": in_flight, "rounds": rows}
        | {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        for (dtype, shape, in_flight), rows in measured.items()
    ] + [{"size": name, "baseline": key, "seconds": seconds} for key, seconds in baselines.items() if seconds]


def roofline_seconds(checkpoint: Checkpoint, dtype: str, in_flight: int, slots: int) -> float:
    """Least seconds per forecast by the ceilings of this moment. Rolled windows are not counted in."""
    rows = min(in_flight, slots)
    cost = roofline.forecast_cost(
        checkpoint.model_config, checkpoint.tokenizer.config, LOOKBACK, HORIZON, ITEM_BYTES[dtype]
    )
    read = machine.read_bandwidth(int(cost.working_set(rows)), repeats=5)
    ceilings = roofline.Ceilings(machine.gemm_flops(TORCH_DTYPES[dtype]), max(read, machine.copy_bandwidth(repeats=1)))
    return cost.seconds(ceilings, HORIZON, rows)


def _line(name: str, dtype: str, shape: str, in_flight: int, row: dict[str, float]) -> str:
    ratios = "  ".join(f"{row[key]:6.1f}× {key[6:]}" for key in sorted(row) if key.startswith("times_"))
    return (
        f"{name:22} {dtype:9} {shape:8} {in_flight:3} in flight  {1 / row['per_forecast_s']:7.2f} /s  "
        f"{1e3 * row['per_forecast_s']:8.1f} ms each  p50 {1e3 * row['p50_s']:7.0f} ms  max {1e3 * row['max_s']:7.0f} ms  "
        f"{100 * row['fraction']:4.0f} % of roofline  {ratios}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["mini", "small"], choices=PUBLISHED)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=ITEM_BYTES)
    parser.add_argument("--in-flight", nargs="+", type=int, default=list(IN_FLIGHT))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slots", type=int, default=8, help="rows of the decode batch")
    parser.add_argument("--reference", type=Path, help="a checkout of the reference implementation")
    parser.add_argument("--no-oracle", action="store_true", help="skip the naive oracle (it is slow)")
    parser.add_argument("--out", type=Path, help="also write the JSON document here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    ceilings = {
        "gemm_float32_flops": machine.gemm_flops(torch.float32),
        "gemm_bfloat16_flops": machine.gemm_flops(torch.bfloat16),
        "copy_bytes_per_s": machine.copy_bandwidth(),
        "read_bytes_per_s": machine.read_bandwidth(256 << 20),
    }
    print(machine.name(), {key: f"{value:.3g}" for key, value in ceilings.items()}, flush=True)
    rows = []
    for name, checkpoint in make_checkpoints(options.sizes).items():
        rows += bench(name, checkpoint, options)
    document = {"machine": machine.name(), "ceilings": ceilings, "slots": options.slots, "rows": rows}
    text = json.dumps(document)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
