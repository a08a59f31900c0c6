"""The catalogue: complete, sourced, sane, and found by the names that people use."""

from __future__ import annotations

import pytest

from coserve.chips import catalogue, find_chip
from coserve.chips.catalogue import read_chips
from coserve.errors import InvalidRequest

ASKED_FOR = """
A100, H100, H100 PCIe, H200, B200, GB200, L4, L40S,
RTX 4090, RTX 5090, MI300X, MI325X, MI355X, GroqChip 1, CS-3, Positron Atlas,
Trainium1, Trainium2, Trainium3, Inferentia1, Inferentia2, TPU v5e, TPU v5p, TPU v6e,
TPU v7, Gaudi 2, Gaudi 3, EPYC 9654, Xeon AMX, Graviton4, M3 Ultra, A40,
b200_sxm, NVIDIA H100-SXM-80GB, AMD Instinct MI300X 192GB HBM3
"""


@pytest.mark.parametrize("name", [name.strip() for name in ASKED_FOR.split(",")])
def test_chips_are_found_by_the_names_that_data_and_people_use(name: str) -> None:
    assert find_chip(name) in catalogue()


def test_a_name_leads_to_one_chip_only() -> None:
    for chip in catalogue():
        for name in (chip.name, *chip.aliases):
            assert find_chip(name) is chip


@pytest.mark.parametrize("chip", catalogue(), ids=lambda chip: chip.name)
def test_every_figure_has_a_source_a_date_and_how_sure_it_is(chip) -> None:
    expected = {f"memory.{level.name}.{field}" for level in chip.memory for field in ("capacity", "bandwidth")}
    expected |= {f"flops.{name}" for name in chip.flops} | {"link_bandwidth", "link_latency", "group", "power"}
    expected |= {f"matmul.{name}" for name in chip.matmul}
    expected |= {"price_per_hour"} if chip.price_per_hour is not None else set()
    expected |= {"crossing"} if chip.kind == "dataflow" else set()
    assert set(chip.figures) == expected
    for figure in chip.figures.values():
        assert (
            figure.source and figure.date.startswith("20") and figure.confidence in ("read", "secondary", "estimated")
        )


@pytest.mark.parametrize("chip", catalogue(), ids=lambda chip: chip.name)
def test_figures_are_in_base_units_and_not_the_sparse_ones(chip) -> None:
    assert 1e8 < chip.capacity < 1e13
    assert 1e10 < chip.bandwidth < 1e17
    assert 1e12 < chip.flops["bfloat16"] < 2e16
    assert chip.flops.get("float8", 0) <= 4 * chip.flops["bfloat16"]
    assert chip.flops.get("float4", 0) <= 8 * chip.flops["bfloat16"]
    assert 0 < chip.link_latency < 1e-3 and chip.group >= 1
    assert 10 < chip.power < 30_000
    assert chip.price_per_hour is None or 0.05 < chip.price_per_hour < 100
    for name, rate in chip.matmul.items():
        assert 0.4 * chip.flops[name] < rate <= chip.flops[name]


def test_an_unknown_chip_is_refused_with_names_that_are_near() -> None:
    with pytest.raises(InvalidRequest, match=r"unknown chip 'H1000'.*H100 SXM") as error:
        find_chip("H1000")
    assert error.value.param == "chip"


def test_a_figure_without_a_source_is_refused_by_file_chip_and_field() -> None:
    text = """
vendor = "V"
[sources]
[[chip]]
name = "C"
kind = "gpu"
memory = [{ name = "HBM", capacity = 1e9, bandwidth = [1e12, "s"] }]
flops = {}
"""
    with pytest.raises(ValueError, match=r"v\.toml: C: memory\.HBM\.capacity must be"):
        read_chips(text, "v.toml")
