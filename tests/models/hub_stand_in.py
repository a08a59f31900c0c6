"""The few endpoints of the hub that a snapshot download asks, over a dictionary of files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """`repos`: files by repository id. A `gated` repository needs the `token`."""

    repos: dict[str, dict[str, bytes]]
    gated: frozenset[str] = frozenset()
    token: str = "hf_secret"
    url: str = ""
    downloaded: list[str] = field(default_factory=list)


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve it on a free port of this machine; `hub.url` is set meanwhile."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        repo = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        if repo not in self.hub.repos:
            self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif repo in self.hub.gated and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self._answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif parts[0] == "api" and "tree" in parts:
            self._answer_json([self._entry(path, data) for path, data in self.hub.repos[repo].items()])
        elif parts[0] == "api":
            siblings = [{"rfilename": path} for path in self.hub.repos[repo]]
            self._answer_json({"id": repo, "sha": COMMIT, "siblings": siblings})
        else:
            self._answer_file(repo, "/".join(parts[4:]))

    do_HEAD = do_GET  # noqa: N815 - the standard library's name

    def _answer_file(self, repo: str, path: str) -> None:
        data = self.hub.repos[repo][path]
        if self.command == "GET":
            self.hub.downloaded.append(path)
        self._answer(200, data, {"X-Repo-Commit": COMMIT, "ETag": f'"{_digest(data)}"'})

    def _entry(self, path: str, data: bytes) -> dict:
        return {"type": "file", "path": path, "size": len(data), "oid": _digest(data)}

    def _answer_json(self, content: object) -> None:
        self._answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Quiet."""


def _digest(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
