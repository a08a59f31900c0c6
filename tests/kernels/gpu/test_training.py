"""A training step whose tensors are all taken for a GPU's: the kernels' gradients are the CPU's."""

from __future__ import annotations

import importlib
import math

import pytest
import torch

from coserve.kernels import differentiable, gpu
from coserve.kernels.gpu import ops
from coserve.kernels.gpu.formats import QuantizedRows, dequantize
from coserve.kernels.quantized import quantize
from coserve.models.decoder import Decoder
from coserve.training import Trainer, TrainingConfig, trainer
from coserve.training.config import LoraConfig
from coserve.training.dropout import RowDropout
from coserve.training.run import machine_for
from tests.kernels.gpu.oracle import DEVICE
from tests.tiny import tiny_checkpoint
from tests.training.test_gradients import sequences

interpreted = pytest.mark.skipif(
    DEVICE != "cpu", reason="tensors of a CPU stand in for a GPU's: in the interpreter only"
)


@pytest.fixture
def as_on_gpu(monkeypatch):
    def pretend() -> None:
        linear = importlib.import_module("coserve.kernels.linear")  # its name is the function's
        for module in (gpu, differentiable, linear, trainer):
            monkeypatch.setattr(module, "on_gpu", lambda tensor: True)

    return pretend


def trained(path, directory, method: str) -> Trainer:
    """Two optimizer steps on a decoder with head norms and grouped heads."""
    decoder = Decoder.from_directory(path, dtype=torch.float32)
    lora = LoraConfig(r=4, lora_alpha=8)
    config = TrainingConfig(method=method, lora=lora, batch_size=2, max_steps=2, warmup_ratio=0, learning_rate=1e-3)
    work = Trainer(machine_for(decoder, 1024), sequences(decoder.config.vocab_size)[:3], config, directory)
    work.run()
    return work


@interpreted
@pytest.mark.parametrize("method", ["lora", "full"])
def test_two_steps_of_training_are_those_of_the_cpu(tmp_path, as_on_gpu, method):
    path = tiny_checkpoint(tmp_path / "model", "qwen3")
    wanted = trained(path, tmp_path / "cpu", method)
    as_on_gpu()
    ours = trained(path, tmp_path / "gpu", method)
    for row, theirs in zip(ours.progress.metrics, wanted.progress.metrics, strict=True):
        for name in ("loss", "grad_norm", "mean_token_accuracy"):
            assert math.isclose(row[name], theirs[name], rel_tol=1e-3), name


def test_dropout_drops_by_the_row_and_scales_the_rest():
    x = torch.ones(300, 40, device=DEVICE)
    whole = ops.dropout(x, 0.25, 7, 0)
    assert set(whole.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert abs((whole == 0).float().mean().item() - 0.25) < 0.02
    assert torch.equal(ops.dropout(x[100:], 0.25, 7, 100), whole[100:])
    assert not torch.equal(ops.dropout(x, 0.25, 8, 0), whole)


@interpreted
def test_an_adapter_s_dropout_is_the_kernel_s(as_on_gpu):
    as_on_gpu()
    x = torch.ones(20, 33)
    whole = RowDropout(0.5, "key", 0)("q_proj", x)
    assert torch.equal(RowDropout(0.5, "key", 9)("q_proj", x[9:]), whole[9:])
    assert not torch.equal(RowDropout(0.5, "key", 0)("k_proj", x), whole)


@interpreted
def test_adapters_of_one_input_share_its_products(as_on_gpu):
    """Outputs and all gradients of two modules side by side, of different ranks and scalings."""
    linear = importlib.import_module("coserve.kernels.linear")
    torch.manual_seed(0)

    def gradients():
        generator = torch.Generator().manual_seed(3)
        x, weight, *leaves = (
            torch.randn(*shape, generator=generator)
            for shape in ((300, 24), (40, 24), (4, 24), (16, 4), (8, 24), (24, 8))
        )
        for tensor in (x, *leaves):
            tensor.requires_grad_()
        modules = {"k": linear.LoraWeights(*leaves[:2], 2.0), "v": linear.LoraWeights(*leaves[2:], 0.5)}
        rows = [linear.LoraRows(0, 300, linear.LoraLayer(modules))]
        y = linear.lora_linear(x, weight, None, [("k", 0, 16), ("v", 16, 40)], rows)
        y.backward(torch.randn(300, 40, generator=generator))
        return y, x.grad, *(leaf.grad for leaf in leaves)

    wanted = gradients()
    as_on_gpu()
    for actual, theirs in zip(gradients(), wanted, strict=True):
        assert (actual - theirs).abs().max() < 1e-4 * theirs.abs().max()


@interpreted
@pytest.mark.parametrize("kind", ["int8", "int4", "float8"])
def test_gradients_through_a_quantised_matrix_are_those_of_its_values(as_on_gpu, kind):
    linear = importlib.import_module("coserve.kernels.linear")
    generator = torch.Generator().manual_seed(3)
    floats = torch.randn(128, 128, generator=generator)
    if kind == "float8":
        rows = QuantizedRows.of_blocks(floats.to(torch.float8_e4m3fn), torch.full((1, 1), 0.5))
    else:
        rows = QuantizedRows.of(quantize(floats, int(kind[-1])), "cpu")
    as_on_gpu()
    x, grad = torch.randn(70, 128, generator=generator, requires_grad=True), torch.randn(70, 128, generator=generator)
    y = linear.lora_linear(x, rows, None, [("q", 0, 128)], [])
    y.backward(grad)
    wide = dequantize(rows)
    assert (y - x @ wide.t()).abs().max() < 2e-4 * y.abs().max()
    assert (x.grad - grad @ wide).abs().max() < 1e-5 * x.grad.abs().max()
