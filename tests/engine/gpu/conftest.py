"""Triton's interpreter, as for the kernels."""

from tests.kernels.gpu.conftest import collect_ignore_glob, interpreted  # noqa: F401
