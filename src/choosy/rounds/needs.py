"""Checks before the first round that a run gives its loss or weighting what it needs."""

from __future__ import annotations

from collections.abc import Collection

from choosy.labeling.protocols import labelers_able_to
from choosy.methods.loss_inputs import Loss, form_of
from choosy.models.embeddings import refuse_embedder
from choosy.options.parts import typed_for
from choosy.rounds.context import PairSelector, ResponseSelector
from choosy.rounds.run import Run


def check_needs(
    run: Run, loss: Loss, *, responses: Collection[int], source: str, pair_selector: PairSelector | None = None
) -> None:
    """Refuse a loss or a weighting that would miss something.

    Args:
        run: The run.
        loss: The loss that it trains with.
        responses: The numbers of responses that prompts have.
        source: Where the responses come from, as it is typed.
        pair_selector: Chooses the pairs that are labeled, if anything does.
    """
    weighting, labels = run.weighting, run.labels
    name, labeler = typed_for(loss), labels.labeler.name
    if min(responses) == 1:
        has_nothing = max(responses) == 1 and not isinstance(pair_selector, ResponseSelector)
        refuse_comparing(run, loss, source=source, pair_selector=pair_selector if has_nothing else None)
    if min(responses) == 1 < max(responses) and pair_selector is not None:
        raise ValueError(
            f"{source} gives some prompts a single response and others several, and {typed_for(pair_selector)} would "
            "never label the single ones. Type selector=none, which labels everything, or give each kind a run of its "
            "own."
        )
    scorers = f"a labeler that scores: {labelers_able_to('score')}"
    if run.training.threshold != 0 and min(responses) > 1:
        raise ValueError(
            f"threshold={run.training.threshold} says which single responses are good, and {source} gives every prompt "
            "several; type data.responses=1 and loss=kto, or threshold=0."
        )
    gaps = labels.scores or run.training.reward_gap != "bought"
    if run.training.reward_gap != "bought" and (weighting.needs == "gap" or "reward" in loss.needs):
        refuse_embedder(run.learned_reward.embedder)
    if weighting.needs == "gap" and not gaps:
        raise ValueError(
            f"{typed_for(weighting)} weighs a pair by its rewards' gap, and labeler {labeler} gives none: it only "
            f"compares. Choose weighting=uniform, or reward_gap=predicted, or {scorers}."
        )
    if labels.editor is not None and form_of(loss.needs) == "list":
        raise ValueError(
            f"{name} ranks all responses to a prompt, and an editor edits a pair; type ~editor instead of "
            "what is typed for the editor."
        )
    if labels.editor is not None and run.training.pairing_for(loss) == "all" and max(responses) > 2:
        raise ValueError(
            "An editor replaces the chosen response of a pair, which is in several pairs with pairing=all; type "
            "pairing=best_worst, or ~editor instead of what is typed for the editor."
        )
    if labels.editor is not None and "own" in loss.needs:
        raise ValueError(
            f"{name} needs samples of the policy beside each pair, and an edited response is none; type loss=sigmoid, "
            "or ~editor instead of what is typed for the editor."
        )
    if "reward" in loss.needs and not (gaps if form_of(loss.needs) == "pair" else labels.scores):
        raise ValueError(
            f"{name} needs the rewards of a prompt's responses, and labeler {labeler} gives none: it only compares. "
            f"Choose loss=sigmoid, or {'' if form_of(loss.needs) == 'list' else 'reward_gap=predicted, or '}{scorers}."
        )
    several = "pairing=all" if run.training.pairing == "all" else ""
    one = "pairing=best_worst"
    if pair_selector is not None and pair_selector.per_prompt != 1 and max(responses) > 2:
        several = f"{typed_for(pair_selector)} with per_prompt={pair_selector.per_prompt or 'null'}"
        one = "per_prompt=1"
    if form_of(loss.needs) == "single" and several:
        raise ValueError(
            f"{name} trains on single responses, and {several} would make most of them both good and bad. Choose "
            f"{one}, or a loss on pairs (loss=sigmoid)."
        )
    if "own" in loss.needs and several:
        raise ValueError(
            f"{name} adds a term of the policy's own samples to each pair, and {several} would count some of them more "
            f"often than others. Choose {one}, or loss=sigmoid."
        )
    sampler = run.sampler
    if "own" in loss.needs and sampler.ahead:
        raise ValueError(
            f"{name} needs samples of the policy that begins the round, and sampler.ahead=1 gives those of one round "
            "before. Type sampler.ahead=0, or a loss without own samples (loss=sigmoid, or loss=kto "
            "loss.reference_point=zero)."
        )
    if "own" in loss.needs and (sampler.temperature, sampler.top_p, sampler.top_k) != (1, 1, 0):
        raise ValueError(
            f"{name} needs samples of the policy's own distribution, and sampler.temperature={sampler.temperature} "
            f"sampler.top_p={sampler.top_p} sampler.top_k={sampler.top_k} draw from another. Choose "
            "sampler.temperature=1 sampler.top_p=1 sampler.top_k=0, or a loss without own samples (loss=sigmoid, or "
            "loss=kto loss.reference_point=zero)."
        )


def refuse_comparing(run: Run, loss: Loss, *, source: str, pair_selector: PairSelector | None) -> None:
    """Refuse, in one sentence, everything that compares responses to a prompt, where a prompt has a single one."""
    scorer, *scorers = labelers_able_to("score").split(", ")
    instead = {}  # what is typed in the place of each part
    if form_of(loss.needs) != "single":
        instead[typed_for(loss)] = "loss=kto"
    if run.weighting.needs == "gap":
        instead[typed_for(run.weighting)] = "weighting=uniform"
    if not run.labels.scores:
        instead[f"labeler {run.labels.labeler.name}"] = scorer
    if pair_selector is not None:
        instead[typed_for(pair_selector)] = "selector=none"
    if not instead:
        return
    *others, last = instead
    parts = f"{', '.join(others)} and {last} compare" if others else f"{last} compares"
    choices = [] if run.labels.scores else [f"another labeler that scores: {', '.join(scorers)}"]
    if pair_selector is not None:
        choices.append(
            "selector=predicted_gap, selector=d_optimal or selector=random_pairs, which choose single responses"
        )
    or_another = f" (or {'; or '.join(choices)})" if choices else ""
    raise ValueError(
        f"{source} gives some prompts a single response, and {parts} the responses to one prompt. Type "
        f"{' '.join(instead.values())}{or_another}, or give each prompt at least two responses (data.responses=2 where "
        "they are sampled)."
    )
