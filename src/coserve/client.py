"""A small client of a running server: what `chat`, `train`, `jobs`, `batches` and `top` need of the HTTP API.

    with Client(find_server(home)) as client:
        for text in client.chat([{"role": "user", "content": "Hello"}]):
            print(text, end="")

Applications use OpenAI's own package; this one is for the command line, where start-up time counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from coserve.address import Server
from coserve.errors import CoserveError

_PAGE = 100  # events asked for at a time

Json = dict[str, Any]


class ApiError(CoserveError):
    """The server's own error, as its envelope says it."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message, param=param, code=code)
        self.status = status


class UnreachableError(CoserveError):
    """Nobody answers at the server's address."""


class Client:
    """A connection to a server. Every method raises `ApiError` or `UnreachableError`."""

    def __init__(self, server: Server, *, timeout: float = 60.0, transport: httpx.BaseTransport | None = None):
        """`timeout` in seconds is for one answer, or for the next part of a stream; `transport` is not HTTP's own."""
        self.server = server
        headers = {"authorization": f"Bearer {server.api_key}"} if server.api_key else {}
        self._http = httpx.Client(
            base_url=server.url, headers=headers, timeout=timeout, trust_env=False, transport=transport
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def health(self) -> Json:
        return self._call("GET", "/health")

    def stats(self) -> Json:
        """`EngineStats` as a dictionary."""
        return self._call("GET", "/coserve/stats")

    def sleep(self) -> Json:
        """`freed_bytes`: of the GPU's memory."""
        return self._call("POST", "/sleep")

    def wake(self) -> Json:
        return self._call("POST", "/wake_up")

    def models(self) -> list[Json]:
        return self._call("GET", "/v1/models")["data"]

    def chat(self, messages: Sequence[Json], *, model: str, **params: Any) -> Iterator[str]:
        """The answer's text, piece by piece, as it is made. `params` are those of a chat completion."""
        body = {"model": model, "messages": list(messages), "stream": True, **params}
        try:
            with self._http.stream("POST", "/v1/chat/completions", json=body) as reply:
                if reply.is_error:
                    reply.read()
                    raise _api_error(reply)
                yield from _deltas(reply)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def upload(self, path: Path, *, purpose: str = "fine-tune") -> Json:
        with path.open("rb") as file:
            return self._call("POST", "/v1/files", data={"purpose": purpose}, files={"file": (path.name, file)})

    def create_job(self, **body: Any) -> Json:
        return self._call("POST", "/v1/fine_tuning/jobs", json=body)

    def job(self, job_id: str) -> Json:
        return self._call("GET", f"/v1/fine_tuning/jobs/{job_id}")

    def jobs(self, limit: int = 20) -> list[Json]:
        """The latest jobs, newest first."""
        return self._call("GET", "/v1/fine_tuning/jobs", params={"limit": limit})["data"]

    def cancel_job(self, job_id: str) -> Json:
        return self._call("POST", f"/v1/fine_tuning/jobs/{job_id}/cancel")

    def create_batch(self, **body: Any) -> Json:
        return self._call("POST", "/v1/batches", json=body)

    def batch(self, batch_id: str) -> Json:
        return self._call("GET", f"/v1/batches/{batch_id}")

    def batches(self, limit: int = 20) -> list[Json]:
        """The latest batches, newest first."""
        return self._call("GET", "/v1/batches", params={"limit": limit})["data"]

    def cancel_batch(self, batch_id: str) -> Json:
        return self._call("POST", f"/v1/batches/{batch_id}/cancel")

    def content(self, file_id: str) -> Iterator[bytes]:
        """A file's content, piece by piece."""
        try:
            with self._http.stream("GET", f"/v1/files/{file_id}/content") as reply:
                if reply.is_error:
                    reply.read()
                    raise _api_error(reply)
                yield from reply.iter_bytes()
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def events(self, job_id: str, *, known: frozenset[str] | set[str] = frozenset()) -> list[Json]:
        """The job's events that are not in `known` (their ids), oldest first."""
        fresh: list[Json] = []
        after: str | None = None
        while True:
            params = {"limit": _PAGE, **({"after": after} if after else {})}
            page = self._call("GET", f"/v1/fine_tuning/jobs/{job_id}/events", params=params)
            new = [event for event in page["data"] if event["id"] not in known]
            fresh += new
            if len(new) < len(page["data"]) or not page.get("has_more") or not new:
                return fresh[::-1]
            after = new[-1]["id"]

    def _call(self, method: str, path: str, **options: Any) -> Json:
        try:
            reply = self._http.request(method, path, **options)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if reply.is_error:
            raise _api_error(reply)
        try:
            return reply.json()
        except ValueError as error:
            raise ApiError(reply.status_code, f"{self.server.url}{path} did not answer with JSON.") from error

    def _unreachable(self, error: httpx.TransportError) -> UnreachableError:
        url = self.server.url
        if isinstance(error, httpx.ConnectError):
            return UnreachableError(f"No server answers at {url}. Start one with `coserve up`, or give --url.")
        what = "took too long to answer" if isinstance(error, httpx.TimeoutException) else "broke off"
        return UnreachableError(f"The server at {url} {what}.")


def _deltas(reply: httpx.Response) -> Iterator[str]:
    """The texts in a stream of chat completion chunks."""
    for line in reply.iter_lines():
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        chunk = json.loads(data)
        if "error" in chunk:
            raise _from_envelope(chunk["error"], reply.status_code)
        for choice in chunk.get("choices", ()):
            if text := choice["delta"].get("content"):
                yield text


def _api_error(reply: httpx.Response) -> ApiError:
    try:
        return _from_envelope(reply.json()["error"], reply.status_code)
    except (ValueError, KeyError, TypeError):
        return ApiError(reply.status_code, f"The server answered {reply.status_code} {reply.reason_phrase}.")


def _from_envelope(error: Json, status: int) -> ApiError:
    return ApiError(status, str(error["message"]), param=error.get("param"), code=error.get("code"))
