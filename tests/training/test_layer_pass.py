"""A GPU's way through a micro-batch, on a CPU's tensors: gradients against PEFT's whatever is kept or cut."""

from __future__ import annotations

import gc
import math
import weakref

import pytest
import torch

from coserve.training.config import LoraConfig
from coserve.training.layer_pass import Activations, LayerPass, kept_bytes_per_row
from coserve.training.lora import LoraAdapter
from coserve.training.microbatch import MicroBatch
from coserve.training.packs import attend, pack
from tests.training.test_gradients import assert_same_gradients, case, machine_for  # noqa: F401 (case: a fixture)

ALL, NONE = 1 << 30, 0


def run_layers(decoder, adapter, batch, *, kept_bytes: int, seconds: float, key: str | None = None) -> LayerPass:
    micro = MicroBatch.of(sorted(batch, key=lambda s: len(s.tokens)), None)
    work = LayerPass(
        machine_for(decoder),
        micro,
        Activations(decoder, micro.rows + 3, kept_bytes),
        adapter=(lambda row: adapter.layers(key, row)) if adapter else None,
        scale=1 / sum(s.targets for s in batch),
    )
    assert work.ride(100) is None
    while (piece := work.next_slice(seconds)) is not None:
        piece.run()
    return work


def one_layer(decoder, batch) -> int:
    """Bytes in which one layer's graph and a half has room."""
    rows = sum(len(s.tokens) for s in batch)
    return int(1.5 * rows * kept_bytes_per_row(decoder.config, decoder.dtype.itemsize))


@pytest.mark.parametrize("seconds", [math.inf, 0.0])
@pytest.mark.parametrize("kept", ["all", "one", "none"])
def test_gradients_and_loss_equal_pefts(case, kept, seconds):  # noqa: F811
    decoder, adapter, batch, wanted_loss, wanted = case
    for grad in adapter.parameters.grads.values():
        grad.zero_()
    kept_bytes = {"all": ALL, "one": one_layer(decoder, batch), "none": NONE}[kept]
    work = run_layers(decoder, adapter, batch, kept_bytes=kept_bytes, seconds=seconds)
    assert abs(work.loss_sum * work.scale - wanted_loss) < 1e-4 * wanted_loss
    assert_same_gradients(adapter.parameters.grads, wanted)


def test_as_many_layers_are_kept_as_there_is_memory_for(case):  # noqa: F811
    decoder, adapter, batch, _, _ = case
    kinds = []
    micro = MicroBatch.of(batch, None)
    work = LayerPass(
        machine_for(decoder),
        micro,
        Activations(decoder, micro.rows, one_layer(decoder, batch)),
        adapter=lambda row: adapter.layers(None, row),
        scale=1.0,
    )
    while (piece := work.next_slice(math.inf)) is not None:
        piece.run()
        kinds.append(piece.kind)
    forward, backward = ["train-layer"] * 3, ["train-backward", "train-recompute", "train-recompute"]
    assert kinds == [*forward, "train-head", *backward]


