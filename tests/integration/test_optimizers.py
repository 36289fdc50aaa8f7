"""The optimisers that torch has not, in runs that are interrupted."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from torch.nn import Parameter
from torch.testing import assert_close

from choosy.models.optimizers import AdamW8bit, Muon

FULL = ["model=smollm2_full", "lr=1e-3"]
NEEDS_BITSANDBYTES = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="needs bitsandbytes: pip install 'choosy-tuning[nf4]'"
)


@pytest.mark.parametrize("optimizer", ["muon", pytest.param("adamw_8bit", marks=NEEDS_BITSANDBYTES)])
def test_a_run_goes_on_with_the_states_of_its_optimizer(optimizer, play):
    typed = [f"optimizer={optimizer}", *FULL, "data.heldout=null", "data.limit=6"]
    whole = play(*typed, name="whole")
    play(*typed, "rounds=1", name="two")
    resumed = play(*typed, "ckpt_path=last", name="two")
    assert_close(resumed.weights, whole.weights, rtol=0, atol=0)
    assert not torch.equal(whole.weights["model.norm.weight"], whole.witness.start["model.norm.weight"])


def test_adapters_are_trained_by_muon_alone(play):
    run = play("optimizer=muon", "lr=1e-2", "data.heldout=null")
    optimizer = run.data.trainer.optimizers[0]
    assert [type(part) for part in optimizer.parts] == [torch.optim.Muon]
    assert all(not torch.equal(now, run.witness.start[name]) for name, now in run.weights.items() if "lora_B" in name)


def test_muon_takes_matrices_and_adamw_the_rest():
    def weights() -> list[Parameter]:
        torch.manual_seed(0)
        made = [Parameter(torch.randn(shape)) for shape in ((6, 4), (5,), (9, 4), (2, 3, 4))]
        made[2].of_vocabulary = True  # type: ignore[attr-defined]  # as the policy marks them
        return made

    def stepped(made: list[Parameter], *optimizers: torch.optim.Optimizer) -> list[torch.Tensor]:
        for _ in range(3):
            for weight in made:
                weight.grad = weight.detach().sin()
            for optimizer in optimizers:
                optimizer.step()
        return [weight.detach() for weight in made]

    one, other = weights(), weights()
    muon = torch.optim.Muon(other[:1], lr=0.01, momentum=0.95, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(other[1:], lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)
    assert_close(stepped(one, Muon(one, lr=0.01, weight_decay=0.1)), stepped(other, muon, adamw))


@NEEDS_BITSANDBYTES
def test_large_weights_have_states_in_8_bits():
    large, small = Parameter(torch.randn(64, 64)), Parameter(torch.randn(8))
    optimizer = AdamW8bit([large, small], lr=1e-2)
    large.grad, small.grad = torch.randn_like(large), torch.randn_like(small)
    before = large.detach().clone()
    optimizer.step()
    assert optimizer.state[large]["state1"].dtype == torch.uint8
    assert optimizer.state[small]["state1"].dtype == torch.float32
    assert_close((large.detach() - before).abs().mean().item(), 1e-2, rtol=0.1, atol=0)


def test_states_in_8_bits_are_refused_without_the_library(play, monkeypatch):
    monkeypatch.setattr("choosy.models.optimizers.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"optimizer=adamw_8bit needs bitsandbytes; type pip install"):
        play("optimizer=adamw_8bit")
