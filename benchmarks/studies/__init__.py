"""Studies of a real fleet in containers: what is compared, how it is measured, what comes of it (``benchmarks.capacity``)."""
