"""The OpenAI API over HTTP: routes, keys, errors, streams, metrics, and the database of files and jobs.

Here lives everything that is asynchronous and everything that knows HTTP or SQL: it turns bodies into the
engine's requests and the engine's outputs into replies, keeps keys, files and jobs, and ties training jobs to
the database. No tensor, no scheduling and no training step may live here; the engine and the trainer are
spoken to only through `coserve.engine` and `coserve.training`, and what comes from their threads is brought
to the loop by one mailbox.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coserve.service.app import create_app
    from coserve.service.server import Server, run_server, serve
    from coserve.service.settings import Settings

__all__ = ["Server", "Settings", "create_app", "run_server", "serve"]
_HOMES = {"Server": "server", "Settings": "settings", "create_app": "app", "run_server": "server", "serve": "server"}


def __getattr__(name: str) -> Any:
    """Loaded when it is first used: the command line makes keys without an engine."""
    if name in _HOMES:
        return getattr(import_module(f"coserve.service.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'coserve.service' has no attribute {name!r}")
