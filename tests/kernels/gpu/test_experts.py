"""Mixture of experts against float64: each row through its own experts; rows alone."""

from __future__ import annotations

import pytest
import torch

from coserve.kernels.gpu.experts import Assignment, combine, grouped_product
from tests.kernels.gpu.oracle import DEVICE, close

EXPERTS, K = 5, 2


def case(rows: int, columns: int, dtype: torch.dtype):
    torch.manual_seed(rows)
    x = torch.randn(rows, columns).to(dtype).to(DEVICE)
    matrices = (torch.randn(EXPERTS, 70, columns) / columns**0.5).to(dtype).to(DEVICE)
    # The fourth expert gets nobody.
    experts = torch.stack([torch.tensor([0, 1, 2, 4])[torch.randperm(4)[:K]] for _ in range(rows)]).to(DEVICE)
    return x, matrices, experts, torch.rand(rows, K).to(DEVICE)


def through(x, matrices, experts, weights):
    assignment = Assignment.of(experts, EXPERTS)
    return combine(grouped_product(x, matrices, assignment, gather=True), weights, assignment)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "columns"), [(1, 16), (3, 70), (90, 33)])
def test_each_row_goes_through_its_own_experts(dtype, rows, columns):
    x, matrices, experts, weights = case(rows, columns, dtype)
    wanted = torch.zeros(rows, 70, dtype=torch.float64)
    for i in range(rows):
        for expert, weight in zip(experts[i].tolist(), weights[i].tolist(), strict=True):
            wanted[i] += weight * (matrices[expert].cpu().double() @ x[i].cpu().double())
    close(through(x, matrices, experts, weights), wanted, dtype)
    assignment = Assignment.of(experts, EXPERTS)
    sorted_x = x[assignment.rows.long()]
    gathered = grouped_product(x, matrices, assignment, gather=True)
    assert torch.equal(grouped_product(sorted_x, matrices, assignment), gathered)


def test_a_row_is_the_same_to_the_bit_in_any_company_and_nan_stays_in_it():
    x, matrices, experts, weights = case(50, 80, torch.bfloat16)
    x[7] = torch.nan
    whole = through(x, matrices, experts, weights)
    for start, end in ((0, 1), (5, 40)):
        part = through(x[start:end], matrices, experts[start:end], weights[start:end])
        assert torch.equal(part.nan_to_num(9), whole[start:end].nan_to_num(9))
    assert whole[7].isnan().all() and torch.isfinite(whole[torch.arange(50) != 7]).all()
