"""`coserve serve MODEL`: an engine and its HTTP API, until Ctrl-C."""

from __future__ import annotations

from typing import Annotated

import typer

from coserve.cli import settings as options
from coserve.cli.options import ApiKey, Home
from coserve.cli.settings import serve_settings


def serve(
    model: Annotated[
        str | None,
        typer.Argument(help="A directory as on the hub, a hub id, or builtin.", show_default=False),
    ] = None,
    home: Home = None,
    host: options.Host = None,
    port: options.Port = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    weights: options.Weights = None,
    api_key: ApiKey = None,
    protect: options.Protect = None,
    config: options.Config = None,
    name: options.Name = None,
    tiers: options.Tiers = None,
    upstreams: options.Upstreams = None,
    log_level: options.LogLevel = None,
) -> None:
    """Serve MODEL over the OpenAI API; fine-tuning jobs train on the same engine."""
    from coserve.cli.launch import run

    settings = serve_settings(
        config,
        model=model,
        home=home,
        host=host,
        port=port,
        device=device,
        dtype=dtype,
        weights=weights,
        api_key=api_key,
        protect=protect,
        name=name,
        tiers=tiers,
        upstreams=upstreams,
        log_level=log_level,
    )
    if model is None and settings.model == "builtin" and config is None:
        raise typer.BadParameter("name a model: a directory, a hub id, or builtin", param_hint="MODEL")
    run(settings)
