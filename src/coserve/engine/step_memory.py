"""How much of a GPU's memory a step may take at most, beside the model and its cache."""

from __future__ import annotations

from torch import Tensor

from coserve.engine.config import EngineConfig
from coserve.kernels.linear import Weight
from coserve.models.decoder import Decoder

_LIBRARIES = 1 << 30  # bytes: the libraries' own buffers, kernels' code, the captured launches themselves


def reserve(decoder: Decoder, config: EngineConfig) -> int:
    """Bytes for the largest step, the pools of captured ones and what they leave, penalties, and libraries."""
    from coserve.engine.gpu.prompt_graphs import MOST_ROWS  # needs Triton
    from coserve.kernels.gpu.penalties import Penalties

    most, decoding, vocab = config.max_batch_tokens, config.max_num_seqs, decoder.config.vocab_size
    pools = 2 * step_bytes(decoder, decoding, decoding) + step_bytes(decoder, MOST_ROWS, decoding)
    left = 2 * decoding * vocab * decoder.dtype.itemsize + Penalties.bytes(decoding, vocab)
    return step_bytes(decoder, most + decoding, decoding) + pools + left + _LIBRARIES


def step_bytes(decoder: Decoder, rows: int, sampled: int) -> int:
    """The most that lives at a time in a step of so many rows, of which some are sampled from or decode.

    That is in the MLP, or in the choice of tokens; what attention leaves between its programs is added to both.
    """
    from coserve.kernels.gpu.attention import MOST_SPLITS  # needs Triton

    c = decoder.config
    attended, stored = c.num_attention_heads * c.head_dim, 2 * c.num_key_value_heads * c.head_dim
    # The layer's input, the sum with attention, its norm, and what was projected and attended, which are still held;
    # gate and up, and half as much three times: what an adapter adds to gate, then to up, and that before it is scaled.
    row = 3 * c.hidden_size + (attended + stored) + attended + 5 * c.intermediate_size
    mlp = decoder.dtype.itemsize * (rows * row + _widened(decoder, decoder.layers[0].gate_up.weight, rows))
    # The hidden states, those of the rows that are sampled from and their norm; logits; the same in float32, with
    # penalties or as logprobs, and sorted with their places, twice.
    elements = c.hidden_size * (rows + 2 * sampled) + sampled * c.vocab_size
    elements += _widened(decoder, decoder.lm_head, sampled)
    logits = decoder.dtype.itemsize * elements + (4 + 2 * (4 + 8)) * sampled * c.vocab_size
    partial = 4 * sampled * c.num_attention_heads * MOST_SPLITS * (c.head_dim + 2)
    return max(mlp, logits) + partial


def _widened(decoder: Decoder, weight: Weight, rows: int) -> int:
    """Elements of the copy of a matrix in the format that is computed in, which products of many rows take."""
    from coserve.kernels.gpu.products import FEW_PACKED_ROWS, FEW_ROWS

    if isinstance(weight, Tensor):
        copied = rows > FEW_ROWS and weight.dtype != decoder.dtype
    else:
        copied = rows > FEW_PACKED_ROWS
    return weight.shape[0] * weight.shape[1] if copied else 0
