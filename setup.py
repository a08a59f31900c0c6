"""Builds the CPU kernels into the wheel. Everything else about the package is in pyproject.toml.

The library is loaded with ctypes, not imported, and is optional: without a C++ compiler coserve runs on PyTorch's own ops.
It is compiled for OpenMP but not linked to a runtime, so that its loops run on the threads PyTorch already has.
"""

from glob import glob

from setuptools import Extension, setup

NATIVE = "src/coserve/kernels/native"

setup(
    ext_modules=[
        Extension(
            "coserve.kernels._native",
            sources=sorted(glob(f"{NATIVE}/*.cpp")),
            depends=glob(f"{NATIVE}/*.h"),
            extra_compile_args=["-O3", "-std=c++17", "-fopenmp", "-g0", "-Wno-psabi"],
            optional=True,
        )
    ]
)
