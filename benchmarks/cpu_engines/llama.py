"""llama.cpp through llama-cpp-python's functions: a batch with a token of every stream a step, greedy.

Its defaults, but for the number of threads and the sizes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import llama_cpp
import numpy as np

from benchmarks.cpu_engines.gguf_file import EMBEDDING, HEAD, write_gguf
from benchmarks.cpu_engines.setup import Setup, kv_elements

KV_BYTES = 2  # of an element: float16


class LlamaCpp:
    def __init__(self, setup: Setup):
        file = setup.made(".gguf", lambda path: write_gguf(Path(setup.checkpoint), path, setup.weights))
        config = setup.config()
        self.vocabulary = config["vocab_size"]
        self.weight_bytes, self.token_bytes = matrix_bytes(file), KV_BYTES * kv_elements(config)
        llama_cpp.llama_backend_init()
        of_model = llama_cpp.llama_model_default_params()
        of_model.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(str(file).encode(), of_model)
        if not self.model:
            raise RuntimeError(f"llama.cpp does not load {file}")
        params = llama_cpp.llama_context_default_params()
        params.n_threads = params.n_threads_batch = setup.threads
        params.n_seq_max, params.n_ctx = setup.streams, setup.streams * setup.context
        params.n_batch = max(setup.chunk, params.n_batch)
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError("llama.cpp makes no context")
        self.batch = llama_cpp.llama_batch_init(setup.chunk, 0, 1)

    def token_times(self, prompts: Sequence[Sequence[int]], output: int) -> list[list[float]]:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        begun, times = time.perf_counter(), []
        new: Sequence[Sequence[int]] = prompts
        done = [0] * len(prompts)
        for _ in range(output):
            chosen = self._step(new, done)
            times.append(time.perf_counter() - begun)
            done = [length + len(tokens) for length, tokens in zip(done, new, strict=True)]
            new = [[token] for token in chosen]
        return [times] * len(prompts)

    def _step(self, new: Sequence[Sequence[int]], done: Sequence[int]) -> list[int]:
        """Append to each stream; the likeliest token after each."""
        batch, place = self.batch, 0
        for stream, (tokens, start) in enumerate(zip(new, done, strict=True)):
            for offset, token in enumerate(tokens):
                batch.token[place], batch.pos[place] = token, start + offset
                batch.n_seq_id[place], batch.seq_id[place][0] = 1, stream
                batch.logits[place] = offset == len(tokens) - 1
                place += 1
        batch.n_tokens = place
        if status := llama_cpp.llama_decode(self.context, batch):
            raise RuntimeError(f"llama_decode: {status}")
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits(self.context), (len(new), self.vocabulary))
        return logits.argmax(axis=1).tolist()

    def close(self) -> None:
        llama_cpp.llama_batch_free(self.batch)
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)


def matrix_bytes(file: Path) -> int:
    """Of what a step multiplies with: all but the embedding, if the head is another matrix."""
    from gguf import GGUFReader

    sizes = {tensor.name: int(tensor.n_bytes) for tensor in GGUFReader(file).tensors if len(tensor.shape) > 1}
    return sum(sizes.values()) - (sizes[EMBEDDING] if HEAD in sizes else 0)
