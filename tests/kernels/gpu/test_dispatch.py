"""Tensors on a GPU take the Triton kernels, all the way through a decoder; others never import Triton."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from coserve.engine.batch import Batch
from coserve.engine.segment import Segment
from coserve.kernels import KVCache, differentiable, gpu, linear, lora_linear, reference
from coserve.kernels.gpu.formats import dequantize
from coserve.models.decoder import Decoder
from tests.kernels.gpu.oracle import DEVICE
from tests.kernels.gpu.test_products import packed_as
from tests.tiny import tiny_checkpoint

interpreted = pytest.mark.skipif(
    DEVICE != "cpu", reason="tensors of a CPU stand in for a GPU's: in the interpreter only"
)
STEPS = [("prefill", (0, 0), (20, 9)), ("prefill", (20, 9), (21, 7)), ("decode", (41, 16), (1, 1))]


@pytest.fixture
def as_on_gpu(monkeypatch):
    monkeypatch.setattr(gpu, "on_gpu", lambda tensor: True)
    monkeypatch.setattr(differentiable, "on_gpu", lambda tensor: True)


def logits(decoder: Decoder, *, token_major: bool) -> torch.Tensor:
    """Of prompts in two chunks each, then of a step of both."""
    c = decoder.config
    shape = (c.num_hidden_layers, 8, c.num_key_value_heads, c.head_dim)
    cache = KVCache(*shape, torch.float32, token_major=token_major)
    tokens = torch.randint(0, c.vocab_size, (60,), generator=torch.Generator().manual_seed(1)).tolist()
    tables, out = ([3, 1, 7], [2, 5]), []
    for kind, starts, lengths in STEPS:
        segments = [
            Segment(kind, tokens[start : start + length], start, table)
            for start, length, table in zip(starts, lengths, tables, strict=True)
        ]
        batch = Batch.of(segments)
        with torch.inference_mode():
            out.append(decoder.logits(decoder.forward(batch.token_ids, batch.layout, cache)))
    return torch.cat(out)


@interpreted
def test_a_decoder_s_logits_are_those_of_the_cpu(tmp_path, monkeypatch):
    """With head norms in all layers, and a window in the second."""
    options = {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}
    decoder = Decoder.from_directory(tiny_checkpoint(tmp_path, "qwen3", **options), dtype=torch.float32)
    assert decoder.config.qk_norm and decoder.config.sliding_windows == (None, 24)
    wanted = logits(decoder, token_major=False)
    monkeypatch.setattr(gpu, "on_gpu", lambda tensor: True)
    assert (logits(decoder, token_major=True) - wanted).abs().max() < 1e-4


@interpreted
@pytest.mark.usefixtures("as_on_gpu")
def test_gradients_go_through_the_kernels():
    x, weight = torch.randn(3, 4, 24, requires_grad=True), torch.randn(24, requires_grad=True)
    angle, grad = torch.randn(3, 12), torch.randn(12, 12)

    def chain(f, x, weight):
        turned = f.rotate(f.rms_norm(x, weight, 1e-5), angle.cos(), angle.sin())
        return f.silu_and_mul(turned.flatten(0, 1))

    chain(differentiable, x, weight).backward(grad)
    wide = [t.detach().double().requires_grad_() for t in (x, weight)]
    chain(reference, *wide).backward(grad.double())
    for ours, theirs in zip((x, weight), wide, strict=True):
        assert (ours.grad - theirs.grad).abs().max() < 1e-4


@interpreted
@pytest.mark.usefixtures("as_on_gpu")
@pytest.mark.parametrize("rows", [3, 70])
@pytest.mark.parametrize("kind", ["bfloat16", "float8", "int8", "int4"])
def test_every_matrix_multiplies_with_a_residual_and_gives_gradients(rows, kind):
    weight, (x, residual, grad) = packed_as(kind, 40, 96), (torch.randn(rows, n) for n in (96, 40, 40))
    wide = weight.float() if isinstance(weight, torch.Tensor) else dequantize(weight)
    wanted = residual + x @ wide.t()
    x.requires_grad_(), residual.requires_grad_()
    y = linear(x, weight, None, residual)
    y.backward(grad)
    assert (y - wanted).abs().max() < 1e-4 and torch.equal(residual.grad, grad)
    assert (x.grad - grad @ wide).abs().max() < 1e-4
    with torch.inference_mode():
        plain = linear(x, weight, None, residual.clone())
        for result in (plain, lora_linear(x, weight, None, [], [], residual=residual.clone())):
            assert (result - wanted).abs().max() < 1e-4


def test_a_cpu_refuses_a_matrix_that_was_packed_for_a_gpu():
    with pytest.raises(TypeError, match="packed for a GPU"):
        linear(torch.randn(2, 96), packed_as("int8", 40, 96))


def test_a_cpu_never_pays_for_triton():
    code = (
        "import sys, torch, coserve.engine, coserve.training\n"
        "from coserve.kernels import ops\n"
        "with torch.inference_mode(): ops.rms_norm(torch.ones(2, 4), torch.ones(4), 1e-5)\n"
        "assert 'triton' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