@pytest.mark.parametrize("seconds", [math.inf, 0.0])
@pytest.mark.parametrize("kept", ["all", "one"])
def test_what_is_kept_gives_way_at_any_time_and_gradients_are_the_same(case, kept, seconds):  # noqa: F811
    decoder, adapter, batch, _, wanted = case
    micro = MicroBatch.of(sorted(batch, key=lambda s: len(s.tokens)), None)
    kept_bytes = {"all": ALL, "one": one_layer(decoder, batch)}[kept]

    def run(give_way_after: int) -> tuple[int, bool]:
        for grad in adapter.parameters.grads.values():
            grad.zero_()
        workspace = Activations(decoder, micro.rows, kept_bytes)
        scale = 1 / sum(s.targets for s in batch)
        work = LayerPass(
            machine_for(decoder), micro, workspace, adapter=lambda row: adapter.layers(None, row), scale=scale
        )
        pieces, gave = 0, False
        while (piece := work.next_slice(seconds)) is not None:
            piece.run()
            pieces += 1
            if pieces == give_way_after:
                gave = work.give_way()
                assert not work._graphs and not work.give_way()
                assert workspace.kept_bytes == (kept_bytes // 2 if gave else kept_bytes)
        assert_same_gradients(adapter.parameters.grads, wanted)
        return pieces, gave

    pieces, _ = run(0)
    gave = [run(number)[1] for number in range(1, pieces + 1)]
    assert any(gave) and not gave[-1]


def test_a_pass_that_ends_holds_nothing_whatever_was_under_way(case):  # noqa: F811
    """Not even until Python looks for cycles: it may be most of a GPU's memory."""
    decoder, adapter, batch, _, _ = case
    micro = MicroBatch.of(batch, None)

    def freed_after(pieces: int) -> bool:
        """False if there are fewer."""
        workspace = Activations(decoder, micro.rows, ALL)
        work = LayerPass(
            machine_for(decoder), micro, workspace, adapter=lambda row: adapter.layers(None, row), scale=1.0
        )
        for _ in range(pieces):
            piece = work.next_slice(math.inf)
            if piece is None:
                return False
            piece.run()
        held = [weakref.ref(workspace), *(weakref.ref(g.x) for graphs in work._graphs.values() for g in graphs)]
        work.end()
        del work, workspace, piece
        assert not any(ref() is not None for ref in held), pieces
        return True

    gc.collect()
    gc.disable()
    try:
        pieces = 1
        while freed_after(pieces):
            pieces += 1
        assert pieces > 2 * len(decoder.layers)
    finally:
        gc.enable()


def test_how_much_is_kept_is_decided_when_a_pass_begins(case, monkeypatch):  # noqa: F811
    """While a job waits for its turn, another one may have the memory."""
    decoder, adapter, batch, _, _ = case
    micro, free = MicroBatch.of(batch, None), [0]
    monkeypatch.setattr("coserve.training.layer_pass.available_memory", lambda: free[0])
    workspace = Activations(decoder, micro.rows)
    free[0] = ALL
    work = LayerPass(machine_for(decoder), micro, workspace, adapter=lambda row: adapter.layers(None, row), scale=1.0)
    assert work._first_kept == 0 and workspace.kept_bytes > 0


def test_what_a_graph_keeps_is_what_is_counted(case):  # noqa: F811
    """Bytes of the distinct tensors that autograd saves in a layer, against the formula that the budget goes by."""
    decoder, adapter, batch, _, _ = case
    rows, seen, weights = sum(len(s.tokens) for s in batch), {}, set()
    for tensor in decoder.tensors().values():
        weights.add(tensor.untyped_storage().data_ptr())
    for leaf in adapter.parameters.leaves.values():
        weights.add(leaf.untyped_storage().data_ptr())

    def saved(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and tensor.numel() > rows:
            seen[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    micro = MicroBatch.of(batch, None)
    work = LayerPass(
        machine_for(decoder),
        micro,
        Activations(decoder, rows, ALL),
        adapter=lambda row: adapter.layers(None, row),
        scale=1.0,
    )
    work.next_slice(math.inf).run()
    with torch.autograd.graph.saved_tensors_hooks(saved, lambda tensor: tensor):
        work.next_slice(math.inf).run()
    own = work.w.inputs[1].untyped_storage().data_ptr()
    kept = sum(size for pointer, (size, _) in seen.items() if pointer != own) / rows
    counted = kept_bytes_per_row(decoder.config, 4)
    assert 0.7 * counted < kept < 1.5 * counted  # padding, masks and low ranks weigh more in a tiny model


@pytest.mark.parametrize("kept_bytes", [ALL, NONE])
def test_dropout_is_repeated_exactly(case, kept_bytes):  # noqa: F811
    decoder, _, batch, _, _ = case
    config, gradients = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.3), []
    for budget, seconds in ((ALL, math.inf), (kept_bytes, 0.0)):
        adapter = LoraAdapter(decoder.config, config, dtype=torch.float32, weight_decay=0.0, seed=1)
        with torch.no_grad():
            for name, leaf in adapter.parameters.leaves.items():
                if name.endswith(".b"):
                    leaf.fill_(0.02)
        run_layers(decoder, adapter, batch, kept_bytes=budget, seconds=seconds, key="key")
        gradients.append(adapter.parameters.grads)
    assert_same_gradients(*gradients)


@pytest.mark.parametrize("lengths", [(7, 7, 7), (3, 5, 5, 40, 41, 9), (60,)])
@pytest.mark.parametrize("window", [None, 6])
def test_packed_attention_equals_each_sequence_alone_with_its_gradient(lengths, window):
    torch.manual_seed(0)
    rows = sum(lengths)
    leaves = [torch.randn(rows, heads, 8, dtype=torch.float64, requires_grad=True) for heads in (6, 3, 3)]
    grad = torch.randn(rows, 48, dtype=torch.float64)
    attend(*leaves, pack(lengths, torch.device("cpu")), window).backward(grad)
    ours = [leaf.grad for leaf in leaves]
    out, first = [], 0
    for leaf in leaves:
        leaf.grad = None
    for length in lengths:
        where = torch.arange(length)
        back = where.unsqueeze(1) - where
        seen = (back >= 0) & (back < (window or length))
        q, k, v = (leaf[first : first + length].transpose(0, 1).unsqueeze(0) for leaf in leaves)
        one = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)
        out.append(one[0].transpose(0, 1).flatten(1))
        first += length
    torch.cat(out).backward(grad)
    for actual, leaf in zip(ours, leaves, strict=True):
        assert torch.allclose(actual, leaf.grad)


def test_packs_pad_little_and_hold_every_row_once():
    padded, alike = pack((3, 5, 5, 40, 40), torch.device("cpu"))
    assert (padded.first, padded.last, alike.first, alike.last) == (0, 13, 13, 93)
    assert padded.index is not None and sorted(set(padded.index.tolist())) == list(range(13))
    assert alike.index is None
