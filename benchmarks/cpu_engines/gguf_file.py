"""A GGUF file of a Llama checkpoint's weights, for llama.cpp: bfloat16, Q8_0, or Q4_0 with the rest in Q8_0.

It has no vocabulary: whoever runs it speaks in token ids.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
from gguf.quants import quantize

Array = np.ndarray[Any, Any]

# By weights: format of the layers' matrices, of the embedding and the head, and what the file calls itself.
FORMATS = {
    "bf16": (GGMLQuantizationType.BF16, GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "int8": (GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "int4": (GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q4_0),
}
EMBEDDING, HEAD = "token_embd.weight", "output.weight"
OUTER = {"model.embed_tokens.weight": EMBEDDING, "lm_head.weight": HEAD, "model.norm.weight": "output_norm.weight"}
INNER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(checkpoint: Path, path: Path, weights: str) -> None:
    """Raises `ValueError` for a checkpoint that is not a plain Llama in bfloat16."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    layer_format, outer_format, file_type = FORMATS[weights]
    writer = GGUFWriter(path, "llama")
    _describe(writer, config)
    writer.add_file_type(file_type)
    writer.add_quantization_version(2)
    for file in sorted(checkpoint.glob("*.safetensors")):
        for name, array in bfloat16_tensors(file):
            if name == "lm_head.weight" and config.get("tie_word_embeddings"):
                continue
            called = gguf_name(name)
            if array.ndim == 1:
                writer.add_tensor(called, array)
                continue
            kind = outer_format if called in (EMBEDDING, HEAD) else layer_format
            writer.add_tensor(called, quantize(pairs_together(name, array, config), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(name: str) -> str:
    """ "model.layers.3.mlp.up_proj.weight" -> "blk.3.ffn_up.weight" """
    if name in OUTER:
        return OUTER[name]
    layer, _, rest = name.removeprefix("model.layers.").partition(".")
    part, _, kind = rest.rpartition(".")
    if part not in INNER or kind != "weight":
        raise ValueError(f"{name} is not a weight of a plain Llama")
    return f"blk.{layer}.{INNER[part]}.weight"


def pairs_together(name: str, array: Array, config: dict[str, Any]) -> Array:
    """Queries' and keys' rows as llama.cpp rotates them: the two elements of a rotated pair are neighbours there, and
    half a head apart in the checkpoint."""
    if not name.endswith(("q_proj.weight", "k_proj.weight")):
        return array
    rows, columns = array.shape
    dim = _head_dim(config)
    halves = array.reshape(rows // dim, 2, dim // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows, columns)


def bfloat16_tensors(file: Path) -> Iterator[tuple[str, Array]]:
    """The tensors of a safetensors file as float32. NumPy has no bfloat16: it is the upper half of a float32."""
    with open(file, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    data = np.memmap(file, np.uint8, "r", offset=8 + length)
    for name, about in header.items():
        if name == "__metadata__":
            continue
        if about["dtype"] != "BF16":
            raise ValueError(f"{name} is {about['dtype']}, not BF16")
        first, last = about["data_offsets"]
        upper = data[first:last].view(np.uint16).astype(np.uint32)
        yield name, (upper << 16).view(np.float32).reshape(about["shape"])


def _describe(writer: GGUFWriter, config: dict[str, Any]) -> None:
    rope = config.get("rope_parameters") or {}
    kind = (config.get("rope_scaling") or rope).get("rope_type", "default")
    biases = config.get("attention_bias") or config.get("mlp_bias")
    if config.get("architectures") != ["LlamaForCausalLM"] or kind != "default" or biases:
        raise ValueError("not a plain LlamaForCausalLM")
    heads = config["num_attention_heads"]
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads", heads))
    writer.add_key_length(_head_dim(config))
    writer.add_value_length(_head_dim(config))
    writer.add_rope_dimension_count(_head_dim(config))
    writer.add_rope_freq_base(config.get("rope_theta") or rope.get("rope_theta") or 10000.0)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])


def _head_dim(config: dict[str, Any]) -> int:
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
