"""Where tokenizers bite: beginnings written twice, ends that are missing or masked, padding, length."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from choosy.models.policy import Policy
from choosy.models.tokens import Tokens
from choosy.sampling.generate import Generate
from choosy.types import Candidates, Message, Prompt, Response

CHAT = Prompt("p", "Hello?", (Message("user", "Hello?"),))
PLAIN = Prompt("p", "Hello?")


@pytest.fixture
def variant(tiny_policy_dir: Path, tmp_path: Path) -> Callable[..., Path]:
    """The tiny policy's folder with another tokenizer: `variant(change)`, where change edits it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def save(change: Callable[[Any], None]) -> Path:
        tokenizer = AutoTokenizer.from_pretrained(tiny_policy_dir)
        change(tokenizer)
        AutoModelForCausalLM.from_pretrained(tiny_policy_dir).save_pretrained(tmp_path / "variant")
        tokenizer.save_pretrained(tmp_path / "variant")
        return tmp_path / "variant"

    return save


def adds_bos(tokenizer: Any) -> None:
    """The tokenizer adds a BOS to every text, and the chat template writes one as well, as Llama's do."""
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", tokenizer.bos_token_id)]
    )
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template


def pads_with_eos(tokenizer: Any) -> None:
    tokenizer.pad_token = tokenizer.eos_token


def forgets_its_template(tokenizer: Any) -> None:
    tokenizer.chat_template = None


def token_by_token(policy: Policy, prompt_ids: tuple[int, ...], response_ids: tuple[int, ...]) -> float:
    """The summed log-probability of a response as the textbook has it."""
    ids = torch.tensor([[*prompt_ids, *response_ids]])
    with torch.no_grad():
        logp_LV = policy.causal_lm(ids).logits[0].log_softmax(-1)
    start = len(prompt_ids)
    return sum(logp_LV[start + n - 1, token].item() for n, token in enumerate(response_ids))


# -- where a prompt begins --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prompt", [CHAT, PLAIN, replace(PLAIN, text="<|bos|>Hello?")], ids=["chat", "plain", "written"]
)
def test_a_prompt_begins_once(prompt, variant, load_policy):
    policy = load_policy(variant(adds_bos))
    bos = policy.tokens.tokenizer.bos_token_id
    assert policy.tokens.tokenizer("Hello?").input_ids[0] == bos  # or this test shows nothing
    ids = policy.tokens.encode_prompt(prompt)
    assert ids[0] == bos
    assert ids.count(bos) == 1
    assert bos not in policy.tokens.encode_response("Hello.")


def test_a_run_with_two_sources_of_beginnings_trains_on_one(variant, play):
    run = play(f"model.name={variant(adds_bos)}", "rounds=1", "data.heldout=null")
    bos = run.policy.tokens.tokenizer.bos_token_id
    assert {list(ids).count(bos) for ids in run.pool["prompt_ids"]} == {1}
    assert run.summary["pairs_trained"] > 0


def test_a_plain_prompt_does_not_end_before_the_response(variant, load_policy):
    from tokenizers.processors import TemplateProcessing

    def ends(tokenizer: Any) -> None:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="$A <|end|>", special_tokens=[("<|end|>", tokenizer.eos_token_id)]
        )

    policy = load_policy(variant(ends))
    assert policy.tokens.tokenizer("Hi").input_ids[-1] == policy.tokens.tokenizer.eos_token_id
    assert policy.tokens.tokenizer.eos_token_id not in policy.tokens.encode_prompt(PLAIN)


def test_a_conversation_needs_a_chat_template(variant, play, load_policy):
    folder = variant(forgets_its_template)
    with pytest.raises(ValueError, match=r"is a conversation, but .* no chat template; .*data\.reader\.as_chat=false"):
        load_policy(folder).tokens.encode_prompt(CHAT)
    with pytest.raises(ValueError, match="no chat template"):
        play(f"model.name={folder}")
    run = play(f"model.name={folder}", "data.reader.as_chat=false", "rounds=1", "data.heldout=null", name="plain")
    row = run.pool.iloc[0]
    assert run.policy.tokens.decode(row["prompt_ids"]) == row["prompt"]


