"""What bfloat16 storage does to the model's answers: `python -m benchmarks.bfloat16 [--model DIR --tokenizer DIR]`.

Both runners of the CPU walk the same windows of the bundled real candles, token by token, fed the float32 runner's
greedy choices, so that each step compares like with like. Prints logit errors, agreement of the best token and the
divergence of the distributions; the last line is one JSON document.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.model import weights
from app.model.frames import COLUMNS, fill_missing, normalise, stamp_features
from app.model.native.runner import NativeRunner
from app.pages import pages_for
from app.work import Row, Sampling

LOOKBACK, STEPS = 200, 40
CANDLES = Path(__file__).parents[1] / "tests" / "data" / "candles.csv"


def read_windows(count: int) -> list[tuple[NDArray[np.float32], NDArray[np.int16]]]:
    """Windows of the bundled candles: normalised float32[LOOKBACK, 6], stamps int16[LOOKBACK + STEPS, 5]."""
    with CANDLES.open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    table = np.array([row[1:] for row in rows], np.float64)
    stamps = stamp_features(np.array([row[0] for row in rows], "datetime64[s]"))
    starts = np.linspace(0, len(table) - LOOKBACK - STEPS, count).astype(int)
    windows = []
    for start in starts:
        past = table[start : start + LOOKBACK]
        values = fill_missing({name: past[:, column] for column, name in enumerate(COLUMNS)})
        windows.append((normalise(values).x, stamps[start : start + LOOKBACK + STEPS]))
    return windows


def walk(
    runner: NativeRunner, tokens: NDArray[np.int32], stamps: NDArray[np.int16], steps: int, width: int
) -> NDArray[np.float32]:
    """Logits of every step, float32[steps, 2, width]; `tokens` beyond the history are fed, not drawn."""
    pages = np.arange(pages_for(len(tokens)), dtype=np.int32)
    first = len(tokens) - steps - 1
    runner.prefill(tokens[:first], stamps[:first], pages.tolist())
    made = np.empty((steps, 2, width), np.float32)
    for step in range(steps):
        fed = tokens.copy()  # the row's own draw goes into a copy
        row = Row(fed, stamps, np.full((steps, 2), 0.5), pages, first, Sampling(top_k=1))
        runner.decode([row], [first + step], made[step])
    return made


def greedy(runner: NativeRunner, history: NDArray[np.int32], stamps: NDArray[np.int16], steps: int) -> NDArray[np.int32]:
    """History tokens followed by the runner's own greedy choices, int32[history + steps, 2]."""
    tokens = np.concatenate((history, np.zeros((steps, 2), np.int32)))
    pages = np.arange(pages_for(len(tokens)), dtype=np.int32)
    first = len(history) - 1
    runner.prefill(tokens[:first], stamps[:first], pages.tolist())
    row = Row(tokens, stamps, np.full((steps, 2), 0.5), pages, first, Sampling(top_k=1))
    for step in range(steps):
        runner.decode([row], [first + step])
    return tokens


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    weights_ = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return np.asarray(weights_ / weights_.sum(-1, keepdims=True))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bfloat16", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="models/demo/model")
    parser.add_argument("--tokenizer", default="models/demo/tokenizer")
    parser.add_argument("--windows", type=int, default=20)
    options = parser.parse_args()
    checkpoint = weights.load(options.model, options.tokenizer)
    width = 2**checkpoint.model_config.s1_bits
    exact, half = (NativeRunner(checkpoint, num_slots=1, dtype=dtype) for dtype in ("float32", "bfloat16"))
    exact_logits, half_logits, same_history = [], [], []
    for history, stamps in read_windows(options.windows):
        encoded = exact.encode(history)
        same_history.append((half.encode(history) == encoded).mean())
        tokens = greedy(exact, encoded, stamps, STEPS)
        exact_logits.append(walk(exact, tokens, stamps, STEPS, width))
        half_logits.append(walk(half, tokens, stamps, STEPS, width))
    a, b = np.concatenate(exact_logits), np.concatenate(half_logits)
    p, q = softmax(a), softmax(b)
    document = {
        "checkpoint": checkpoint.model_version,
        "logit_std": float(a.std()),
        "logit_rms_error": float(np.sqrt(np.square(a - b).mean())),
        "same_best_token": float((a.argmax(-1) == b.argmax(-1)).mean()),
        "kl_nats": float((p * (np.log(p) - np.log(q))).sum(-1).mean()),
        "same_history_tokens": float(np.mean(same_history)),
    }
    for key, value in document.items():
        print(f"{key:20} {value if isinstance(value, str) else format(value, '.4g')}")
    print(json.dumps(document))


if __name__ == "__main__":
    main()
