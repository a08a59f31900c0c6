"""A server with canned answers, for commands that only need something to talk to."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-test"
JOB = {
    "id": "ftjob-1",
    "created_at": 1_760_000_000,
    "status": "succeeded",
    "model": "tiny",
    "fine_tuned_model": "ft:tiny:house:0a1b2c3d",
    "trained_tokens": 4096,
    "error": None,
}
BATCH = {
    "id": "batch-1",
    "created_at": 1_760_000_000,
    "status": "in_progress",
    "request_counts": {"total": 4, "completed": 2, "failed": 1},
    "output_file_id": None,
    "error_file_id": None,
    "errors": None,
}
MISTAKES = {"data": [{"code": "invalid_json_line", "message": "The line is not valid JSON.", "line": 2}]}
EVENTS = [  # newest first, as the API lists them
    {"id": "ftevent-3", "type": "message", "message": "The job has succeeded", "data": {}},
    {
        "id": "ftevent-2",
        "type": "metrics",
        "message": "",
        "data": {"step": 2, "total_steps": 2, "train_loss": 1.5},
    },
    {
        "id": "ftevent-1",
        "type": "metrics",
        "message": "",
        "data": {"step": 1, "total_steps": 2, "train_loss": 2.5},
    },
]
STATS = {
    "chip": "Test CPU",
    "chip_bandwidth": 20e9,
    "chip_flops": 1e12,
    "requests_running": 3,
    "requests_waiting": 1,
    "requests_finished": 42,
    "requests_cancelled": 0,
    "prompt_tokens": 100,
    "output_tokens": 1000,
    "training_tokens": 5000,
    "steps": 900,
    "inference_seconds": 3.0,
    "training_seconds": 5.0,
    "idle_seconds": 2.0,
    "kv_blocks_used": 12,
    "kv_blocks_total": 512,
    "mbu": 0.61,
    "predicted_step_seconds": 0.0042,
    "measured_step_seconds": 0.0045,
    "step_error_median": 0.06,
    "recent_ttft_p50": 0.012,
    "recent_ttft_p99": 0.040,
    "recent_itl_p50": 0.0084,
    "recent_itl_p99": 0.015,
}


class Stub(ThreadingHTTPServer):
    """Remembers the bodies of what was posted, by path."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.posted: list[tuple[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def stub_server() -> Iterator[Stub]:
    with Stub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    server: Stub

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        answers = {
            "/health": {"status": "ok"},
            "/coserve/stats": STATS,
            "/v1/models": {"data": [{"id": "tiny"}, {"id": "ft:tiny:house:0a1b2c3d"}]},
            "/v1/fine_tuning/jobs": {"data": [JOB]},
            "/v1/fine_tuning/jobs/ftjob-1": JOB,
            "/v1/batches": {"data": [BATCH]},
            "/v1/batches/batch-1": BATCH,
            "/v1/batches/batch-2": {**BATCH, "id": "batch-2", "status": "completed", "output_file_id": "file-2"},
            "/v1/batches/batch-3": {**BATCH, "id": "batch-3", "status": "failed", "errors": MISTAKES},
            "/v1/files/file-2/content": {},
            "/v1/fine_tuning/jobs/ftjob-1/events": {"data": EVENTS, "has_more": False},
        }
        self._reply(answers.get(path), public=path == "/health")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        is_json = self.headers["content-type"] == "application/json"
        self.server.posted.append((self.path, json.loads(body) if is_json else body))
        if self.path == "/v1/chat/completions":
            self._stream(("Hello", ", ", "world"))
            return
        answers = {
            "/v1/files": {"id": "file-1"},
            "/v1/batches": {**BATCH, "status": "validating"},
            "/sleep": {"is_sleeping": True, "freed_bytes": 103_400_000_000},
            "/wake_up": {"is_sleeping": False},
            "/v1/batches/batch-1/cancel": {**BATCH, "status": "cancelling"},
            "/v1/fine_tuning/jobs": {**JOB, "status": "queued"},
            "/v1/fine_tuning/jobs/ftjob-1/cancel": {**JOB, "status": "cancelled"},
        }
        self._reply(answers.get(self.path))

    def _reply(self, answer: Any, *, public: bool = False) -> None:
        status = 200
        if not public and self.headers["authorization"] != f"Bearer {KEY}":
            status, answer = 401, _error("Incorrect API key.", "invalid_api_key")
        elif answer is None:
            status, answer = 404, _error("There is no such thing.", "not_found")
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, texts: tuple[str, ...]) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for text in texts:
            chunk = {"choices": [{"delta": {"content": text}}]}
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _error(message: str, code: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}
