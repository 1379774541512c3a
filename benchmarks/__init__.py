"""How fast the suite is, compared with what: `python -m benchmarks`."""
