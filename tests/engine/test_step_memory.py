"""What is reserved for a step is what lives in it at a time, with the GPU's own operations, in Triton's interpreter."""

from __future__ import annotations

import weakref
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from triton.runtime.interpreter import GridExecutor

from coserve.engine import EngineConfig
from coserve.engine.batch import Batch
from coserve.engine.gpu.choice import Asked, choose
from coserve.engine.segment import Segment
from coserve.engine.step_memory import reserve, step_bytes
from coserve.kernels import KVCache, gpu
from coserve.kernels.gpu.penalties import Penalties
from coserve.models.adapter import load_adapter
from tests.kernels.gpu.conftest import interpreted  # noqa: F401
from tests.kernels.gpu.oracle import DEVICE
from tests.kernels.gpu.test_loaded import loaded
from tests.tiny import random_adapter, tiny_checkpoint

pytestmark = pytest.mark.skipif(
    DEVICE != "cpu", reason="tensors of a CPU stand in for a GPU's: in the interpreter only"
)


class Living(TorchDispatchMode):
    """The most bytes that tensors made within it took at a time."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        before = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in before | self._seen:
                    self._add(storage, storage._cdata, storage.nbytes())
        return out

    def _add(self, storage, key: int, size: int) -> None:
        self._seen.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


@pytest.fixture
def uncounted(monkeypatch):
    """The copies that the interpreter makes of a kernel's arguments."""
    launch = GridExecutor.__call__

    def launch_uncounted(self, *args, **options):
        with _disable_current_modes():
            return launch(self, *args, **options)

    monkeypatch.setattr(GridExecutor, "__call__", launch_uncounted)


def most_in_a_step(decoder, segments: list[Segment]) -> int:
    """Bytes, as a GPU's runner goes through a step."""
    c, asked = decoder.config, sum(segment.sample for segment in segments)
    shape = (c.num_hidden_layers, 40, c.num_key_value_heads, c.head_dim)
    cache, batch = KVCache(*shape, decoder.dtype, token_major=True), Batch.of(segments)
    by_row = (torch.ones(asked), torch.zeros(asked, dtype=torch.int32), torch.full((asked,), 0.9), torch.zeros(asked))
    table, slots = Penalties.empty(asked, c.vocab_size, "cpu"), torch.arange(asked, dtype=torch.int32)
    everything = Asked(filtered=True, shaped=True, told=True)
    with torch.inference_mode(), Living() as living:
        hidden = decoder.forward(batch.token_ids, batch.layout, cache, batch.adapters)[batch.logit_rows]
        choose(decoder.logits(hidden), (*by_row, torch.rand(asked)), everything, table, slots)
    return living.most


@pytest.mark.parametrize("weights", ["bf16", "int4"])
@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.usefixtures("uncounted")
def test_a_step_takes_what_is_reserved_for_it_and_not_much_less(tmp_path, monkeypatch, weights, adapted):
    sizes = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2}
    decoder = loaded(tiny_checkpoint(tmp_path / "tiny", "llama", dtype=torch.bfloat16, **sizes), weights)
    layers = None
    if adapted:
        path = random_adapter(tmp_path / "adapter", decoder.config, 4)
        layers = load_adapter("one", path, decoder.config, decoder.dtype, decoder.device).layers
    prompt = [Segment("prefill", list(range(70)), 0, list(range(10)), layers, sample=True)]
    decoding = [Segment("decode", [5 + n], 20, [10 + n, 20 + n], layers, sample=True) for n in range(4)]
    monkeypatch.setattr(gpu, "on_gpu", lambda tensor: True)
    monkeypatch.setattr(decoder, "_native", None)  # a CPU's
    most_in_a_step(decoder, decoding)  # makes what stays, too
    assert most_in_a_step(decoder, decoding) < step_bytes(decoder, 4, 4)
    reserved = step_bytes(decoder, 74, 5)
    assert 0.5 * reserved < most_in_a_step(decoder, [*prompt, *decoding]) < reserved


def llama_8b() -> SimpleNamespace:
    config = SimpleNamespace(
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        hidden_size=4096,
        intermediate_size=14336,
        vocab_size=128256,
    )
    gate_up, head = (
        torch.empty(rows, 4096, dtype=torch.bfloat16, device="meta") for rows in (2 * 14336, config.vocab_size)
    )
    layer = SimpleNamespace(gate_up=SimpleNamespace(weight=gate_up))
    return SimpleNamespace(config=config, dtype=torch.bfloat16, layers=[layer], lm_head=head)


def test_a_large_model_s_reserve_grows_with_its_steps():
    model, config = llama_8b(), EngineConfig().on("cuda")
    assert 3e9 < reserve(model, config) < 4e9
    wider = EngineConfig(max_batch_tokens=16384)
    assert reserve(model, wider) - reserve(model, config) == pytest.approx(8192 * 2 * (3 * 4096 + 10240 + 5 * 14336))
    model.layers[0].gate_up.weight = SimpleNamespace(shape=(2 * 14336, 4096))  # packed: a copy in bfloat16
    widened = 2 * 2 * 14336 * 4096
    assert widened < reserve(model, wider) - reserve(llama_8b(), wider) < 2 * widened, "in graphs with prompts, too"


def test_penalties_have_memory_reserved_before_anybody_asks_for_them(monkeypatch):
    model, config = llama_8b(), EngineConfig().on("cuda")
    reserved, table = reserve(model, config), Penalties.empty(config.max_num_seqs, 128256, "meta")
    monkeypatch.setattr(Penalties, "bytes", lambda slots, vocab: 0)
    assert reserved - reserve(model, config) == sum(t.nbytes for t in (table.seen, table.biases, table.strengths))