# -- where a response ends --------------------------------------------------------------------------------------


def test_a_response_that_was_cut_has_no_end(load_policy):
    policy = load_policy()
    (responses,) = Generate(max_new_tokens=3).sample(policy, [policy.tokens.encode_prompt(CHAT)], [list(range(16))])
    cut = [r for r in responses if not r.finished]
    assert cut
    for r in cut:
        assert len(r.ids) == 3
        assert policy.tokens.tokenizer.eos_token_id not in r.ids


def test_a_given_response_ends_once_and_not_where_it_is_cut(tmp_path, play):
    eos_written = {"prompt": "Say it.", "chosen": "Yes<|end|>", "rejected": "No, never, not at all."}
    (tmp_path / "rows.jsonl").write_text(json.dumps(eos_written) + "\n")
    given = ["data=offline", f"data.train={tmp_path}/rows.jsonl", "data.heldout=null", "labeler=dataset"]
    run = play(*given, "data.reader.max_response_tokens=8", "rounds=1")
    eos = run.policy.tokens.tokenizer.eos_token_id
    yes, never = run.pool.iloc[0]["response_ids"]
    assert (len(yes), yes[-1]) == (4, eos)  # it was written in the data
    assert len(never) == 8
    assert eos not in never
    assert run.pool.iloc[0]["finished"].tolist() == [True, False]


