"""One round of the algorithm, from choosing prompts to the pool that is trained on."""

from __future__ import annotations

from collections.abc import Sequence

from choosy.data.pool import Pool
from choosy.data.shared_pool import put_together
from choosy.rounds.choose import choose_pairs, choose_prompts
from choosy.rounds.context import Parts, Round
from choosy.rounds.edit import edit_pairs
from choosy.rounds.importance import weigh_importance
from choosy.rounds.label import label
from choosy.rounds.score import count_agreement, score_reference, score_trained, scores_first
from choosy.rounds.weigh import weigh
from choosy.types import Prompt


def play_round(at: Round, prompts: Sequence[Prompt], parts: Parts) -> Pool:
    """Play one round up to its training. Only this function knows the order of the steps.

    Args:
        at: The context of the round.
        prompts: All prompts that may be sampled, in the same order on every rank.
        parts: What the run plugs in.

    Returns:
        The pool with this round's responses, rewards, labeled pairs and weights.
    """
    chosen = choose_prompts(at, prompts, parts.prompt_selector)  # slot 1: OPTune, entropy
    fresh = parts.sample(at, chosen)  # this rank's share
    if scores_first(at, parts.pair_selector):
        fresh = score_reference(at, fresh)
    pairs = choose_pairs(at, fresh, parts.pair_selector)  # slot 2: certainty, dissimilarity
    labeled = label(at, fresh, pairs, parts.labels)  # on rank 0; ties and invalid verdicts make no pair
    weighed = weigh(at, labeled, parts.weighting, parts.reward_gap)
    weighed = weigh_importance(at, weighed)  # only of what was sampled ahead
    edited = edit_pairs(at, weighed, parts.labels)  # only with an editor: BMC
    scored = score_trained(at, edited)
    count_agreement(at, scored)
    return put_together(at.pool, scored, at.folder, at.ranks, round=at.number, keep=parts.keep)
