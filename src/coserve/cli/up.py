"""`coserve up`: the whole product at a glance. Serve, fine-tune meanwhile, watch both, compare the answers.

The engine runs in this process. The display and the demo's client run in another one, which speaks HTTP like
everybody else: they cost the engine no time, and a trouble of theirs does not stop it.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing.process import BaseProcess
from typing import Annotated

import typer

from coserve.cli import settings as options
from coserve.cli.options import ApiKey, Home
from coserve.cli.settings import serve_settings

_LAST_WORDS_SECONDS = 3.0


def up(
    model: Annotated[
        str | None,
        typer.Argument(help="A directory as on the hub, or a hub id (default: the built-in model)."),
    ] = None,
    demo_load: Annotated[
        bool, typer.Option("--demo-load", help="Add a small client, so that there is traffic to watch.")
    ] = False,
    example: Annotated[bool, typer.Option(help="Run the example fine-tuning job.")] = True,
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
    log_level: options.LogLevel = None,
) -> None:
    """Serve a model, fine-tune it on the same engine meanwhile, and watch."""
    from coserve.address import Server
    from coserve.cli.companion import Errand, accompany
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
        log_level=log_level,
    )
    companions: list[BaseProcess] = []

    def send_companion(server: Server) -> None:
        errand = Errand(server, example=example, demo_load=demo_load)
        process = multiprocessing.get_context("spawn").Process(target=accompany, args=(errand,), daemon=True)
        process.start()
        companions.append(process)

    try:
        run(settings, on_ready=send_companion, log_to=settings.home / "server.log")
    finally:
        for process in companions:
            process.join(_LAST_WORDS_SECONDS)
            process.terminate()
