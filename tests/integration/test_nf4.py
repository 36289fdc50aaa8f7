"""A base in 4 bits: `model.dtype=nf4`."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from choosy.models.adapters import Lora
from choosy.models.policy import Policy
from choosy.models.rows import Group


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes: pip install 'choosy-tuning[nf4]'")
def test_lora_is_trained_on_weights_in_4_bits(play):
    import bitsandbytes

    run = play("model.dtype=nf4", "lr=1e-2", "rounds=1", "epochs_per_round=8")  # of the same pairs
    bits = [module for module in run.policy.causal_lm.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
    assert len(bits) == 14, "every linear layer of both blocks"
    assert not run.policy.is_mergeable
    assert any(not torch.equal(now, run.witness.start[name]) for name, now in run.weights.items())
    assert run.losses[-1] < run.losses[0]
    assert (run.run_dir / "adapter" / "adapter_model.safetensors").exists()


def test_weights_in_4_bits_are_refused_where_they_cannot_be(tiny_policy_dir, monkeypatch):
    with pytest.raises(
        ValueError, match=r"model\.dtype=nf4 keeps frozen weights in 4 bits, and model\.lora=null trains"
    ):
        Policy(str(tiny_policy_dir), dtype="nf4")
    monkeypatch.setattr("choosy.models.loading.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs bitsandbytes; type pip install 'choosy-tuning\[nf4\]'"):
        Policy(str(tiny_policy_dir), dtype="nf4", lora=Lora())


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes: pip install 'choosy-tuning[nf4]'")
def test_gradients_are_the_same_after_sampling(tiny_policy_dir):
    policy = Policy(str(tiny_policy_dir), dtype="nf4", lora=Lora(r=4))
    policy.load(device=torch.device("cpu"), seed=0)
    group = Group((1, 2, 3), [(4, 5), (6, 7)], [(), ()])

    def gradients() -> dict[str, torch.Tensor]:
        policy.zero_grad()
        policy.token_logps([group]).sum().backward()
        return {name: p.grad.clone() for name, p in policy.trainable() if p.grad is not None}

    before = gradients()
    with policy.for_sampling():
        policy.causal_lm(torch.tensor([[1, 2, 3]]))
    after = gradients()
    assert any(grad.abs().max() > 0 for grad in before.values())
    assert all(torch.equal(after[name], grad) for name, grad in before.items())


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes: pip install 'choosy-tuning[nf4]'")
def test_weights_in_4_bits_compute_in_fp32_where_that_is_asked(tiny_policy_dir):
    """As for gaps of implicit rewards that bf16 cannot tell apart: in fp32 two parts of a batch add up to the whole."""
    policy = Policy(str(tiny_policy_dir), dtype="nf4", lora=Lora(r=4))
    policy.load(device=torch.device("cpu"), seed=0)
    policy.compute_dtype = torch.bfloat16
    layers = [module for module in policy.causal_lm.modules() if hasattr(module, "compute_dtype")]
    for layer in layers:
        layer.compute_dtype = torch.bfloat16
    assert policy.shares_prompts
    seen = []
    layers[0].register_forward_hook(lambda _, args, out: seen.append(layers[0].compute_dtype))
    group = Group((1, 2, 3), [(4, 5)], [()])
    with torch.no_grad():
        coarse_T = policy.token_logps([group])
        with policy.in_fp32():
            fine_T = policy.token_logps([group])
        again_T = policy.token_logps([group])
    assert seen == [torch.bfloat16, torch.float32, torch.bfloat16]
    assert not torch.equal(fine_T, coarse_T)
    assert torch.equal(again_T, coarse_T)
