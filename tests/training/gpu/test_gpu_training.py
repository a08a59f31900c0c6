"""On a GPU: the CPU's loss curve, exact resumption, repeated dropout, and slices between steps."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from coserve.engine.background_queue import BackgroundQueue
from coserve.engine.batch import Batch, Segment
from coserve.models.decoder import Decoder
from coserve.roofline import Chip, Estimator, Roofline
from coserve.training import LoraConfig, Trainer, TrainingConfig
from coserve.training.checkpoint import latest_checkpoint
from coserve.training.run import machine_for
from tests.tiny import tiny_checkpoint
from tests.training.test_gradients import sequences

CONFIG = TrainingConfig(
    lora=LoraConfig(r=4, lora_alpha=8),
    n_epochs=10,
    batch_size=2,
    learning_rate=2e-3,
    warmup_ratio=0.1,
    micro_batch_tokens=64,
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"), "qwen3")


def trainer(checkpoint, directory, device="cuda", config=CONFIG, *, weights="auto", kept=None, dtype=torch.float32):
    decoder = Decoder.from_directory(checkpoint, device=device, dtype=dtype, weights=weights)
    machine = replace(machine_for(decoder, 128), activation_bytes=kept)
    return Trainer(machine, sequences(decoder.config.vocab_size), config, directory)


def losses(work: Trainer) -> torch.Tensor:
    return torch.tensor([row["loss"] for row in work.progress.metrics])


@pytest.mark.parametrize("kept", [None, 0])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_loss_curve_is_the_cpus(checkpoint, tmp_path, method, kept):
    config = replace(CONFIG, method=method, learning_rate=2e-3 if method == "lora" else 5e-4)
    wanted, ours = (
        trainer(checkpoint, tmp_path / device, device, config, kept=kept if device == "cuda" else None)
        for device in ("cpu", "cuda")
    )
    for work in (wanted, ours):
        work.run()
    assert losses(wanted)[-1] < 0.95 * losses(wanted)[0]
    assert torch.allclose(losses(ours), losses(wanted), rtol=2e-3)


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_an_adapter_on_quantised_weights_learns_as_on_a_cpu(checkpoint, tmp_path, weights):
    """A CPU rounds activations on their way into such a product; a GPU does not."""
    wanted, ours = (
        trainer(checkpoint, tmp_path / device, device, weights=weights, dtype=None) for device in ("cpu", "cuda")
    )
    for work in (wanted, ours):
        work.run()
    assert torch.allclose(losses(ours), losses(wanted), rtol=0.1)


def test_in_bfloat16_it_learns_as_in_float32(checkpoint, tmp_path):
    wide, narrow = (trainer(checkpoint, tmp_path / str(d), dtype=d) for d in (torch.float32, torch.bfloat16))
    for work in (wide, narrow):
        work.run()
    assert torch.allclose(losses(narrow), losses(wide), rtol=0.1)


def test_a_run_that_was_cut_off_goes_on_with_the_same_dropout(checkpoint, tmp_path):
    config = replace(CONFIG, lora=LoraConfig(r=4, lora_dropout=0.2), checkpoint_every=5)
    whole = trainer(checkpoint, tmp_path / "whole", config=config)
    whole.run()
    first = trainer(checkpoint, tmp_path / "cut", config=config)
    while first.progress.step < 12:
        first.next_slice(0.001).run()
    first._wait_for_writer()
    found = latest_checkpoint(first.checkpoints)
    assert found is not None and all(tensor.device.type == "cpu" for tensor in found[1].values())
    second = trainer(checkpoint, tmp_path / "cut", config=config, kept=0)  # recomputes, with the same dropout
    assert second.progress.step >= 10  # metrics come late, and the first run may have gone further
    second.run()
    assert torch.allclose(losses(second), losses(whole), rtol=1e-3)
    for name, master in whole.parameters.masters.items():
        assert torch.allclose(master, second.parameters.masters[name], rtol=1e-2, atol=1e-4)
    assert second.adapter is not None
    second.adapter.save(tmp_path / "adapter", "tiny")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()


class Steps:
    """Decodes three sequences greedily, step by step, on the stream of the caller."""

    def __init__(self, decoder: Decoder):
        self.decoder, self.cache = decoder, decoder.new_cache(48)
        self.tokens = [list(range(5, 5 + n)) for n in (3, 17, 40)]
        self.blocks = [list(range(16 * i, 16 * i + 16)) for i in range(3)]
        self.done = [0, 0, 0]

    def step(self) -> None:
        segments = [
            Segment("decode" if done else "prefill", tokens[done:], done, blocks, sample=True)
            for tokens, done, blocks in zip(self.tokens, self.done, self.blocks, strict=True)
        ]
        batch, device = Batch.of(segments), self.decoder.device
        with torch.inference_mode():
            hidden = self.decoder.forward(batch.token_ids.to(device), batch.layout.to(device), self.cache)
            chosen = self.decoder.logits(hidden[batch.logit_rows.to(device)]).argmax(-1).tolist()
        for i, token in enumerate(chosen):
            self.done[i] = len(self.tokens[i])
            self.tokens[i].append(token)


def test_steps_and_slices_on_one_gpu_do_what_each_does_alone(checkpoint, tmp_path):
    alone = trainer(checkpoint, tmp_path / "alone")
    alone.run()
    wanted = Steps(alone.machine.decoder)
    for _ in range(60):
        wanted.step()

    work = trainer(checkpoint, tmp_path / "together")
    device = work.machine.device
    queue = BackgroundQueue.on(device, Estimator(Roofline(Chip("test", "float32", 1e12, 1e13))))
    queue.add(work)
    steps, charged = Steps(work.machine.decoder), 0.0
    with torch.cuda.stream(torch.cuda.Stream(device, priority=-1)):
        for _ in range(60):
            for _ in range(4):
                charged += queue.run(math.inf, at_least_one=True)
            steps.step()
        while queue:
            charged += queue.run(math.inf, at_least_one=True)
    assert steps.tokens == wanted.tokens
    assert work.finished and torch.allclose(losses(work), losses(alone), rtol=1e-3)
    assert charged > 0 and {"train-layer", "train-backward"} <= queue._estimator.corrections.keys()


def test_nothing_waits_for_the_gpu_within_a_slice(checkpoint, tmp_path):
    """PyTorch raises where an operation would make the CPU wait."""
    work = trainer(checkpoint, tmp_path, config=replace(CONFIG, max_steps=4))
    while work.progress.step < 2:  # what is made once is made
        work.next_slice(math.inf).run()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        while (piece := work.next_slice(math.inf)) is not None and work.progress.step < 3:
            piece.run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
