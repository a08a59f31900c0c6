"""The weights of a model directory as they are on disk, of whichever format."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from torch import Tensor

from coserve.errors import ModelError
from coserve.kernels.linear import Weight
from coserve.kernels.quantized import QuantizedWeight
from coserve.models.awq import Awq
from coserve.models.compressed_tensors import CompressedTensors
from coserve.models.config import ModelConfig
from coserve.models.gguf import GgufFile
from coserve.models.gptq import Gptq
from coserve.models.weights import load_weights, weight_files


class Quantization(Protocol):
    """A format that quantised modules have in safetensors."""

    def read(self, tensors: Mapping[str, Tensor], module: str) -> QuantizedWeight | None:
        """A module's weight; None where it is not quantised."""


QUANTIZATIONS: dict[str, Callable[..., Quantization]] = {
    "gptq": Gptq.from_config,
    "awq": Awq.from_config,
    "compressed-tensors": CompressedTensors.from_config,
}


@dataclass(frozen=True)
class StoredWeights:
    """What is on disk, read when asked for: tensors by Hugging Face's names, without the leading "model."."""

    get: Callable[[str], Weight | None]
    files: Sequence[Path]  # those that decide what `get` gives
    quantized: bool = False  # whether there are matrices of integers among them


def stored_weights(path: Path, config: ModelConfig) -> StoredWeights:
    """The weights of a model directory. Raises `ModelError`, naming the file."""
    described = path / "config.json"
    file = _gguf(path)
    if file is not None:
        content = GgufFile(file, config)
        return StoredWeights(content.get, [described, file], content.quantized)
    tensors = {name.removeprefix("model."): tensor for name, tensor in load_weights(path)}
    files = [described, *weight_files(path)]
    quantization = _quantization(config)
    if quantization is None:
        return StoredWeights(tensors.get, files)
    return StoredWeights(partial(_read, quantization, tensors), files, quantized=True)


def _gguf(path: Path) -> Path | None:
    """The directory's GGUF file, where there are no safetensors beside it."""
    files = sorted(path.glob("*.gguf"))
    if not files or any(path.glob("*.safetensors")):
        return None
    if len(files) > 1:
        raise ModelError(f"{path} has several GGUF files ({', '.join(f.name for f in files)}); keep the one to serve")
    return files[0]


def _quantization(config: ModelConfig) -> Quantization | None:
    if config.quantization is None:
        return None
    method = config.quantization.get("quant_method")
    if method not in QUANTIZATIONS:
        raise ModelError(
            f"config.json: weights quantised by {method or 'an unnamed method'} are not supported; supported are "
            f"{', '.join(QUANTIZATIONS)} and GGUF files, or the checkpoint in bfloat16, float16 or float32"
        )
    return QUANTIZATIONS[method](config.quantization)


def _read(quantization: Quantization, tensors: Mapping[str, Tensor], name: str) -> Weight | None:
    module, _, kind = name.rpartition(".")
    if kind == "weight":
        try:
            found = quantization.read(tensors, module)
        except KeyError as error:
            raise ModelError(f"the checkpoint has no tensor {error.args[0]!r}, which {module!r} needs") from None
        except (RuntimeError, ValueError) as error:  # shapes that do not belong together
            raise ModelError(f"the checkpoint's tensors of {module!r} do not fit together: {error}") from None
        if found is not None:
            return found
    return tensors.get(name)
