"""How many forecasts a second the torch runner makes on a GPU, checked against the oracle on the CPU first.

    python -m benchmarks.cuda --sizes mini small base --dtypes float32 bfloat16

Random weights, 400 candles in and 120 out, 1 to 64 forecasts in flight. Beside each figure stands the least time by
the GPU's own ceilings, measured in the same run. The last line is one JSON document. In float32 every greedy path
must be the oracle's, or nothing is measured and the exit status is 1; in bfloat16 the differences are reported.
Without a GPU it says so and measures nothing (`--device cpu` tries the script out on the eager path).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from app.admission import Limits
from app.engine import Engine
from app.model.config import PUBLISHED
from app.model.torch_runner import DTYPES, TorchRunner
from app.model.weights import Checkpoint
from app.work import Forecast
from benchmarks import machine, roofline
from benchmarks.engine import HORIZON, ITEM_BYTES, LOOKBACK, make_checkpoints, make_work, run_engine
from tests import oracle

IN_FLIGHT = (1, 2, 4, 8, 16, 32, 64)
CHECKED, CHECKED_HORIZON = 4, 12
"""Forecasts compared with the oracle, and their candles: the oracle recomputes the window for each."""
SAME = 1e-3
"""Normalised candles nearer than this come from the same tokens; another token moves them by about 1."""


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> roofline.Ceilings:
    """Operations and bytes per second of a large matrix product and a large copy on the device."""
    a, b = (torch.randn(4096, 4096, device=device, dtype=dtype) for _ in range(2))
    source = torch.zeros(256 << 20, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)

    def timed(function: Callable[[], object]) -> float:
        def run() -> None:
            function()
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        return machine.median_seconds(run, repeats=5)

    product_s, copy_s = timed(lambda: a @ b), timed(lambda: target.copy_(source))
    return roofline.Ceilings(2 * len(a) ** 3 / product_s, 2 * source.nbytes / copy_s)


def share_as_oracle(engine: Engine, checkpoint: Checkpoint) -> float:
    """Share of candles, over greedy forecasts made at once, that are the oracle's."""
    rng = np.random.default_rng(0)
    works = [_greedy(make_work(rng, ragged=True)) for _ in range(CHECKED)]
    with engine.reserve() as permit:
        tickets = [permit.submit(work, time.monotonic() + 3600) for work in works]
        made = [ticket.future.result().paths for ticket in tickets]
    wanted = [
        oracle.generate(
            checkpoint, work.history, work.history_stamps, work.future_stamps,
            temperature=1.0, top_k=1, top_p=1.0, sample_count=1, seed=0,
        ).paths
        for work in works
    ]  # fmt: skip
    same = np.abs(np.stack([paths for paths in made if paths is not None]) - np.stack(wanted)) < SAME
    return float(same.all(-1).mean())


def _greedy(work: Forecast) -> Forecast:
    return dataclasses.replace(work, future_stamps=work.future_stamps[:CHECKED_HORIZON], top_k=1)


def bench(name: str, checkpoint: Checkpoint, dtype: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Check one checkpoint in one storage type, then measure it; one row for each number in flight."""
    device = torch.device(options.device)
    ceilings = measure_ceilings(device, DTYPES[dtype])
    began = time.perf_counter()
    runner = TorchRunner(checkpoint, num_slots=options.slots, device=device, dtype=dtype)
    engine = Engine(runner, limits=Limits(max_requests=10**6, max_work=10**9))
    engine.start()
    rows = []
    try:
        engine.prewarm()
        start_s = time.perf_counter() - began
        share = share_as_oracle(engine, checkpoint)
        print(f"{name:22} {dtype:9} ready in {start_s:.1f} s, {100 * share:.1f} % of candles as the oracle", flush=True)
        if dtype == "float32" and share < 1.0:
            sys.exit(f"{name} in float32 does not agree with the oracle: nothing measured")
        cost = roofline.forecast_cost(checkpoint.model_config, checkpoint.tokenizer.config, LOOKBACK, HORIZON, ITEM_BYTES[dtype])
        for in_flight in options.in_flight:
            least_s = cost.seconds(ceilings, HORIZON, min(in_flight, options.slots))
            row = measure(engine, in_flight, options.rounds) | {"roofline_s": least_s}
            rows.append({"size": name, "dtype": dtype, "in_flight": in_flight, "as_oracle": share, **row})
            print(_line(rows[-1]), flush=True)
    finally:
        engine.stop()
    return rows


def measure(engine: Engine, in_flight: int, rounds: int) -> dict[str, float]:
    """Medians over rounds of what `benchmarks.engine` measures, after a round that is not counted."""
    rng = np.random.default_rng(in_flight)
    measured = []
    for _ in range(rounds + 1):
        work = [make_work(rng, ragged=False) for _ in range(max(4, 2 * in_flight))]
        measured.append(run_engine(engine, work, in_flight))
    medians = {key: statistics.median(row[key] for row in measured[1:]) for key in measured[0]}
    return {"per_s": 1 / medians["per_forecast_s"], **medians}


def _line(row: dict[str, Any]) -> str:
    step_ms = 1e3 * row["stage_decode_s"] / HORIZON
    return (
        f"{row['size']:22} {row['dtype']:9} {row['in_flight']:3} in flight  {row['per_s']:8.1f} /s  "
        f"p50 {1e3 * row['p50_s']:7.0f} ms  decode {step_ms:6.2f} ms a step  "
        f"{100 * row['roofline_s'] / row['per_forecast_s']:4.0f} % of roofline"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda", description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["mini", "small", "base"], choices=PUBLISHED)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=DTYPES)
    parser.add_argument("--in-flight", nargs="+", type=int, default=list(IN_FLIGHT))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slots", type=int, default=64, help="rows of the decode batch")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("No CUDA device here: nothing was measured.")
        print(json.dumps({"device": None, "rows": []}))
        return
    device = torch.cuda.get_device_name() if options.device == "cuda" else machine.name()
    rows = []
    for name, checkpoint in make_checkpoints(options.sizes).items():
        for dtype in options.dtypes:
            rows += bench(name, checkpoint, dtype, options)
    print(json.dumps({"device": device, "torch": torch.__version__, "slots": options.slots, "rows": rows}))


if __name__ == "__main__":
    main()
