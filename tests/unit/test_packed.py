"""Packed weights give the products of the plain ones, within the block only."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from choosy.models.compute import Compute
from choosy.models.fast.fused import can_pack, packed_linears, product
from choosy.models.policy import Policy
from choosy.sampling.generate import Generate


def model(dtype: torch.dtype, *, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 96, bias=bias), nn.ReLU(), nn.Linear(96, 32, bias=bias)).to(dtype)


@pytest.mark.parametrize("rows", [(3, 64), (2, 5, 64), (64,)])
@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_products_are_the_same(bias, rows):
    plain = model(torch.bfloat16, bias=bias)
    if not can_pack(plain[0].weight):
        pytest.skip("this processor or build of torch has no packed bf16 products")
    x = torch.randn(rows).bfloat16()
    wanted = plain(x)
    with packed_linears(plain, 64):
        assert "forward" in vars(plain[0])
        torch.testing.assert_close(plain(x), wanted, rtol=0.02, atol=0.02)
        plain[0].weight.data = torch.zeros_like(plain[0].weight)
        torch.testing.assert_close(plain(x), wanted, rtol=0.02, atol=0.02)  # the weights that were there
    assert "forward" not in vars(plain[0])
    assert not torch.equal(plain(x), wanted)


@torch.inference_mode()
def test_other_precisions_stay_as_they_are():
    exact = model(torch.float32)
    assert not can_pack(exact[0].weight)
    with packed_linears(exact, 64):
        assert "forward" not in vars(exact[0])


def test_an_error_leaves_plain_layers():
    plain = model(torch.bfloat16)
    with pytest.raises(RuntimeError, match="stop"), packed_linears(plain, 64):
        raise RuntimeError("stop")
    assert "forward" not in vars(plain[0])


@pytest.mark.parametrize("packed", [True, False])
def test_one_setting_switches_packing_off(packed, tiny_policy_dir, monkeypatch):
    policy = Policy(str(tiny_policy_dir), dtype="bfloat16", compute=Compute(packed=packed))
    policy.load(device=torch.device("cpu"), seed=0)
    if not can_pack(next(policy.causal_lm.parameters()).bfloat16()):
        pytest.skip("this processor or build of torch has no packed bf16 products")
    prepared: list[int] = []
    monkeypatch.setattr("choosy.models.fast.fused.product", lambda of, rows: prepared.append(rows) or product(of, rows))
    Generate(max_new_tokens=2).sample(policy, [(5, 6)], [[0]])
    assert bool(prepared) == packed
