"""coserve serves and fine-tunes language models on one engine, with one copy of the base weights in memory.

    from coserve import Engine, SamplingParams

The names are loaded when they are first used, so that `import coserve` does not bring in torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coserve.engine import Engine, SamplingParams

__version__ = "0.1.0"
__all__ = ["Engine", "SamplingParams", "__version__"]


def __getattr__(name: str) -> Any:
    if name in ("Engine", "SamplingParams"):
        import coserve.engine

        return getattr(coserve.engine, name)
    raise AttributeError(f"module 'coserve' has no attribute {name!r}")
