"""Gradients against PEFT's, on the same batch in float32: whatever the slices and whatever rides along."""

from __future__ import annotations

import math

import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from coserve.engine.batch import Batch
from coserve.errors import InvalidRequest
from coserve.kernels.quantized import dequantize
from coserve.models.decoder import Decoder
from coserve.roofline import Chip, Estimator, Roofline
from coserve.training.attention import attention, attention_backward
from coserve.training.config import LoraConfig, TrainingConfig
from coserve.training.data import TrainSequence
from coserve.training.lora import LoraAdapter
from coserve.training.microbatch import MicroBatch, group_by_tokens
from coserve.training.passes import Machine
from coserve.training.slices import Pass, Workspace
from coserve.training.trainer import full_parameters
from tests.tiny import tiny_checkpoint

LENGTHS = (37, 5, 64, 21)


def machine_for(decoder: Decoder, blocks: int = 32) -> Machine:
    chip = Chip("test", "float32", 1e9, 1e9)
    return Machine(
        decoder,
        decoder.new_cache(blocks),
        list(range(blocks)),
        Estimator(Roofline(chip)),
    )


def sequences(vocab: int) -> list[TrainSequence]:
    generator = torch.Generator().manual_seed(5)
    out = []
    for n in LENGTHS:
        tokens = torch.randint(3, vocab, (n,), generator=generator).tolist()  # not the padding token
        learn = (torch.rand(n, generator=generator) < 0.7).tolist()
        learn[-1] = True
        out.append(TrainSequence(tuple(tokens), tuple(learn)))
    return out


def oracle_loss(model, batch: list[TrainSequence]) -> torch.Tensor:
    total = sum(s.targets for s in batch)
    loss = torch.zeros(())
    for s in batch:
        labels = torch.tensor([t if ok else -100 for t, ok in zip(s.tokens, s.learn, strict=True)])
        logits = model(torch.tensor([s.tokens])).logits[0]
        loss = loss + torch.nn.functional.cross_entropy(logits[:-1], labels[1:], reduction="sum")
    return loss / total


@pytest.fixture(scope="module", params=["llama", "llama-bfloat16", "qwen2", "qwen3", "mistral-window"])
def case(request, tmp_path_factory):
    """A model, PEFT on it with the same initial adapter (B not zero), and PEFT's gradients."""
    family, _, variant = request.param.partition("-")
    overrides = {"window": {"sliding_window": 20}, "bfloat16": {"dtype": torch.bfloat16}}.get(variant, {})
    path = tiny_checkpoint(tmp_path_factory.mktemp("m"), family, num_hidden_layers=3, **overrides)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    return with_peft(model, Decoder.from_directory(path, dtype=torch.float32))


def with_peft(model, decoder: Decoder):
    adapter = LoraAdapter(decoder.config, LoraConfig(r=4, lora_alpha=8), dtype=torch.float32, weight_decay=0.0, seed=1)
    with torch.no_grad():
        for name, leaf in adapter.parameters.leaves.items():
            if name.endswith(".b"):
                leaf.copy_(torch.randn(leaf.shape, generator=torch.Generator().manual_seed(len(name))) * 0.05)
    model = get_peft_model(model, PeftConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules="all-linear"))
    weights = {}
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parts = name.split(".")
            layer, module, which = parts[4], parts[6], parts[7][-1].lower()
            weights[f"{layer}.{module}.{which}"] = parameter
    with torch.no_grad():
        for name, parameter in weights.items():
            parameter.copy_(adapter.parameters.leaves[name])
    batch = sequences(decoder.config.vocab_size)
    loss = oracle_loss(model, batch)
    loss.backward()
    return decoder, adapter, batch, loss.item(), {n: p.grad for n, p in weights.items()}


def run_pass(decoder, adapter, batch, *, seconds: float, ride: int = 0) -> float:
    """The batch as one micro-batch; slices of about `seconds`; `ride` rows at a time go through a batch before."""
    machine = machine_for(decoder)
    micro = MicroBatch.of(batch, machine.blocks)
    layers = (lambda row: adapter.layers(None, row)) if adapter else None
    work = Pass(
        machine,
        micro,
        Workspace(decoder, micro.rows + 3),
        adapter=layers,
        scale=1 / sum(s.targets for s in batch),
    )
    for _ in range(3):
        trip = work.ride(ride) if ride else None
        if trip is not None:
            packed = Batch.of(trip.segments)
            with torch.inference_mode():
                decoder.forward(packed.token_ids, packed.layout, machine.cache, packed.adapters, trip.keep)
            trip.done()
    while (piece := work.next_slice(seconds)) is not None:
        piece.run()
    return work.loss_sum * work.scale


def assert_same_gradients(actual: dict, wanted: dict, tolerance: float = 1e-4) -> None:
    assert actual.keys() == wanted.keys()
    for name, gradient in wanted.items():
        difference = (actual[name] - gradient).norm() / gradient.norm()
        assert difference < tolerance, (name, difference)


@pytest.mark.parametrize(("seconds", "ride"), [(math.inf, 0), (0.0, 0), (2e-3, 0), (0.0, 17), (math.inf, 40)])
def test_gradients_and_loss_equal_pefts(case, seconds, ride):
    decoder, adapter, batch, wanted_loss, wanted = case
    for grad in adapter.parameters.grads.values():
        grad.zero_()
    loss = run_pass(decoder, adapter, batch, seconds=seconds, ride=ride)
    assert abs(loss - wanted_loss) < 1e-4 * wanted_loss
    assert_same_gradients(adapter.parameters.grads, wanted)


