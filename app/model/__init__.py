"""Kronos: candles → tokens → next tokens → candles. Knows the maths; no requests, queues or settings."""
