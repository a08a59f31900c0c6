"""Asks the built-in model three questions in one batch, at half price: `python examples/batch.py`."""

import io
import json
import tempfile
import time
from pathlib import Path

from openai import OpenAI

from coserve import Engine
from coserve.service import Server, Settings

QUESTIONS = {
    "bandwidth": "How much memory bandwidth does the H100 have?",
    "memory": "How much memory does the MI300X have?",
    "power": "How much power does the H100 draw?",
}


def line(name: str, question: str) -> str:
    body = {"model": "builtin", "messages": [{"role": "user", "content": question}], "temperature": 0}
    return json.dumps({"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body})


def ask(client: OpenAI) -> None:
    lines = "\n".join(line(name, question) for name, question in QUESTIONS.items())
    file = client.files.create(file=("questions.jsonl", io.BytesIO(lines.encode())), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    while batch.status in ("validating", "in_progress", "finalizing"):
        time.sleep(0.2)
        batch = client.batches.retrieve(batch.id)
    print(batch.status, f"{batch.request_counts.completed} of {batch.request_counts.total}")
    for reply in map(json.loads, client.files.content(batch.output_file_id).text.splitlines()):
        print(f"{reply['custom_id']}: {reply['response']['body']['choices'][0]['message']['content']}")


with tempfile.TemporaryDirectory() as home:
    server = Server(
        Settings(home=Path(home), port=0, api_key="sk-cs-example"), lambda: Engine.from_pretrained("builtin")
    )
    server.start()
    try:
        ask(OpenAI(base_url=f"{server.url}/v1", api_key="sk-cs-example"))
    finally:
        server.stop()
