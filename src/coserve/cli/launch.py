"""Starting the engine and its HTTP service in this process: what `up` and `serve` share."""

from __future__ import annotations

import logging
import os
import secrets
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from coserve import __version__
from coserve.address import Server, read_server_file, server_file, write_server_file
from coserve.cli.settings import ServeSettings
from coserve.errors import InvalidRequest

if TYPE_CHECKING:
    from coserve.service import Server as HttpServer
    from coserve.service import Settings

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def run(
    settings: ServeSettings,
    *,
    on_ready: Callable[[Server], None] = lambda server: None,
    log_to: Path | None = None,
) -> None:
    """Load the model and serve until Ctrl-C; logs go to the file, else to standard error.

    Once requests are answered it says where and with which key, writes the server file, and calls `on_ready`.
    Raises `InvalidRequest` for a home that cannot be written to, and what the engine and the service raise.
    """
    _prepare(settings, log_to)
    typer.echo(f"coserve {__version__}: loading {settings.model} and measuring the chip")
    keys = choose_keys(settings)

    from coserve.engine import EngineConfig
    from coserve.service import run_server
    from coserve.service.tiers import read_tiers, tiers_path
    from coserve.service.upstreams.config import read_upstreams_and_keys

    read_tiers(tiers_path(settings.tiers, settings.home))  # a mistake in a file should not cost the loading
    read_upstreams_and_keys(settings.upstreams, settings.home)
    run_server(
        _service_settings(settings, keys),
        settings.model,
        device=settings.device,
        dtype=settings.dtype,
        weights=settings.weights,
        name=settings.name,
        config=EngineConfig(protect=settings.protect),
        on_ready=partial(_tell, settings, keys, on_ready),
    )


def run_gateway(settings: ServeSettings) -> None:
    """Serve the upstreams' models until Ctrl-C. Raises like `run`, and `InvalidRequest` if there are no upstreams."""
    _prepare(settings, None)
    keys = choose_keys(settings)

    from coserve.service import Server, serve
    from coserve.service.no_engine import NO_TRAINING, no_engine
    from coserve.service.upstreams.config import FILE
    from coserve.service.upstreams.pool import read_pool

    if not read_pool(settings.upstreams, settings.home).models():
        where = settings.upstreams or settings.home / FILE
        raise InvalidRequest(f"A gateway needs upstreams with models; {where} names none.", param="upstreams")
    server = Server(_service_settings(settings, keys), no_engine, training=NO_TRAINING)
    serve(server, on_ready=partial(_tell, settings, keys, lambda server: None))


def _prepare(settings: ServeSettings, log_to: Path | None) -> None:
    _make_home(settings.home)
    _start_log(settings.log_level, log_to)


def _service_settings(settings: ServeSettings, keys: Keys) -> Settings:
    from coserve.service import Settings

    return Settings(
        home=settings.home,
        host=settings.host,
        port=settings.port,
        api_key=keys.configured,
        tiers=settings.tiers,
        upstreams=settings.upstreams,
    )


def _tell(settings: ServeSettings, keys: Keys, on_ready: Callable[[Server], None], http: HttpServer) -> None:
    """Requests are answered: say where and with which key."""
    keep = http.new_key or keys.kept
    server = Server(reachable(http.url), keys.configured or keep, os.getpid())
    write_server_file(settings.home, Server(server.url, keep, server.pid))
    typer.echo(f"serving {http.engine.name} at {server.url}/v1")
    typer.echo(f"API key: {keys.describe(http.new_key, server_file(settings.home))}")
    on_ready(server)


@dataclass(frozen=True)
class Keys:
    """Which API keys a server starts with. Those in its database are valid whatever this says."""

    configured: str | None = None  # valid as long as this process runs
    kept: str | None = None  # made by the service at an earlier start, and written to the server file
    given: bool = False  # the configured one is the user's own

    def describe(self, new_key: str | None, where: Path) -> str:
        """What to print. A key is printed once: when it is made."""
        if self.given:
            return "as given"
        if new_key:
            return f"{new_key}\n(printed this once; kept in {where})"
        if self.configured:
            return f"{self.configured}\n(until the server stops)"
        return f"as printed at the first start\n(kept in {where})"


def choose_keys(settings: ServeSettings) -> Keys:
    """The user's key if there is one, else that which the service made, or will make, at its first start.

    Where that one is lost (a database, but no server file), a key for this run only.
    """
    from coserve.service.settings import DATABASE

    last = read_server_file(settings.home)
    kept = last.api_key if last else None
    if settings.api_key:
        return Keys(settings.api_key, kept, given=True)
    if kept is None and (settings.home / DATABASE).exists():
        return Keys(f"sk-cs-{secrets.token_urlsafe(32)}")
    return Keys(kept=kept)


def reachable(url: str) -> str:
    """An address that this machine can connect to, for one that listens on all of its addresses."""
    return url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")


def _make_home(home: Path) -> None:
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        server_file(home).touch(mode=0o600)
    except OSError as error:
        raise InvalidRequest(f"Cannot write to {home}: {error.strerror}.", param="home") from error


def _start_log(level: str, file: Path | None) -> None:
    handler = logging.FileHandler(file, encoding="utf-8") if file else logging.StreamHandler(sys.stderr)
    logging.basicConfig(format=LOG_FORMAT, level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it tells of its plugins at every start