@pytest.fixture
def silence(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make the policy end the first `n` responses to each prompt before it says a word."""
    sample = Generate.sample

    def first(n: int) -> None:
        def silenced(self: Generate, policy: Policy, *args: Any, **kwargs: Any) -> list[list[Response]]:
            nothing = Response("", (policy.tokens.tokenizer.eos_token_id,), True, -3.0)
            return [[nothing] * n + of_prompt[n:] for of_prompt in sample(self, policy, *args, **kwargs)]

        monkeypatch.setattr(Generate, "sample", silenced)

    return first


@pytest.mark.parametrize("selector", ["none", "certainty", "dissimilarity"])
def test_an_empty_response_is_trained_like_any_other(selector, play, silence):
    silence(1)
    embedder = ["callbacks.dissimilarity.embedder=policy"] if selector == "dissimilarity" else []
    run = play(f"selector={selector}", *embedder, "rounds=1", "data.heldout=null")
    assert 1 in {len(ids) for _, *both in run.witness.pairs[0] for ids in both}
    assert all(torch.isfinite(p).all() for p in run.weights.values())


def test_nothing_but_empty_responses_is_told(play, silence):
    silence(2)
    with pytest.raises(ValueError, match=r"made no pair out of 12 prompts.*sampler gives different responses"):
        play("data.heldout=null")


# -- padding ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share_prompt", [True, False], ids=["shared", "padded"])
def test_the_end_counts_where_padding_is_the_same_token(share_prompt, variant, load_policy):
    policy = load_policy(variant(pads_with_eos))
    policy.compute = replace(policy.compute, share_prompt=share_prompt)
    assert policy.tokens.tokenizer.pad_token_id == policy.tokens.tokenizer.eos_token_id
    asked = [replace(CHAT, messages=(Message("user", text),)) for text in ("Hi", "Who was it that said so?")]
    given = [Response(text, policy.tokens.encode_response(text)) for text in ("Me.", "No one knows, I am afraid.")]
    candidates = [Candidates(p, tuple(given), policy.tokens.encode_prompt(p)) for p in asked]
    assert all(policy.tokens.tokenizer.eos_token_id in c.prompt_ids for c in candidates)  # of the turns before
    for c, logps in zip(candidates, policy.score(candidates), strict=True):
        expected = [token_by_token(policy, c.prompt_ids, r.ids) for r in c.responses]
        assert logps == pytest.approx(expected, abs=1e-3)
        assert token_by_token(policy, c.prompt_ids, given[0].ids[:-1]) > expected[0] + 0.1


def test_a_response_at_a_time_is_scored_within_the_token_budget_where_prompts_are_not_shared(load_policy):
    """Eight responses bring a prompt of 30 tokens eight times; progress counts each candidate once."""
    policy = load_policy()
    given = [tuple(range(5, 7 + n)) for n in range(8)]
    candidates = [Candidates(CHAT, tuple(Response("", ids) for ids in given), tuple(range(5, 5 + n))) for n in (30, 20)]
    wanted = policy.score(candidates)
    policy.compute = replace(policy.compute, share_prompt=False, tokens_per_step=80)
    del policy.shares_prompts  # found once for a model
    passes, ticks = [], []
    policy.causal_lm.get_decoder().register_forward_pre_hook(
        lambda _, args, kwargs: passes.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    assert policy.score(candidates, ticks.append) == [pytest.approx(logps, abs=1e-3) for logps in wanted]
    assert max(passes) <= 80
    assert sum(ticks) == 2


@pytest.mark.parametrize("change", [pads_with_eos, adds_bos], ids=["pad is eos", "bos added"])
def test_what_was_sampled_is_scored_the_same(change, variant, load_policy):
    policy = load_policy(variant(change))
    ids = policy.tokens.encode_prompt(CHAT)
    (responses,) = Generate(max_new_tokens=24).sample(policy, [ids], [list(range(32))])
    assert any(r.finished for r in responses)
    (logps,) = policy.score([Candidates(CHAT, tuple(responses), ids)])
    assert logps == pytest.approx([r.logp for r in responses], abs=1e-3)


# -- prompts over the limit -------------------------------------------------------------------------------------


def test_long_prompts_are_left_out_and_counted(play, caplog):
    with caplog.at_level(logging.WARNING):
        run = play("data.reader.max_prompt_tokens=36", "rounds=1", "data.heldout=null")
    left = len(run.pool)
    assert 0 < left < 12
    assert f"{12 - left} of the 12 prompts" in caplog.text
    assert "longer than data.reader.max_prompt_tokens=36" in caplog.text
    assert max(len(ids) for ids in run.pool["prompt_ids"]) <= 36


@pytest.mark.parametrize(
    "overrides",
    [["data.reader.max_prompt_tokens=36", "data.reader.too_long=error"], ["data.reader.max_prompt_tokens=5"]],
    ids=["error", "all too long"],
)
def test_long_prompts_can_be_refused(overrides, play):
    with pytest.raises(ValueError, match=r"of the 12 prompts of .*; the longest has \d+ tokens"):
        play(*overrides)


@pytest.mark.parametrize("given", [False, True], ids=["sampled", "given"])
def test_answers_beyond_the_window_are_refused_before_the_weights_are_loaded(given, play, tmp_path, monkeypatch):
    long = {"prompt": "Say it.", "chosen": "Yes" * 400, "rejected": "No."}
    (tmp_path / "rows.jsonl").write_text(json.dumps(long) + "\n")
    pairs = ["data=offline", f"data.train={tmp_path}/rows.jsonl", "data.reader.max_response_tokens=2000"]
    lines = [*pairs, "labeler=dataset"] if given else ["sampler.max_new_tokens=1020"]
    monkeypatch.setattr(Policy, "load", lambda *args, **kwargs: pytest.fail("the weights were loaded"))
    option = r"data\.reader\.max_response_tokens" if given else r"sampler\.max_new_tokens"
    lower = rf"1024; lower data\.reader\.max_prompt_tokens or {option}\.$"
    with pytest.raises(ValueError, match=rf"may take 1\d\d\d tokens, and the context window of .* has {lower}"):
        play(*lines, "data.heldout=null")


def test_a_run_tokenises_each_prompt_once(play, monkeypatch):
    asked: Counter[str] = Counter()
    tokenised = Tokens._tokenised

    def counted(self: Tokens, prompt: Prompt) -> Any:
        asked[prompt.text] += 1
        return tokenised(self, prompt)

    texts: list[str] = []
    answered = Tokens.encode_response
    monkeypatch.setattr(Tokens, "_tokenised", counted)
    monkeypatch.setattr(Tokens, "encode_response", lambda self, text: texts.append(text) or answered(self, text))
    run = play("selector=optune_certainty", "data.responses=3")
    assert run.summary["rounds"] == 2
    assert asked.total() == len(asked) == 12, "to train on and held out, in all rounds"
    assert texts == [], "responses keep the ids that were sampled"
