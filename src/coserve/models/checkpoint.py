"""A checkpoint's weights as the decoder wants them, whatever format they are in on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from coserve.errors import ModelError
from coserve.kernels.linear import Weight
from coserve.models.config import ModelConfig
from coserve.models.matrices import EMBEDDING, Matrix
from coserve.models.placement import Placement
from coserve.models.quantization import WeightFormats, floats
from coserve.models.stored import StoredWeights


@dataclass(frozen=True)
class Checkpoint:
    """The tensors that a model of this configuration is made of, in the formats and on the device that it runs in.

    Each method raises `ModelError` naming a tensor that is missing, or of another shape than `config.json` says.
    """

    config: ModelConfig
    stored: StoredWeights
    formats: WeightFormats
    placement: Placement = field(default_factory=Placement)
    made: Mapping[str, Weight] = field(default_factory=dict)  # matrices that are there already, by name

    def matrix(self, matrix: Matrix) -> Weight:
        """[rows of all its modules, columns]."""
        if matrix.name in self.made:
            return self.placement.weight(self.made[matrix.name])
        modules = [self._take(f"{m}.weight", (rows, matrix.columns)) for m, rows in matrix.modules.items()]
        return self.placement.weight(self.formats.matrix(matrix, self.placement.modules(modules)))

    def vector(self, name: str, size: int) -> Tensor:
        """A norm's weights, or a bias."""
        return floats(self._take(name, (size,))).to(self.placement.device, self.formats.dtype)

    def embedding(self) -> Tensor:
        """[vocabulary, hidden]: beside matrices of integers as it is on disk, since a look-up reads but a few rows."""
        shape = (self.config.vocab_size, self.config.hidden_size)
        (stored,) = self.placement.modules([self._take(f"{EMBEDDING}.weight", shape)])
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
