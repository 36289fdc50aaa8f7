"""Test that the experts' load is measured as transformers does, and with equal results on every path."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from small_models import SIZE
from torch.nn.utils.rnn import pad_sequence
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from choosy.models.adapters import Lora
from choosy.models.compute import Compute
from choosy.models.experts import Routed
from choosy.models.policy import Policy
from choosy.models.rows import Group

# PEFT gives fused experts a rank of their own under a name that it then looks for among the layers
pytestmark = pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match:RuntimeWarning")
EXPERTS = {"mixtral": {"num_local_experts": 4}, "olmoe": {"num_experts": 4}, "qwen3_moe": {"num_experts": 4}}
MORE: dict[str, Any] = {"qwen3_moe": {"moe_intermediate_size": 16, "head_dim": 8}}
PROMPT = list(range(5, 25))
GROUPS = [
    Group(PROMPT, [[40, 41, 42], [43]]),
    Group([*PROMPT[:12], 60, 61], [[44, 45, 46, 47, 48], [49, 50]]),
    Group(PROMPT, [[40, 41, 42], [51, 52]]),  # which has a response in common with the first
]


@pytest.fixture(scope="module", params=EXPERTS)
def model_dir(request: pytest.FixtureRequest, tiny_policy_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    config = transformers.AutoConfig.from_pretrained(tiny_policy_dir).to_dict()
    special = {name: config[name] for name in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}
    more = EXPERTS[request.param] | MORE.get(request.param, {})
    config = transformers.AutoConfig.for_model(request.param, **SIZE, **special, **more, num_experts_per_tok=2)
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(tiny_policy_dir).save_pretrained(folder)
    return folder


def policy_of(folder: Path, *, lora: Lora | None = None, **compute: Any) -> Policy:
    policy = Policy(str(folder), lora=lora, dtype="float32", compute=Compute(**compute))
    policy.load(device=torch.device("cpu"), seed=0)
    return policy


def router_gradients(policy: Policy, loss: torch.Tensor) -> list[torch.Tensor]:
    gates = [p for name, p in policy.causal_lm.named_parameters() if ".gate." in name or ".router." in name]
    assert len(gates) == 2
    return list(torch.autograd.grad(loss, gates))


def test_the_loss_is_that_of_transformers_on_every_path(model_dir: Path) -> None:
    """Of rows without their last token, which nothing is predicted from, and without padding."""
    policy = policy_of(model_dir)
    ids = [torch.tensor([*group.prompt_ids, *r]) for group in GROUPS for r in group.response_ids]
    seen = [torch.ones(len(one) - 1) for one in ids]
    ids_SL, seen_SL = (pad_sequence(those, batch_first=True) for those in ([i[:-1] for i in ids], seen))
    out = policy.causal_lm(input_ids=ids_SL, attention_mask=seen_SL, output_router_logits=True)
    expected = load_balancing_loss_func(out.router_logits, 4, 2, seen_SL)
    gradients = router_gradients(policy, expected)
    assert all(gradient.abs().max() > 1e-3 for gradient in gradients)
    for compute in ({"attention": "grouped"}, {"attention": "sdpa"}, {"share_prompt": False}):
        policy = policy_of(model_dir, **compute)
        assert policy.shares_prompts == ("attention" in compute)
        routed: list[Routed] = []
        with_them = policy.token_logps(GROUPS, routed=routed)
        torch.testing.assert_close(with_them, policy.token_logps(GROUPS), msg="recording changes no value")
        loss = routed[0].balance_loss(routed[0])
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
        for mine, theirs in zip(router_gradients(policy, loss), gradients, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_the_parts_of_a_step_add_up_to_it(model_dir: Path) -> None:
    policy = policy_of(model_dir)
    whole: list[Routed] = []
    parts: list[Routed] = []
    policy.token_logps(GROUPS, routed=whole)
    for group in GROUPS:
        policy.token_logps([group], routed=parts)
    step = Routed.sum([part.on_cpu() for part in parts])
    one, several = whole[0].balance_loss(whole[0]), sum(step.balance_loss(part) for part in parts)
    torch.testing.assert_close(several, one, rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(router_gradients(policy, several), router_gradients(policy, one), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_frozen_experts_are_named_with_what_adapts_them(model_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        policy_of(model_dir, lora=Lora(r=2, targets=["q_proj"]))
    assert "stay frozen: the adapter trains other layers. model.lora.targets=all-linear, or +model.lo" in caplog.text
    typed = caplog.text.partition("target_parameters=[")[2].partition("]")[0].split(",")
    assert len(typed) == 2
    caplog.clear()
    for lora in (Lora(r=2), Lora(r=2, targets=["q_proj"], options={"target_parameters": typed})):
        policy = policy_of(model_dir, lora=lora)
        assert any(".experts." in name for name, _ in policy.trainable())
        assert policy.has_routers()
    policy_of(model_dir)
    assert not caplog.text


def test_a_model_without_experts_has_no_routers(tiny_policy_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert not policy_of(tiny_policy_dir, lora=Lora(r=2)).has_routers()
    assert "stay frozen" not in caplog.text


def test_routers_without_noise_score_as_they_sample(model_dir: Path, tmp_path: Path) -> None:
    for file in model_dir.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"router_jitter_noise": 0.5}))
    policy = policy_of(tmp_path)
    torch.testing.assert_close(policy.train().token_logps(GROUPS), policy.eval().token_logps(GROUPS))
