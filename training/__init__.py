"""Training of the bundled demo checkpoint: synthetic candles, recipe, evaluation. The served code never
imports it."""
