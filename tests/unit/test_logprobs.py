"""The hot path equals the book: shared prompts against padded rows, chunked logits against dense ones."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from small_models import SIZE
from torch import Tensor, nn

from choosy.models.fast import tree_attention as attention
from choosy.models.logprobs import (
    can_share_prompt,
    chosen_token_logps,
    final_states,
    fits_window,
    group_logps,
    padded_token_logps,
    sum_by_response,
    takes_one_row,
    token_logps,
)
from choosy.models.rows import Group, packed, share_prompt

attention.register()

VOCABULARY = 97
NO_SPECIALS = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
SMALL = SIZE | NO_SPECIALS | {"vocab_size": VOCABULARY}
CONFIGS: dict[str, Callable[..., Any]] = {
    "llama": lambda **more: transformers.LlamaConfig(**SMALL | more),
    "qwen2": lambda **more: transformers.Qwen2Config(**SMALL | more),
    "qwen3": lambda **more: transformers.Qwen3Config(**SMALL | {"head_dim": 8} | more),
    "gemma": lambda **more: transformers.GemmaConfig(**SMALL | {"head_dim": 8, "num_key_value_heads": 1} | more),
    "gemma2": lambda **more: transformers.Gemma2Config(**SMALL | {"head_dim": 8} | more),
    "phi": lambda **more: transformers.PhiConfig(**SMALL | more),
    "mistral": lambda **more: transformers.MistralConfig(**SMALL | more),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=2,
        n_head=4,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
    ),
    "bloom": lambda: transformers.BloomConfig(
        vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.2
    ),
    "mpt": lambda: transformers.MptConfig(
        vocab_size=VOCABULARY, d_model=32, n_layers=2, n_heads=4, max_seq_len=64, initializer_range=0.2
    ),
    "bamba": lambda: transformers.BambaConfig(
        **SMALL, mamba_d_state=8, mamba_n_heads=4, mamba_d_head=16, mamba_n_groups=1, attn_layer_indices=[1]
    ),
    "lfm2": lambda: transformers.Lfm2Config(**SMALL, layer_types=["conv", "full_attention"]),
    "mamba": lambda: transformers.MambaConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4, initializer_range=0.2
    ),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Products this small take longer to share between threads than to compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny(architecture: str, implementation: str = "eager", **more: Any) -> nn.Module:
    """A random model of two layers in fp32, the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(
            CONFIGS[architecture](**more), attn_implementation=implementation, dtype=torch.float32
        )
    if architecture == "phi":
        model.lm_head.bias = None  # a head with a bias takes the padded path
    return model.eval()


def group(prompt: int, *responses: int, seed: int = 0) -> Group:
    """A prompt and responses of the given lengths, of random tokens."""
    rng = random.Random(f"{seed}{prompt}{responses}")

    def draw(n: int) -> list[int]:
        return [rng.randrange(VOCABULARY) for _ in range(n)]

    return Group(draw(prompt), [draw(n) for n in responses])


def shared(model: nn.Module, groups: Sequence[Group], *, one_row: bool = False) -> Tensor:
    """Summed log-probs (S,) by rows that share their prompts."""
    return sum_by_response(token_logps(model, share_prompt(groups, one_row=one_row)), groups)


def padded(model: nn.Module, groups: Sequence[Group]) -> Tensor:
    """The same by padded rows."""
    return sum_by_response(padded_token_logps(model, groups), groups)


LENGTHS = (5, 1, 0, 9, 3, 1, 7, 11)  # of responses: one-token and empty ones among them
ONE_TO_EIGHT = [group(2 * n - 1, *LENGTHS[:n], seed=n) for n in range(1, 9)] + [group(4, 0), group(1, 0, 1)]


