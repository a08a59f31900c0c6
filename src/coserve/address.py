"""Where a server is, and how to be let in: its start writes it into the home directory, and clients read it there."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

DEFAULT_URL = "http://127.0.0.1:8000"


@dataclass(frozen=True)
class Server:
    """Where a server is and how to be let in."""

    url: str  # without "/v1"
    api_key: str | None = None
    pid: int | None = None


def server_file(home: Path) -> Path:
    return home / "server.json"


def write_server_file(home: Path, server: Server) -> None:
    """Remember the server that was started last, readable by its owner only: the file may hold an API key."""
    home.mkdir(parents=True, exist_ok=True)
    path = server_file(home)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump(asdict(server), file)
    draft.replace(path)


def read_server_file(home: Path) -> Server | None:
    """The server that was started last with this home, or None if there is none to be read."""
    try:
        said = json.loads(server_file(home).read_text(encoding="utf-8"))
        return Server(str(said["url"]), said.get("api_key"), said.get("pid"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def find_server(home: Path, *, url: str | None = None, api_key: str | None = None) -> Server:
    """The server to talk to: what is given, else COSERVE_URL and COSERVE_API_KEY, else the last started."""
    last = read_server_file(home) or Server(DEFAULT_URL)
    url = url or os.environ.get("COSERVE_URL")
    api_key = api_key or os.environ.get("COSERVE_API_KEY")
    if url is None:
        return Server(last.url, api_key or last.api_key, last.pid)
    url = url.rstrip("/").removesuffix("/v1").rstrip("/")
    return Server(url, api_key or (last.api_key if url == last.url else None))
