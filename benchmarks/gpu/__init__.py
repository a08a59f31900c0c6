"""A GPU: `python -m benchmarks.gpu` prints every table that `docs/benchmarks.md` has of one."""
