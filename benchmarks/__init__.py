"""How fast the bus is, beside the physical limit and NATS: `python -m benchmarks`; see README.md."""