# The forward rounds activations, to 15 bits by row for int8 and to 8 bits by 32 elements for int4; PEFT's does not,
# nor does a plain product in its place.
@pytest.mark.parametrize(
    ("weights", "plain", "tolerance"),
    [("int8", False, 2e-3), ("int4", False, 0.2), ("int8", True, 1e-4), ("int4", True, 1e-4)],
)
def test_gradients_of_an_adapter_on_quantised_weights_equal_pefts(tmp_path, monkeypatch, weights, plain, tolerance):
    if plain:

        def by_floats(x, weight, bias, residual=None):
            y = torch.nn.functional.linear(x, dequantize(weight), bias)
            return y if residual is None else residual + y

        monkeypatch.setattr("coserve.kernels.quantized.product", by_floats)
    path = tiny_checkpoint(tmp_path, "qwen2", num_hidden_layers=3)
    decoder = Decoder.from_directory(path, weights=weights)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    model.load_state_dict(decoder.state_dict())
    decoder, adapter, batch, wanted_loss, wanted = with_peft(model, decoder)
    loss = run_pass(decoder, adapter, batch, seconds=2e-3, ride=17)
    assert abs(loss - wanted_loss) < tolerance * wanted_loss
    assert_same_gradients(adapter.parameters.grads, wanted, tolerance)


def test_quantised_weights_themselves_are_not_trained(tmp_path):
    decoder = Decoder.from_directory(tiny_checkpoint(tmp_path), weights="int4")
    with pytest.raises(InvalidRequest, match=r"weights in int4 .* bf16"):
        full_parameters(decoder, 0.0)


def test_gradients_of_all_weights_equal_transformers(tmp_path):
    path = tiny_checkpoint(tmp_path, "qwen3", tie_word_embeddings=True)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    decoder = Decoder.from_directory(path, dtype=torch.float32)
    batch = sequences(decoder.config.vocab_size)
    oracle_loss(model, batch).backward()
    parameters = full_parameters(decoder, 0.0)
    run_pass(decoder, None, batch, seconds=1e-3)
    wanted = {n: p.grad for n, p in model.named_parameters()}
    with torch.no_grad():  # the gradients in the place of the weights, to be named as a checkpoint names them
        for name, leaf in parameters.leaves.items():
            leaf.copy_(parameters.grads[name])
    assert_same_gradients(decoder.state_dict(), wanted)


def test_dropout_is_repeated_exactly_by_the_recomputation(case):
    decoder, _, batch, _, _ = case
    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.3)
    gradients = []
    for seconds in (math.inf, 0.0):
        adapter = LoraAdapter(decoder.config, config, dtype=torch.float32, weight_decay=0.0, seed=1)
        with torch.no_grad():
            for name, leaf in adapter.parameters.leaves.items():
                if name.endswith(".b"):
                    leaf.fill_(0.02)
        machine = machine_for(decoder)
        micro = MicroBatch.of(batch, machine.blocks)
        work = Pass(
            machine,
            micro,
            Workspace(decoder, micro.rows),
            adapter=lambda row, adapter=adapter: adapter.layers("key", row),
            scale=1.0,
        )
        while (piece := work.next_slice(seconds)) is not None:
            piece.run()
        gradients.append(adapter.parameters.grads)
    assert_same_gradients(*gradients)
    plain = LoraAdapter(decoder.config, config, dtype=torch.float32, weight_decay=0.0, seed=1)
    run_pass(decoder, plain, batch, seconds=math.inf)
    assert not torch.allclose(plain.parameters.grads["0.q_proj.b"], gradients[0]["0.q_proj.b"], rtol=1e-2)


def test_micro_batches_hold_every_sequence_once_within_the_limit():
    batch = [TrainSequence((1,) * n, (True,) * n) for n in (100, 3, 50, 16, 17, 64, 1)]
    groups = group_by_tokens(batch, 96)
    assert sorted(len(s.tokens) for g in groups for s in g) == [1, 3, 16, 17, 50, 64, 100]
    for group in groups:
        assert len(group) == 1 or sum(-(-len(s.tokens) // 16) * 16 for s in group) <= 96


def test_default_configuration_is_sound():
    assert TrainingConfig().lora.scaling == 2.0


@pytest.mark.parametrize(("length", "window"), [(5, None), (300, None), (300, 40), (600, 257)])
def test_attention_and_its_gradient_equal_autograds_in_float64(length, window):
    torch.manual_seed(0)
    q, k, v, grad = (torch.randn(2, h, length, 16, dtype=torch.float64) for h in (6, 3, 3, 6))
    leaves = [t.clone().requires_grad_() for t in (q, k, v)]
    where = torch.arange(length)
    seen = where <= where.unsqueeze(1)
    if window:
        seen &= where > where.unsqueeze(1) - window
    wanted = torch.nn.functional.scaled_dot_product_attention(*leaves, attn_mask=seen, enable_gqa=True)
    wanted.backward(grad)
    out, saved = attention(q, k, v, window)
    assert torch.allclose(out, wanted)
    for actual, leaf in zip(attention_backward(saved, grad), leaves, strict=True):
        assert torch.allclose(actual, leaf.grad)
