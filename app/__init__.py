"""The worker: one model, one process."""
