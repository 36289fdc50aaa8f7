"""Prompts in one row, padded prompts and a cache with room give what transformers' own cache gives."""

from __future__ import annotations

import pytest
import torch
import transformers
from small_models import SIZE

from choosy.models.compute import Compute
from choosy.models.logprobs import padded_token_logps
from choosy.models.policy import Policy
from choosy.models.rows import Group
from choosy.sampling.generate import Generate, choose_token, closed_up
from choosy.sampling.prefill import ROOM, RoomyLayer, fit_one_row, prefill

PREFIX = list(range(5, 17))
PROMPTS = [[*PREFIX, 40, 41, 42], [*PREFIX, 43], [*PREFIX, 44, 45, 46, 47, 48, 49, 50]]
COPIES = [2, 1, 3]
NEXT = [[60, 61, 62, 63, 64, 65], [70, 71, 72, 73, 74, 75]]  # two more tokens of each row


def by_the_book(policy: Policy, ids: list[int]) -> torch.Tensor:
    return policy.causal_lm(input_ids=torch.tensor([ids])).logits[0, -1]


def steps(policy: Policy, prompts: list[list[int]]) -> list[torch.Tensor]:
    """Logits of each row's next token, then with two more tokens, then of some rows only."""
    filled = prefill(policy, prompts, COPIES)
    seen, mask_RL = [filled.logits_RV], filled.mask_RL
    for tokens in NEXT:
        position_R1 = mask_RL.sum(-1, keepdim=True)
        mask_RL = torch.cat([mask_RL, mask_RL.new_ones(len(mask_RL), 1)], dim=-1)
        seen.append(
            policy.causal_lm(
                input_ids=torch.tensor(tokens)[:, None],
                attention_mask=mask_RL,
                position_ids=position_R1,
                past_key_values=filled.cache,
            ).logits[:, -1]
        )
    return seen


@pytest.mark.parametrize("attention", ["grouped", "sdpa", "eager"])
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("prompts", [PROMPTS, [[7], [8, 9], [10, 11, 12]]], ids=["prefix", "no-prefix"])
@torch.inference_mode()
def test_every_row_is_as_if_alone(prompts, share, attention, tiny_policy_dir):
    policy = Policy(str(tiny_policy_dir), dtype="float32", compute=Compute(attention=attention, share_prompt=share))
    policy.load(device=torch.device("cpu"), seed=0)
    assert policy.one_row == (share and attention == "grouped")
    owners = [p for p, n in enumerate(COPIES) for _ in range(n)]
    for n, seen_RV in enumerate(steps(policy, prompts)):
        for r, owner in enumerate(owners):
            wanted = by_the_book(policy, [*prompts[owner], *(tokens[r] for tokens in NEXT[:n])])
            torch.testing.assert_close(seen_RV[r], wanted, rtol=1e-4, atol=1e-4)


SMALL = SIZE | {"pad_token_id": 0}
CONFIGS = {
    "qwen3": lambda n: transformers.Qwen3Config(vocab_size=n, **SMALL | {"head_dim": 8}),
    "mistral": lambda n: transformers.MistralConfig(vocab_size=n, **SMALL, sliding_window=6),
    "gemma2": lambda n: transformers.Gemma2Config(vocab_size=n, **SMALL, head_dim=8, sliding_window=6),
    "gemma3": lambda n: transformers.Gemma3TextConfig(vocab_size=n, **SMALL, head_dim=8, sliding_window=6),
    "phi": lambda n: transformers.PhiConfig(vocab_size=n, **SMALL),
    "gpt2": lambda n: transformers.GPT2Config(vocab_size=n, n_embd=32, n_layer=2, n_head=4, pad_token_id=0),
    "bloom": lambda n: transformers.BloomConfig(vocab_size=n, hidden_size=32, n_layer=2, n_head=4),
    "mpt": lambda n: transformers.MptConfig(vocab_size=n, d_model=32, n_layers=2, n_heads=4),
    "falcon-alibi": lambda n: transformers.FalconConfig(vocab_size=n, **SMALL, alibi=True),
    "gpt-neo": lambda n: transformers.GPTNeoConfig(
        vocab_size=n,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=48,  # longer than the probe of shared prompts, shorter than its prompts here
    ),
    "lfm2": lambda n: transformers.Lfm2Config(
        vocab_size=n, **SMALL, layer_types=["conv", "full_attention"], conv_L_cache=3
    ),
    "qwen3-next": lambda n: transformers.Qwen3NextConfig(
        vocab_size=n,
        **SMALL | {"head_dim": 8},
        layer_types=["linear_attention", "full_attention"],
        mlp_only_layers=[0, 1],
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
    ),
    "deepseek": lambda n: transformers.DeepseekV3Config(
        vocab_size=n,
        **SMALL | {"num_key_value_heads": 4},
        first_k_dense_replace=2,
        kv_lora_rank=16,
        q_lora_rank=16,
        qk_rope_head_dim=4,
        qk_nope_head_dim=8,
        v_head_dim=6,
    ),
}


