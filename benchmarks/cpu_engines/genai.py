"""OpenVINO GenAI's continuous batching, stepped by hand, on what optimum-intel exports.

int8: a scale and a zero point a row, the exporter's default. int4: groups of 128 without zero points, the embedding
and the head in int8. bf16: the exporter knows no bfloat16, so float16. The rest is as by default: keys and values in
8 bits.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai

from benchmarks.cpu_engines.setup import Setup, kv_elements

EXPORT = {
    "bf16": ("fp16",),
    "int8": ("int8",),
    "int4": ("int4", "--sym", "--group-size", "128", "--ratio", "1.0", "--group-size-fallback", "adjust"),
}
KV_BYTES = 1  # of an element: an 8-bit integer


class OpenVino:
    def __init__(self, setup: Setup):
        directory = setup.made(".openvino", lambda path: export(Path(setup.checkpoint), path, setup.weights))
        self.weight_bytes = matrix_bytes(directory / "openvino_model.xml")
        self.token_bytes = KV_BYTES * kv_elements(setup.config())
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.max_num_batched_tokens, scheduler.max_num_seqs = setup.chunk, setup.streams
        scheduler.cache_size = 1 + 2 * setup.streams * setup.context * self.token_bytes // 2**30  # GB
        threads = {"INFERENCE_NUM_THREADS": setup.threads}
        self.pipeline = openvino_genai.ContinuousBatchingPipeline(str(directory), scheduler, "CPU", threads)
        self.requests = 0

    def token_times(self, prompts: Sequence[Sequence[int]], output: int) -> list[list[float]]:
        wanted = openvino_genai.GenerationConfig()
        wanted.max_new_tokens, wanted.ignore_eos, wanted.do_sample = output, True, False
        begun = time.perf_counter()
        streams = [self._add(prompt, wanted) for prompt in prompts]
        times: list[list[float]] = [[] for _ in streams]
        while self.pipeline.has_non_finished_requests():
            self.pipeline.step()
            now = time.perf_counter() - begun
            for stream, seen in zip(streams, times, strict=True):
                while stream.can_read():
                    seen += [now] * sum(len(part.generated_ids) for part in stream.read().values())
        return times

    def _add(self, prompt: Sequence[int], wanted: Any) -> Any:
        self.requests += 1
        return self.pipeline.add_request(self.requests, openvino.Tensor(np.array([prompt], dtype=np.int64)), wanted)

    def close(self) -> None:
        del self.pipeline


def export(checkpoint: Path, directory: Path, weights: str) -> None:
    command = [sys.executable, "-m", "optimum.commands.optimum_cli", "export", "openvino", "-m", str(checkpoint)]
    command += ["--task", "text-generation-with-past", "--disable-convert-tokenizer"]
    command += ["--weight-format", *EXPORT[weights], str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    if done.returncode:
        words = done.stderr.strip().splitlines()[-1:]
        raise RuntimeError(f"optimum-intel does not export {checkpoint}: {' '.join(words)}")


def matrix_bytes(model: Path) -> int:
    """Of the constants behind products: the matrices, their scales and zero points, and no embedding but a tied one."""
    behind = {}
    for product in openvino.Core().read_model(model).get_ops():
        if product.get_type_name() == "MatMul":
            for found in _constants(product.input_value(1).get_node()):
                behind[found.get_friendly_name()] = found.get_byte_size()
    return sum(behind.values())


def _constants(node: Any) -> list[Any]:
    """What a matrix is unpacked from; nothing for activations."""
    if node.get_type_name() == "Constant":
        return [node]
    if node.get_type_name() not in ("Convert", "Multiply", "Subtract", "Reshape", "Transpose"):
        return []
    return [constant for place in node.input_values() for constant in _constants(place.get_node())]
