"""A checkpoint's weights as the decoder wants them, whatever format they are in on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from coserve.errors import ModelError
from coserve.kernels.linear import Weight
from coserve.kernels.quantized import QuantizedWeight, dequantize
from coserve.models.config import ModelConfig
from coserve.models.matrices import EMBEDDING, Matrix
from coserve.models.quantization import WeightFormats
from coserve.models.stored import StoredWeights


@dataclass(frozen=True)
class Checkpoint:
    """The tensors that a model of this configuration is made of, in the formats that it runs in.

    Each method raises `ModelError` naming a tensor that is missing, or of another shape than `config.json` says.
    """

    config: ModelConfig
    stored: StoredWeights
    formats: WeightFormats
    made: Mapping[str, QuantizedWeight] = field(default_factory=dict)  # matrices that are there already, by name

    def matrix(self, matrix: Matrix) -> Weight:
        """[rows of all its modules, columns]."""
        if matrix.name in self.made:
            return self.made[matrix.name]
        modules = [self._take(f"{m}.weight", (rows, matrix.columns)) for m, rows in matrix.modules.items()]
        return self.formats.matrix(matrix, modules)

    def vector(self, name: str, size: int) -> Tensor:
        """A norm's weights, or a bias."""
        return _floats(self._take(name, (size,))).to(self.formats.dtype)

    def embedding(self) -> Tensor:
        """[vocabulary, hidden]: beside matrices of integers as it is on disk, since a look-up reads but a few rows."""
        stored = self._take(f"{EMBEDDING}.weight", (self.config.vocab_size, self.config.hidden_size))
        if self.formats.quantized and isinstance(stored, Tensor):
            return stored
        return self.formats.dense(stored)

    def _take(self, name: str, shape: Sequence[int]) -> Weight:
        weight = self.stored.get(name)
        if weight is None:
            raise ModelError(f"the checkpoint has no tensor {name!r}, which {self.config.architecture} needs.")
        if tuple(weight.shape) != tuple(shape):
            raise ModelError(f"tensor {name!r} has the shape {list(weight.shape)}; config.json says {list(shape)}.")
        return weight


def _floats(weight: Weight) -> Tensor:
    return dequantize(weight) if isinstance(weight, QuantizedWeight) else weight
