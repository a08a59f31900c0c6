"""`coserve gateway`: the HTTP API in front of other servers; no engine, no torch, up in a moment."""

from __future__ import annotations

from coserve.cli import settings as options
from coserve.cli.options import ApiKey, Home
from coserve.cli.settings import serve_settings


def gateway(
    upstreams: options.Upstreams = None,
    home: Home = None,
    host: options.Host = None,
    port: options.Port = None,
    api_key: ApiKey = None,
    config: options.Config = None,
    tiers: options.Tiers = None,
    log_level: options.LogLevel = None,
) -> None:
    """Serve the models of other OpenAI-compatible servers, with this one's keys, tiers, limits and ledger."""
    from coserve.cli.launch import run_gateway

    run_gateway(
        serve_settings(
            config,
            upstreams=upstreams,
            home=home,
            host=host,
            port=port,
            api_key=api_key,
            tiers=tiers,
            log_level=log_level,
        )
    )
