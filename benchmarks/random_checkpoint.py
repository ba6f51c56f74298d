"""Writes a checkpoint of a published size with random weights: `python -m benchmarks.random_checkpoint mini DIR`.

Shapes and cost are those of the published model; what it forecasts means nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from app.model.config import PUBLISHED
from app.model.modules import random_checkpoint, save


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.random_checkpoint", description=__doc__)
    parser.add_argument("size", choices=PUBLISHED)
    parser.add_argument("folder", type=Path, help="gets the folders model/ and tokenizer/")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    checkpoint = random_checkpoint(PUBLISHED[options.size], options.seed)
    save(checkpoint.model, checkpoint.model_config, options.folder / "model")
    save(checkpoint.tokenizer, checkpoint.tokenizer_config, options.folder / "tokenizer")
    print(f"KRONOS_MODEL={options.folder / 'model'} KRONOS_TOKENIZER={options.folder / 'tokenizer'}")


if __name__ == "__main__":
    main()
