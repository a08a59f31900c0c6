"""How many tokens of KV cache a model is given to serve from."""

from __future__ import annotations

import torch

from coserve.engine.config import EngineConfig
from coserve.engine.step_memory import reserve
from coserve.kernels import BLOCK_SIZE
from coserve.kernels.device import is_gpu
from coserve.kernels.memory import available_memory
from coserve.models.decoder import Decoder

_MOST_BYTES_ON_A_CPU = 4 << 30
_SHARE_OF_A_GPU = 0.85  # of what is free after the weights, less what steps need; the rest is for training and others


def cache_tokens(decoder: Decoder, config: EngineConfig) -> int:
    """As configured, or what a share of the free memory holds: but never more than requests could use."""
    if config.kv_cache_tokens is not None:
        return max(BLOCK_SIZE, config.kv_cache_tokens)
    cost = decoder.cost
    by_memory = _bytes(decoder, config) // (cost.layers * cost.kv_width * cost.kv_bytes)
    most_useful = config.max_num_seqs * decoder.max_positions
    return max(BLOCK_SIZE, min(by_memory, most_useful))


def _bytes(decoder: Decoder, config: EngineConfig) -> int:
    if is_gpu(decoder.device):
        torch.cuda.empty_cache()  # PyTorch keeps what measuring took
        free, _ = torch.cuda.mem_get_info(decoder.device)
        return max(0, int(_SHARE_OF_A_GPU * free) - reserve(decoder, config))
    return min(_MOST_BYTES_ON_A_CPU, available_memory() // 4)
