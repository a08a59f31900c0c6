"""A GPU: `python -m benchmarks.gpu` prints every table that `docs/benchmarks.md` has of one. A file here is a table."""
