"""Test the contrastive labeler against log-probs computed one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from choosy.labeling.buyer import LabelBuyer
from choosy.labeling.contrastive import Contrastive
from choosy.labeling.protocols import NeedsPolicy, Scores
from choosy.models.adapters import Lora
from choosy.models.policy import Policy
from choosy.types import Candidates, Message, Prompt, Response

CHAT = Prompt("c", "How was it?", (Message("user", "How was it?"),))
SYSTEM = Prompt("s", "How was it?", (Message("system", "Be brief."), Message("user", "How was it?")))
PLAIN = Prompt("t", "Once upon a time")
GOOD, BAD = "Be kind.", "Be cruel."


@pytest.fixture(scope="module")
def policy(tiny_policy_dir: Path) -> Policy:
    policy = Policy(str(tiny_policy_dir), lora=Lora(r=4), dtype="float32")
    policy.load(device=torch.device("cpu"), seed=0)
    return policy


@pytest.fixture
def moved(policy: Policy):
    """The policy away from its start; back there after the test."""
    for name, p in policy.trainable():
        if "lora_B" in name:
            p.data.normal_(0, 0.05, generator=torch.Generator().manual_seed(1))
    yield policy
    policy.states.restore_start()


def labeler(policy: Policy | None, **options: Any) -> Contrastive:
    made = Contrastive(GOOD, BAD, **options)
    if policy is not None:
        made.use_policy(policy)
    return made


def logp(policy: Policy, prompt: Prompt, response: str) -> float:
    """Compute one log-prob from one prompt and one response."""
    ids = torch.tensor([[*policy.tokens.encode_prompt(prompt), *policy.tokens.encode_response(response)]])
    with torch.no_grad():
        logp_LV = policy.causal_lm(input_ids=ids).logits[0, :-1].log_softmax(-1)
    length = len(policy.tokens.encode_response(response))
    return float(logp_LV[-length:].gather(-1, ids[0, -length:, None]).sum())


def test_the_reward_is_the_difference_of_two_log_probs(policy: Policy) -> None:
    """Items of several prompts, mixed: each reward belongs to its item."""
    items = [(CHAT, "fine"), (PLAIN, "there was"), (CHAT, "awful, really"), (SYSTEM, "fine")]
    asked = {
        "c": lambda text: Prompt("", "", (Message("system", text), *CHAT.messages)),
        "s": lambda text: Prompt("", "", (Message("system", f"{text}\n\nBe brief."), SYSTEM.messages[1])),
        "t": lambda text: Prompt("", f"{text}\n\nOnce upon a time"),
    }
    by_hand = [
        logp(policy, asked[prompt.id](GOOD), text) - logp(policy, asked[prompt.id](BAD), text) for prompt, text in items
    ]
    rewards = labeler(policy).score([(prompt, Response(text)) for prompt, text in items])
    assert rewards == pytest.approx(by_hand, abs=1e-3)
    assert len({round(r, 4) for r in rewards}) == 4


def test_the_gap_of_two_rewards_is_the_self_reward_of_the_paper(policy: Policy) -> None:
    """R = [logp(y1|p+) - logp(y1|p-)] - [logp(y2|p+) - logp(y2|p-)], METHODS 4.8; swapping the responses flips it."""
    one, two = labeler(policy).score([(CHAT, Response("fine")), (CHAT, Response("bad"))])
    swapped = Contrastive(BAD, GOOD)
    swapped.use_policy(policy)
    assert swapped.score([(CHAT, Response("fine"))]) == pytest.approx([-one], abs=1e-4)
    assert one - two == pytest.approx(-(two - one))


def test_sampled_ids_are_scored_as_they_are(policy: Policy) -> None:
    cut = Response("fine", ids=policy.tokens.encode_response("fine")[:-1], finished=False)
    whole, short = labeler(policy).score([(CHAT, Response("fine")), (CHAT, cut)])
    assert whole != pytest.approx(short, abs=1e-4)


def test_the_start_weights_score_and_the_policy_is_restored(moved: Policy) -> None:
    item = [(CHAT, Response("fine"))]
    before = {name: p.detach().clone() for name, p in moved.trainable()}
    (start,), (current,) = labeler(moved).score(item), labeler(moved, weights="current").score(item)
    assert start != pytest.approx(current, abs=1e-4)
    assert all(torch.equal(p, before[name]) for name, p in moved.trainable())
    moved.states.restore_start()
    assert labeler(moved, weights="current").score(item) == pytest.approx([start], abs=1e-5)


def test_labels_of_other_weights_are_not_reused(moved: Policy, tmp_path: Path) -> None:
    for weights, bought in (("start", 2), ("current", 4)):
        buyer = LabelBuyer(labeler(None, weights=weights), ledger=str(tmp_path / f"{weights}.sqlite"))
        buyer.use_policy(moved)
        buyer.open("run")
        candidates = [Candidates(CHAT, (Response("fine"), Response("bad")))]
        (first,) = buyer.score(candidates)
        assert buyer.score(candidates) == [first]
        with torch.no_grad():
            next(iter(moved.trainable()))[1].add_(0.1)
        buyer.score(candidates)
        assert buyer.spent == bought, weights


def test_the_instruction_goes_where_the_template_allows_it(policy: Policy, tiny_policy_dir: Path) -> None:
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + str(
        policy.tokens.tokenizer.chat_template
    )
    picky = Policy(str(tiny_policy_dir), lora=Lora(r=4), dtype="float32", chat_template=template)
    picky.load(device=torch.device("cpu"), seed=0)
    with pytest.raises(ValueError, match=r"system turn \(no system turn\); type labeler\.place=user"):
        labeler(picky).score([(CHAT, Response("fine"))])
    (reward,) = labeler(picky, place="user").score([(CHAT, Response("fine"))])
    turns = [Prompt("", "", (Message("user", f"{text}\n\nHow was it?"),)) for text in (GOOD, BAD)]
    good, bad = (logp(policy, turn, "fine") for turn in turns)
    assert reward == pytest.approx(good - bad, abs=1e-3)


def test_sharded_weights_are_refused(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "is_gathered", False)
    with pytest.raises(ValueError, match=r"trainer=fsdp shards the policy's weights.*choose trainer=ddp"):
        labeler(policy).score([(CHAT, Response("fine"))])


def test_it_scores_and_needs_the_policy() -> None:
    alone = labeler(None)
    assert isinstance(alone, Scores)
    assert isinstance(alone, NeedsPolicy)
    with pytest.raises(ValueError, match=r"scores with the policy that is trained, and has none; use it in a run"):
        alone.score([(CHAT, Response("fine"))])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bad": GOOD}, r"needs two different instructions.*type labeler\.good='...'"),
        ({"good": " "}, r"needs two different instructions"),
        ({"weights": "mine"}, r"labeler\.weights=mine is unknown; type start or current"),
        ({"place": "top"}, r"labeler\.place=top is unknown; type system or user"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Contrastive(**{"good": GOOD, "bad": BAD, **options})