def values_and_gradients(model: nn.Module, logps: Callable[[], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probs (S,), and the gradients of their sum with a different factor on each."""
    model.zero_grad()
    logp_S = logps()
    (logp_S * torch.linspace(-1, 1, len(logp_S))).sum().backward()
    return logp_S.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_paths_agree(model: nn.Module, groups: Sequence[Group]) -> None:
    one_row = takes_one_row(model)
    with torch.no_grad():
        shared_2T, padded_2T = (
            token_logps(model, share_prompt(groups, one_row=one_row), collisions=True),
            padded_token_logps(model, groups, collisions=True),
        )
    torch.testing.assert_close(shared_2T, padded_2T, rtol=1e-5, atol=1e-5)
    shared_S, sharing = values_and_gradients(model, lambda: shared(model, groups, one_row=one_row))
    padded_S, padding = values_and_gradients(model, lambda: padded(model, groups))
    torch.testing.assert_close(shared_S, padded_S, rtol=1e-5, atol=1e-5)
    assert sharing.keys() == padding.keys()
    for name, gradient in padding.items():
        scale = max(1.0, gradient.abs().max().item())
        torch.testing.assert_close(
            sharing[name], gradient, rtol=1e-5, atol=1e-5 * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


# -- shared prompts against padded rows ----------------------------------------------------------------------


@pytest.mark.parametrize("implementation", ["eager", "grouped", "sdpa"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma", "gpt2", "phi", "mistral"])
def test_sharing_the_prompt_changes_neither_values_nor_gradients(architecture: str, implementation: str) -> None:
    assert_paths_agree(tiny(architecture, implementation), ONE_TO_EIGHT)


@pytest.mark.parametrize("implementation", ["eager", "grouped", "sdpa"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma", "gpt2", "phi", "mistral"])
def test_a_prefix_that_all_prompts_share_is_computed_once(architecture: str, implementation: str) -> None:
    prefix = group(11, seed=99).prompt_ids
    groups = [Group([*prefix, *g.prompt_ids], g.response_ids) for g in ONE_TO_EIGHT]
    assert share_prompt(groups, one_row=True).ids_BL.numel() == len(prefix) + sum(g.tokens for g in ONE_TO_EIGHT)
    assert_paths_agree(tiny(architecture, implementation), groups)


MASKS = [[(True, True, False, False, True), (), (), (True, False, False, False, False, False, True, True, False)]]


@pytest.mark.parametrize("implementation", ["eager", "grouped", "sdpa"])
def test_tokens_that_others_say_are_read_and_not_learned(implementation: str) -> None:
    """Values and gradients are those of the assistant's tokens in a plain forward over the whole conversation."""
    model = tiny("llama", implementation)
    groups = [Group(g.prompt_ids, g.response_ids, masks) for g, masks in zip(ONE_TO_EIGHT[3:4], MASKS, strict=True)]

    def plain() -> Tensor:
        sums = []
        for ids, mask in zip(groups[0].response_ids, MASKS[0], strict=True):
            whole = torch.tensor([[*groups[0].prompt_ids, *ids]])
            logp_LV = model(input_ids=whole).logits[0, :-1].log_softmax(-1)
            logp_T = logp_LV.gather(-1, whole[0, 1:, None])[len(whole[0]) - len(ids) - 1 :, 0]
            sums.append((logp_T * torch.tensor(mask or [True] * len(ids))).sum())
        return torch.stack(sums)

    assert_paths_agree(model, [*groups, *ONE_TO_EIGHT[:2]])
    plain_S, wanted = values_and_gradients(model, plain)
    shared_S, found = values_and_gradients(model, lambda: shared(model, groups, one_row=takes_one_row(model)))
    torch.testing.assert_close(shared_S, plain_S, rtol=1e-5, atol=1e-5)
    for name, gradient in wanted.items():
        scale = max(1.0, gradient.abs().max().item())
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("responses", range(1, 9))
def test_any_number_of_responses_can_share_a_prompt(responses: int) -> None:
    assert_paths_agree(tiny("llama", "grouped"), [ONE_TO_EIGHT[responses - 1]])


@pytest.mark.parametrize("implementation", ["eager", "grouped"])
@pytest.mark.parametrize("share", [True, False])
def test_final_states_are_those_before_the_last_token(implementation: str, share: bool) -> None:
    """The state that predicts a response's last token has seen all the others; a lone token leaves the prompt's."""
    model = tiny("llama", implementation)
    groups = [group(5, 3, 1), group(7, 4, seed=1)]
    with torch.no_grad():
        found_SD = final_states(model, groups, share=share)
        for state_D, ids in zip(
            found_SD, [[*g.prompt_ids, *r[:-1]] for g in groups for r in g.response_ids], strict=True
        ):
            alone_LD = tiny("llama").get_decoder()(input_ids=torch.tensor([ids])).last_hidden_state[0]
            torch.testing.assert_close(state_D, alone_LD[-1], rtol=1e-4, atol=1e-5)


def test_only_trained_parameters_get_gradients() -> None:
    model = tiny("llama", "grouped").requires_grad_(False)
    model.get_parameter("model.layers.0.self_attn.q_proj.weight").requires_grad_()
    assert_paths_agree(model, ONE_TO_EIGHT[:3])


def test_siblings_neither_see_nor_move_each_other() -> None:
    model, (prompt, (first, second), _) = tiny("llama", "grouped"), group(5, 4, 6)
    with torch.no_grad():
        alone = shared(model, [Group(prompt, [second])])[0]
        after = shared(model, [Group(prompt, [first, second])])[1]
        before = shared(model, [Group(prompt, [second, first])])[0]
    torch.testing.assert_close(after, alone)
    torch.testing.assert_close(before, alone)


def test_an_empty_response_has_log_probability_zero() -> None:
    groups = [group(3, 0, 2), group(2, 0)]
    logp_S = shared(tiny("llama"), groups)
    assert (logp_S[0].item(), logp_S[2].item()) == (0.0, 0.0)
    assert logp_S[1] < -1
    logp_S.sum().backward()


def test_a_padded_row_by_hand() -> None:
    """log p(7 | 5 6) + log p(8 | 5 6 7), from the model's own logits."""
    model = tiny("llama")
    with torch.no_grad():
        logp_LV = model(input_ids=torch.tensor([[5, 6, 7, 8]])).logits[0].log_softmax(-1)
        (value,) = padded(model, [Group([5, 6], [[7, 8]])])
    assert value.item() == pytest.approx((logp_LV[1, 7] + logp_LV[2, 8]).item(), rel=1e-6)


@pytest.mark.parametrize("implementation", ["eager", "grouped", "sdpa"])
def test_an_ordinary_architecture_can_share(implementation: str) -> None:
    assert can_share_prompt(tiny("llama", implementation), VOCABULARY)
    assert can_share_prompt(tiny("mistral", implementation, sliding_window=4096), VOCABULARY)


@pytest.mark.parametrize(
    ("architecture", "more"),
    [
        pytest.param("bloom", {}, id="ALiBi"),
        pytest.param("mpt", {}, id="ALiBi added in the layer"),
        pytest.param("mamba", {}, id="state space"),
        pytest.param("mistral", {"sliding_window": 8}, id="sliding window"),
        pytest.param("gemma2", {}, id="capped logits"),
    ],
)
def test_what_cannot_share_is_found_out(architecture: str, more: dict[str, Any]) -> None:
    assert not can_share_prompt(tiny(architecture, **more), VOCABULARY)


@pytest.mark.parametrize("architecture", ["bamba", "lfm2", "mamba"])
def test_a_state_that_runs_through_the_row_is_found_out_in_bf16_too(architecture: str) -> None:
    """Rounding hides the difference of the sums there, but not what one response does to the next."""
    assert not can_share_prompt(tiny(architecture).to(torch.bfloat16), VOCABULARY)


def test_an_ordinary_architecture_can_share_in_bf16() -> None:
    assert all(can_share_prompt(tiny("llama", how).to(torch.bfloat16), VOCABULARY) for how in ("grouped", "sdpa"))


def test_the_text_part_of_a_composite_model_says_its_window_and_its_capped_logits() -> None:
    """Gemma 3 keeps both inside the configuration of its text part."""
    inner = transformers.LlamaConfig(**SMALL, sliding_window=64)
    model = nn.Module()
    model.config = SimpleNamespace(get_text_config=lambda: inner)
    assert fits_window(model, 64)
    assert not fits_window(model, 65)
    inner.final_logit_softcapping = 30.0
    assert not can_share_prompt(model, VOCABULARY)


def test_padded_logits_exist_only_where_a_response_is_predicted() -> None:
    """Prompts of 9 and 7 tokens: of rows of up to 12 tokens the last 6 places have logits."""
    model, shapes = tiny("llama"), []
    model.lm_head.register_forward_hook(lambda _, args, out: shapes.append(tuple(out.shape)))
    with torch.no_grad():
        padded(model, [group(9, 4), group(7, 3)])
    assert shapes == [(2, 6, VOCABULARY)]


def test_a_prompt_without_tokens_is_refused_on_both_paths() -> None:
    for path in (shared, padded):
        with pytest.raises(ValueError, match="A prompt has no tokens"):
            path(tiny("llama"), [Group([], [[5, 6]])])


def test_a_head_with_a_bias_takes_the_padded_path() -> None:
    model = tiny("phi")
    model.lm_head.bias = nn.Parameter(torch.ones(VOCABULARY))
    assert not can_share_prompt(model, VOCABULARY)


# -- rows ----------------------------------------------------------------------------------------------------


TWO_GROUPS = [Group([5, 6], [[7, 8], [9, 10, 11]]), Group([1], [[2, 3], []])]


def test_rows_of_two_groups_typed_in_full() -> None:
    """5 6 | 7 (8) | 9 10 (11) and 1 | 2 (3) | empty: a response's last token is predicted, never read."""
    rows = share_prompt(TWO_GROUPS)
    assert rows.ids_BL.tolist() == [[5, 6, 7, 9, 10], [1, 2, 0, 0, 0]]
    assert rows.position_BL.tolist() == [[0, 1, 2, 2, 3], [0, 1, 0, 0, 0]]
    assert rows.segments == (((0, 2, -1), (2, 3, 0), (3, 5, 0)), ((0, 1, -1), (1, 2, 0)))
    assert rows.mask_BLL.int().tolist() == [
        [
            [1, 0, 0, 0, 0],
            [1, 1, 0, 0, 0],
            [1, 1, 1, 0, 0],
            [1, 1, 0, 1, 0],
            [1, 1, 0, 1, 1],
        ],
        [
            [1, 0, 0, 0, 0],
            [1, 1, 0, 0, 0],
            [0, 0, 1, 0, 0],
            [0, 0, 1, 1, 0],
            [0, 0, 1, 1, 1],
        ],
    ]
    assert rows.row_T.tolist() == [0, 0, 0, 0, 0, 1, 1]
    assert rows.column_T.tolist() == [1, 2, 1, 3, 4, 0, 1]
    assert rows.target_T.tolist() == [7, 8, 9, 10, 11, 2, 3]


def test_one_row_of_two_groups_typed_in_full() -> None:
    """The same, one behind the other: no token of padding, and no group sees the other."""
    rows = share_prompt(TWO_GROUPS, one_row=True)
    assert rows.ids_BL.tolist() == [[5, 6, 7, 9, 10, 1, 2]]
    assert rows.position_BL.tolist() == [[0, 1, 2, 2, 3, 0, 1]]
    assert rows.mask_BLL.int().tolist() == [
        [
            [1, 0, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0, 0],
            [1, 1, 1, 0, 0, 0, 0],
            [1, 1, 0, 1, 0, 0, 0],
            [1, 1, 0, 1, 1, 0, 0],
            [0, 0, 0, 0, 0, 1, 0],
            [0, 0, 0, 0, 0, 1, 1],
        ]
    ]
    assert rows.row_T.tolist() == [0] * 7
    assert rows.column_T.tolist() == [1, 2, 1, 3, 4, 5, 6]


def test_a_common_prefix_is_the_root_of_the_tree() -> None:
    rows = share_prompt([Group([*range(8), 20], [[1, 2]]), Group([*range(8), 30], [[3, 4]])], one_row=True)
    assert rows.ids_BL.tolist() == [[*range(8), 20, 1, 30, 3]]
    assert rows.position_BL.tolist() == [[*range(8), 8, 9, 8, 9]]
    assert rows.segments == (((0, 8, -1), (8, 9, 0), (9, 10, 1), (10, 11, 0), (11, 12, 3)),)


def test_flex_attention_is_shown_what_the_mask_shows() -> None:
    for rows in (share_prompt(ONE_TO_EIGHT), share_prompt(ONE_TO_EIGHT, one_row=True)):
        B, L = rows.ids_BL.shape
        b, query, key = torch.meshgrid(torch.arange(B), torch.arange(L), torch.arange(L), indexing="ij")
        assert torch.equal(rows.block_mask.mask_mod(b, torch.zeros(()), query, key), rows.mask_BLL)


def test_a_prompt_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="prompt has no tokens; give it text, or a tokenizer with a beginning"):
        share_prompt([group(2, 1), Group([], [[1, 2]])])


# -- chosen_token_logps --------------------------------------------------------------------------------------


def head_inputs(tokens: int = 13) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, a head, targets, and an uneven factor on each log-prob."""
    rng = torch.Generator().manual_seed(0)
    hidden_TD, weight_VD = torch.randn(tokens, 8, generator=rng), torch.randn(VOCABULARY, 8, generator=rng)
    target_T = torch.randint(VOCABULARY, (tokens,), generator=rng)
    return hidden_TD.requires_grad_(), weight_VD, target_T, torch.randn(tokens, generator=rng)


def dense(hidden_TD: Tensor, weight_VD: Tensor, target_T: Tensor) -> Tensor:
    return (hidden_TD @ weight_VD.T).log_softmax(-1).gather(-1, target_T[:, None]).squeeze(-1)


@pytest.mark.parametrize("trained_head", [False, True])
@pytest.mark.parametrize("chunk", [1, 5, 13, 256])
def test_chunked_equals_dense(chunk: int, trained_head: bool) -> None:
    hidden_TD, weight_VD, target_T, factor_T = head_inputs()
    weight_VD.requires_grad_(trained_head)
    wanted = [hidden_TD, weight_VD] if trained_head else [hidden_TD]
    chunked_T = chosen_token_logps(hidden_TD, weight_VD, target_T, chunk=chunk)
    dense_T = dense(hidden_TD, weight_VD, target_T)
    torch.testing.assert_close(chunked_T, dense_T)
    torch.testing.assert_close(
        torch.autograd.grad(chunked_T @ factor_T, wanted), torch.autograd.grad(dense_T @ factor_T, wanted)
    )


@pytest.mark.parametrize("trained_head", [False, True])
@pytest.mark.parametrize("chunk", [5, 256])
def test_collisions_are_log_sums_of_squared_probabilities_and_move_no_gradient(chunk: int, trained_head: bool) -> None:
    hidden_TD, weight_VD, target_T, factor_T = head_inputs()
    weight_VD.requires_grad_(trained_head)
    wanted = [hidden_TD, weight_VD] if trained_head else [hidden_TD]
    logp_T = chosen_token_logps(hidden_TD, weight_VD, target_T, chunk=chunk)
    both_2T = chosen_token_logps(hidden_TD, weight_VD, target_T, chunk=chunk, collisions=True)
    assert torch.equal(both_2T[0], logp_T)
    by_hand_T = (hidden_TD @ weight_VD.T).softmax(-1).square().sum(-1).log()
    torch.testing.assert_close(both_2T[1].detach(), by_hand_T.detach())
    torch.testing.assert_close(
        torch.autograd.grad((both_2T * factor_T).sum(), wanted), torch.autograd.grad(logp_T @ factor_T, wanted)
    )


def test_collisions_of_a_sure_policy_and_of_one_that_knows_nothing_are_finite() -> None:
    hidden_TD, weight_VD = torch.tensor([[1e4], [0.0]]), torch.tensor([[1.0], [-1.0], [0.0], [0.5]])
    _, collision_T = chosen_token_logps(hidden_TD, weight_VD, torch.tensor([0, 1]), collisions=True)
    torch.testing.assert_close(collision_T, torch.tensor([0.0, -math.log(4)]))


def test_a_trained_head_over_frozen_hidden_states() -> None:
    hidden_TD, weight_VD, target_T, factor_T = head_inputs()
    hidden_TD, weight_VD = hidden_TD.detach(), weight_VD.requires_grad_()
    chunked = torch.autograd.grad(chosen_token_logps(hidden_TD, weight_VD, target_T, chunk=4) @ factor_T, weight_VD)
    torch.testing.assert_close(
        chunked, torch.autograd.grad(dense(hidden_TD, weight_VD, target_T) @ factor_T, weight_VD)
    )


@pytest.mark.parametrize("trained_head", [False, True])
def test_no_token_has_no_log_probability(trained_head: bool) -> None:
    hidden_TD, weight_VD, target_T, _ = head_inputs(tokens=0)
    logp_T = chosen_token_logps(hidden_TD, weight_VD.requires_grad_(trained_head), target_T)
    assert logp_T.shape == (0,)
    logp_T.sum().backward()


@pytest.mark.parametrize("trained_head", [False, True])
def test_bf16_hidden_states_give_fp32_log_probs(trained_head: bool) -> None:
    hidden_TD, weight_VD, target_T, factor_T = head_inputs()
    weight_VD.requires_grad_(trained_head)
    wanted = [hidden_TD, weight_VD] if trained_head else [hidden_TD]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logp_T = chosen_token_logps(hidden_TD, weight_VD, target_T, chunk=4)
    dense_T = dense(hidden_TD, weight_VD, target_T)
    assert logp_T.dtype == torch.float32
    torch.testing.assert_close(logp_T, dense_T, rtol=0.03, atol=0.1)
    torch.testing.assert_close(
        torch.autograd.grad(logp_T @ factor_T, wanted),
        torch.autograd.grad(dense_T @ factor_T, wanted),
        rtol=0.05,
        atol=0.1,
    )


# -- batches of groups ---------------------------------------------------------------------------------------

lengths = st.lists(st.tuples(st.integers(1, 20), st.lists(st.integers(0, 20), max_size=4)), max_size=20)


@pytest.mark.parametrize("one_row", [False, True])
@given(shapes=lengths, budget=st.integers(1, 120))
def test_packed_covers_every_group_once_within_the_budget(
    one_row: bool, shapes: list[tuple[int, list[int]]], budget: int
) -> None:
    groups = [Group([0] * prompt, [[0] * n for n in responses]) for prompt, responses in shapes]
    batches = list(packed(groups, budget, one_row=one_row))
    assert sorted(i for batch in batches for i in batch) == list(range(len(groups)))
    for batch in batches:
        assert len(batch) == 1 or share_prompt([groups[i] for i in batch], one_row=one_row).ids_BL.numel() <= budget


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("tokens_per_step", [1, 60, 10_000])
def test_scores_do_not_depend_on_the_packing(share: bool, tokens_per_step: int) -> None:
    model = tiny("llama", "grouped")
    scored: dict[int, list[float]] = {}
    for positions in packed(ONE_TO_EIGHT, tokens_per_step, one_row=share and takes_one_row(model)):
        chosen = [ONE_TO_EIGHT[i] for i in positions]
        logps = iter(sum_by_response(group_logps(model, chosen, share=share), chosen).tolist())
        scored |= {i: [next(logps) for _ in ONE_TO_EIGHT[i].response_ids] for i in positions}
    expected = iter(padded(model, ONE_TO_EIGHT).tolist())
    for i, of_group in enumerate(ONE_TO_EIGHT):
        assert scored[i] == pytest.approx([next(expected) for _ in of_group.response_ids], abs=1e-4)