@pytest.mark.parametrize("architecture", CONFIGS)
@torch.inference_mode()
def test_other_architectures(architecture, tiny_policy_dir, tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_policy_dir)
    tokenizer.save_pretrained(tmp_path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(CONFIGS[architecture](len(tokenizer)))
        model.save_pretrained(tmp_path)
    policy = Policy(str(tmp_path), dtype="float32")
    policy.load(device=torch.device("cpu"), seed=0)
    owners = [p for p, n in enumerate(COPIES) for _ in range(n)]
    prompts = [[*PREFIX * 5, *ids] for ids in PROMPTS] if architecture == "gpt-neo" else PROMPTS
    for n, seen_RV in enumerate(steps(policy, prompts)):
        for r, owner in enumerate(owners):
            wanted = by_the_book(policy, [*prompts[owner], *(tokens[r] for tokens in NEXT[:n])])
            torch.testing.assert_close(seen_RV[r], wanted, rtol=1e-4, atol=1e-4)
    groups = [Group(ids, [(60, 61), (70, 71, 72)]) for ids in prompts]
    torch.testing.assert_close(
        policy.token_logps(groups), padded_token_logps(policy.causal_lm, groups), rtol=1e-4, atol=1e-4
    )


@torch.inference_mode()
def test_a_mask_as_long_as_wide_is_kept_small(tiny_policy_dir):
    policy = Policy(str(tiny_policy_dir), dtype="float32", compute=Compute(tokens_per_step=20))
    policy.load(device=torch.device("cpu"), seed=0)
    assert fit_one_row(policy, [[7] * 15, [8] * 16])
    policy.causal_lm.config._attn_implementation = "flex_attention"
    assert fit_one_row(policy, [[7], [8, 9]])
    assert not fit_one_row(policy, [[7] * 15, [8] * 16])


@pytest.mark.parametrize(("vocabulary", "temperature"), [(1000, 1.0), (1000, 0.0), (3, 1.0)])
def test_numbers_that_are_none_hit_a_token_of_the_vocabulary(vocabulary, temperature):
    (token,) = choose_token(torch.full((1, vocabulary), torch.nan), torch.tensor([[0.5]]), temperature).tolist()
    assert 0 <= token < vocabulary
    assert choose_token(torch.zeros(0, vocabulary), torch.zeros(0, 1), temperature).tolist() == []


@torch.inference_mode()
def test_a_policy_without_numbers_samples_nothing(tiny_policy_dir):
    policy = Policy(str(tiny_policy_dir), dtype="float32", lora=None)
    policy.load(device=torch.device("cpu"), seed=0)
    _ = policy.shares_prompts
    next(policy.causal_lm.parameters()).fill_(torch.nan)
    with pytest.raises(ValueError, match=r"no numbers \(nan\) at token 1 of a response: nothing can be sampled"):
        Generate(max_new_tokens=4).sample(policy, [[7, 8]], [[0, 1]])


@torch.inference_mode()
def test_room_is_made_again_and_again():
    states = torch.randn(3, 2, ROOM - 2, 4)
    roomy = RoomyLayer(states, -states)
    held = [states]
    for n in range(2 * ROOM):
        held.append(torch.randn(3, 2, 1, 4))
        wanted, _ = roomy.get_mask_sizes(1)
        keys, values = roomy.update(held[-1], -held[-1])
        assert keys.shape[-2] == wanted
        assert wanted % ROOM == 0
        assert roomy.get_seq_length() == ROOM - 1 + n
    whole = torch.cat(held, dim=-2)
    assert torch.equal(keys[:, :, : whole.shape[-2]], whole)
    assert torch.equal(values, -keys)
    assert not keys[:, :, whole.shape[-2] :].any(), "what a mask hides must be numbers"


@torch.inference_mode()
def test_rows_that_stay_keep_their_keys():
    states = torch.arange(6.0)[:, None, None, None].expand(6, 2, 5, 4)
    roomy = RoomyLayer(states, states)
    keep = closed_up([0, 2, 3, 5])
    roomy.reorder_cache(torch.tensor(keep))
    assert roomy.keys[:, 0, 0, 0].tolist() == roomy.values[:, 1, 4, 3].tolist() == keep
    assert roomy.get_seq_length() == 5


@pytest.mark.parametrize("vocabulary", [3, 256, 257, 1000])
def test_a_draw_hits_a_token_as_often_as_its_share(vocabulary):
    generator = torch.Generator().manual_seed(0)
    logits_V = torch.randn(vocabulary, generator=generator)
    logits_V[:: max(vocabulary // 7, 2)] = -torch.inf
    draws = 20_000
    draw_R = (torch.arange(draws) + 0.5) / draws  # every share of the distribution, once
    token_R = torch.cat([choose_token(logits_V.expand(1000, -1), part[:, None], 1.0) for part in draw_R.split(1000)])
    share_V = torch.bincount(token_R, minlength=vocabulary) / draws
    torch.testing.assert_close(share_V, logits_V.softmax(-1), rtol=0, atol=2e-4)
    assert torch.equal(token_R, token_R.sort().values), "larger draws hit later tokens"


@pytest.mark.parametrize("tries", [1, 4])
@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
@pytest.mark.parametrize("vocabulary", [5, 300])
def test_draws_hit_the_tokens_that_reach_top_p_as_often_as_their_shares(vocabulary, top_p, tries):
    generator, draws = torch.Generator().manual_seed(0), 20_000
    for width in (0.5, 2.0, 5.0):
        logits_V = width * torch.randn(vocabulary, generator=generator)
        sorted_V, order_V = logits_V.double().softmax(-1).sort(descending=True)
        kept_V = sorted_V.where(sorted_V.cumsum(-1) - sorted_V < top_p, 0.0)
        expected_V = torch.zeros_like(kept_V).scatter(-1, order_V, kept_V / kept_V.sum())
        draw_RT = torch.rand(draws, tries, generator=generator)
        token_R = choose_token(logits_V.expand(draws, -1), draw_RT, 1.0, top_p)
        share_V = torch.bincount(token_R, minlength=vocabulary).double() / draws
        assert not share_V[expected_V == 0].any(), "a token outside was chosen"
        error_V = (expected_V * (1 - expected_V) / draws).sqrt()
        assert ((share_V - expected_V).abs() <= 4.5 * error_V + 1e-9).all()


@pytest.mark.parametrize("draw", [0.0, 0.5, 1 - 2**-24, 1.0])
def test_a_token_of_no_probability_is_never_hit(draw):
    logits_RV = torch.full((1, 1000), -torch.inf)
    logits_RV[0, [300, 700]] = 0.0
    (token,) = choose_token(logits_RV, torch.tensor([[draw]]), 1.0).tolist()
    assert token == (300 if draw < 0.5 else 700)
