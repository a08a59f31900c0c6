"""A replica's passes: what must be so whatever the constants are."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coserve.chips import catalogue, find_chip
from coserve.chips.spec import ChipSpec, MemoryLevel
from coserve.planner.constants import FITTED
from coserve.planner.layout import Layout
from coserve.planner.replica import USABLE, Replica, arithmetic_format, matmul_rate
from coserve.planner.shape import known_models, load_shape

H100 = find_chip("H100 SXM")
LLAMA_70B, LLAMA_8B = load_shape("Llama-3.1-70B"), load_shape("Llama-3.1-8B")

shapes = st.sampled_from(known_models()).map(load_shape)
chips = st.sampled_from(catalogue())
layouts = st.builds(Layout, st.sampled_from([1, 2, 4, 8]), st.integers(1, 4))
batches, contexts = st.integers(1, 512), st.integers(1, 100_000)


def with_memory(chip: ChipSpec, times: float = 1.0, **more: object) -> ChipSpec:
    """The chip with so many times its bandwidth."""
    levels = tuple(MemoryLevel(m.name, m.capacity, m.bandwidth * times) for m in chip.memory)
    return replace(chip, memory=levels, **more)  # type: ignore[arg-type]


@settings(deadline=None)
@given(shapes, chips, layouts, batches, contexts, st.floats(1.0, 10.0))
def test_more_bandwidth_never_slows_a_step(shape, chip, layout, batch, context, times) -> None:
    slow = Replica(shape, chip, layout).decode(batch, context)
    fast = Replica(shape, with_memory(chip, times), layout).decode(batch, context)
    assert fast.total <= slow.total * (1 + 1e-9)
    assert fast.memory <= slow.memory


@settings(deadline=None)
@given(shapes, chips, layouts, batches, contexts)
def test_more_work_never_takes_less_time(shape, chip, layout, batch, context) -> None:
    replica = Replica(shape, chip, layout)
    one = replica.decode(batch, context).total
    assert one <= replica.decode(batch + 1, context).total <= replica.decode(batch + 1, context + 100).total
    assert replica.prompt(context).total <= replica.prompt(context + 1).total


@settings(deadline=None)
@given(shapes, chips, layouts, batches, contexts)
def test_the_parts_of_a_step_add_up(shape, chip, layout, batch, context) -> None:
    step = Replica(shape, chip, layout).decode(batch, context)
    assert step.total == pytest.approx(max(step.memory, step.arithmetic) + step.links + step.latency)
    assert min(step.memory, step.arithmetic, step.latency) > 0


@settings(deadline=None)
@given(shapes, chips, layouts, batches, contexts)
def test_a_prompt_that_joins_a_step_costs_less_than_alone(shape, chip, layout, batch, context) -> None:
    replica = Replica(shape, chip, layout)
    share = replica.prompt_share(replica.decode(batch, context), context)
    assert 0 <= share <= replica.prompt(context).total


def test_a_single_stream_is_bound_by_the_bytes_of_the_weights() -> None:
    """Llama-3.1-8B in 16 bits on an H100: 16 GB less the embedding, at 3.35 TB/s."""
    step = Replica(LLAMA_8B, H100).decode(1, 100)
    bytes_read = (LLAMA_8B.parameters() - LLAMA_8B.embedding) * 2
    assert step.memory == pytest.approx(bytes_read / (3.35e12 * FITTED.memory), rel=0.01)
    assert step.bound == "memory bandwidth"


def test_a_long_prompt_is_bound_by_arithmetic() -> None:
    prompt = Replica(LLAMA_8B, H100).prompt(4096)
    flops = 2 * 4096 * LLAMA_8B.active_parameters()
    assert prompt.bound == "arithmetic"
    assert flops / matmul_rate(H100, "bfloat16") / FITTED.arithmetic < prompt.arithmetic


def test_tensor_parallel_chips_share_bytes_and_pay_for_messages() -> None:
    alone, four = Replica(LLAMA_8B, H100), Replica(LLAMA_8B, H100, Layout(tp=4))
    assert four.decode(1, 100).memory == pytest.approx(alone.decode(1, 100).memory / 4)
    assert alone.decode_pass(1, 100).messages == 0
    assert four.decode_pass(1, 100).messages == 2 * 32 * 2  # two collectives a layer, log2(4) messages each
    assert Replica(LLAMA_8B, find_chip("Trainium1"), Layout(tp=4)).decode_pass(1, 100).messages == 2 * 32 * 6  # a ring


def test_keys_and_values_are_copied_where_there_are_fewer_heads_than_chips() -> None:
    eight, sixteen = (Replica(LLAMA_70B, find_chip("GB200"), Layout(tp=n)) for n in (8, 16))
    assert sixteen.sequence_bytes(1000) == 2 * eight.sequence_bytes(1000)
    assert sixteen.decode_pass(1, 1000).cache == eight.decode_pass(1, 1000).cache


def test_latent_attention_keeps_one_head_whatever_the_chips() -> None:
    deepseek = load_shape("DeepSeek-V3")
    tensor = Replica(deepseek, H100, Layout(tp=8), "float8").decode_pass(8, 1000)
    data = Replica(deepseek, H100, Layout(dp=8), "float8").decode_pass(8, 1000)
    assert data.cache == pytest.approx(tensor.cache / 8)
    assert data.weights > tensor.weights  # attention's weights are copied


def test_slots_are_what_fits_beside_the_weights() -> None:
    replica = Replica(LLAMA_8B, H100)
    each = 2 * 32 * 8 * 128 * 2 * 1000  # keys and values, layers, heads, width, bytes, tokens
    room = 80e9 * USABLE - LLAMA_8B.weight_bytes("bfloat16")
    assert replica.slots(1000) == int(room / each)
    assert Replica(LLAMA_70B, H100).slots(1000) == 0


def test_stages_halve_the_batch_of_a_pass_not_its_weights() -> None:
    one, two = Replica(LLAMA_8B, H100, Layout(tp=2)), Replica(LLAMA_8B, H100, Layout(tp=2, pp=2))
    assert two.decode_pass(64, 100).weights == one.decode_pass(64, 100).weights
    assert two.decode_pass(64, 100).cache == one.decode_pass(32, 100).cache
    assert two.prompt_share(two.decode(64, 100), 4000) == pytest.approx(
        one.prompt_share(one.decode(32, 100), 4000) / 2, rel=0.01
    )


def test_a_dataflow_machine_is_bound_by_its_depth_not_its_bandwidth() -> None:
    step = Replica(LLAMA_8B, find_chip("WSE-3")).decode(1, 100)
    assert step.bound == "latency"
    assert step.memory < 0.01 * step.latency
    assert step.latency == pytest.approx(32 * FITTED.crossings * 0.82e-6)


@pytest.mark.parametrize(
    ("chip", "weights", "format"),
    [
        ("H100 SXM", "float8", "float8"),
        ("A100 SXM 80GB", "float8", "bfloat16"),
        ("A100 SXM 80GB", "int4", "bfloat16"),
        ("B200 SXM", "mxfp4", "float4"),
        ("H100 SXM", "mxfp4", "bfloat16"),
    ],
)
def test_products_are_computed_in_the_weights_format_where_the_chip_has_it(chip, weights, format) -> None:
    assert arithmetic_format(find_chip(chip), weights) == format


def test_a_measured_product_stands_before_a_stated_peak() -> None:
    assert matmul_rate(H100, "bfloat16") == 794.5e12
    mi300x = find_chip("MI300X")
    assert matmul_rate(mi300x, "float8") == pytest.approx(mi300x.flops["float8"] * 668.4e12 / mi300x.flops["bfloat16"])
    v5p = find_chip("TPU v5p")
    assert matmul_rate(v5p, "bfloat16") == v5p.flops["bfloat16"] * FITTED.matmul
