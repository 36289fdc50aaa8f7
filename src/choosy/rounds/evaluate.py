"""Held-out evaluation of the policy: on prompts that it answers, or on labeled pairs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor
from torchmetrics import CatMetric, MeanMetric, Metric

from choosy.data.pool import means_by_name, read_candidates
from choosy.data.pool_rows import POOL_SCHEMA, to_row
from choosy.data.table_files import write_table
from choosy.labeling.buyer import LabelBuyer
from choosy.methods.length_control import Z95, length_controlled
from choosy.methods.loss_inputs import Loss, LossInputs, form_of
from choosy.methods.pairing import verdict_of_scores
from choosy.parallel.ranks import Ranks, shard
from choosy.reporting.summary import RunSummary
from choosy.reporting.sweeps import quality_of
from choosy.rounds.context import Round
from choosy.rounds.sample import sample_responses
from choosy.sampling.settings import SamplingSettings
from choosy.types import MIRRORED, Candidates, Prompt, Verdict, seed_of

Z90_ONE_SIDED = 1.281552  # of a bound that is exceeded with 90 %

OUTCOME: Mapping[Verdict, float | None] = {"first": 1.0, "tie": 0.5, "second": 0.0, "invalid": None}


@dataclass(frozen=True)
class Evaluation:
    """One round's held-out result: metrics to log, and the rows of its table."""

    metrics: dict[str, float | None]
    rows: Sequence[dict[str, Any]] = ()


# -- prompts that the policy answers ---------------------------------------------------------------------------


def answer(
    at: Round, prompts: Sequence[Prompt], settings: SamplingSettings, tick: Callable[[int], None]
) -> list[Candidates]:
    """Sample one answer to each held-out prompt, and score it at temperature 1.

    Returns:
        The answers in the order of the prompts, on every rank; `logp` is under the policy, `logp_ref` under the start
        policy, whatever the reference of the run is.
    """

    def done(some: Sequence[Candidates]) -> None:
        tick(len(some))

    mine = sample_responses(at, shard(prompts, at.ranks), n=1, purpose="evaluate", settings=settings, done=done)
    now = at.policy.score(mine)
    with at.policy.states.as_start():
        start = at.policy.score(mine)
    scored = [
        replace(c, responses=(replace(c.responses[0], logp=logp, logp_ref=logp_start),))
        for c, (logp,), (logp_start,) in zip(mine, now, start, strict=True)
    ]
    answers = {c.prompt.id: replace(c, prompt=c.prompt.plain or c.prompt) for c in at.ranks.gather(scored)}
    return [answers[p.id] for p in prompts]


def evaluate(
    answers: Sequence[Candidates],
    start: Mapping[str, Candidates],
    judge: LabelBuyer | None,
    *,
    samples_policy: bool = True,
) -> Evaluation:
    """Judge each answer against the start policy's answer to the same prompt.

    Args:
        answers: One response a prompt, with log-probs under the policy and under the start policy.
        start: The start policy's answers by prompt id.
        judge: Buys the judgements; a labeler that scores decides by its scores, and equal scores tie. None = only
            what needs no judge is measured.
        samples_policy: Whether the answers are samples of the policy itself, at temperature 1 and from all tokens.

    Returns:
        Metrics and rows. `win_rate_lc` is the win rate at equal lengths, in characters. The mean of
        log policy - log start over samples of the policy is an unbiased estimate of their KL divergence, and is called
        `kl`; over other samples it is none, and is called `log_ratio`.
    """
    both = [replace(c, responses=(c.responses[0], start[c.prompt.id].responses[0])) for c in answers]
    verdicts: list[Verdict | None] = []
    if judge is not None and judge.scores:
        both = judge.score(both, purpose="evaluate")
        verdicts = [by_reward(c, judge.terms.neutral) for c in both]
        both = [telling(c, judge.terms.neutral) for c in both]
    elif judge is not None:
        verdicts = by_comparison(both, judge)
    outcomes = [verdict and OUTCOME[verdict] for verdict in verdicts] or [None] * len(both)
    wins, log_ratio = WinShare(), Estimate()
    wins.update([verdict for verdict in verdicts if verdict])
    decided = [(c.responses, outcome) for c, outcome in zip(both, outcomes, strict=True) if outcome is not None]
    lengths = [(len(one.text), len(other.text)) for (one, other), _ in decided]  # models count tokens differently
    controlled = length_controlled([outcome for _, outcome in decided], lengths) or (None, None, None)
    ends = ("", "_low", "_high")
    equal_lengths = {f"win_rate_lc{end}": rate for end, rate in zip(ends, controlled, strict=True)}
    log_ratio.update([c.responses[0].logp - c.responses[0].logp_ref for c in both])  # summed over tokens
    name = "kl" if samples_policy else "log_ratio"
    mean, error = log_ratio.compute()
    metrics = {**answer_metrics(both), **wins.compute(), **equal_lengths, name: mean, f"{name}_error": error}
    rows = [
        to_row(c, origin="heldout", split="heldout", outcome=outcome) for c, outcome in zip(both, outcomes, strict=True)
    ]
    return Evaluation(metrics, rows)


def by_comparison(both: Sequence[Candidates], judge: LabelBuyer) -> list[Verdict | None]:
    """Compare the first response of each with the second; a seed draws which is shown first, for judges favour one.

    Equal texts tie, and no one is asked. None is a verdict that the budget of money does not pay.
    """
    differ = [c for c in both if c.responses[0].text != c.responses[1].text]
    said = dict(zip([c.prompt.id for c in differ], of_different(differ, judge), strict=True))
    return [said.get(c.prompt.id, "tie") for c in both]


def of_different(both: Sequence[Candidates], judge: LabelBuyer) -> list[Verdict | None]:
    """The verdicts on two different responses of each."""
    turned = [seed_of("shown", c.prompt.id) % 2 == 1 for c in both]
    shown = [c.responses[:: -1 if turn else 1] for c, turn in zip(both, turned, strict=True)]
    asked = [(c.prompt, first, second) for c, (first, second) in zip(both, shown, strict=True)]
    said = judge.compare(asked, purpose="evaluate")
    return [MIRRORED[verdict] if turn and verdict else verdict for verdict, turn in zip(said, turned, strict=True)]


def scored(answers: Sequence[Candidates], judge: LabelBuyer) -> list[Candidates]:
    """The held-out answers with their scores."""
    return [telling(c, judge.terms.neutral) for c in judge.score(answers, purpose="evaluate")]


def telling(c: Candidates, neutral: float | None) -> Candidates:
    """The candidates without the rewards that say nothing, which are in no mean."""
    responses = (replace(r, reward=None) if r.reward == neutral else r for r in c.responses)
    return replace(c, responses=tuple(responses))


def by_reward(c: Candidates, neutral: float | None) -> Verdict | None:
    """The verdict of two rewards, of which one may be neutral; None if the budget of money does not pay them."""
    now, start = (r.reward for r in c.responses)
    return None if now is None or start is None else verdict_of_scores(now, start, neutral)


# -- numbers with their uncertainty ----------------------------------------------------------------------------


class Estimate(CatMetric):
    """Mean of numbers with its standard error; None where there are too few numbers.

    Example:
        >>> Estimate()([1.0, 3.0])
        (2.0, 1.0)
    """

    def __init__(self) -> None:
        super().__init__(nan_strategy="disable", sync_on_compute=False)  # rank 0 judges, and has all answers
        self.set_dtype(torch.float64)

    def update(self, numbers: Sequence[float]) -> None:  # type: ignore[override]  # torchmetrics takes tensors too
        super().update(torch.tensor(numbers, dtype=torch.float64))

    def compute(self) -> tuple[float | None, float | None]:  # type: ignore[override]  # there a tensor
        numbers = torch.as_tensor(super().compute())
        n = len(numbers)
        mean = numbers.mean().item() if n else None
        return mean, numbers.std().item() / math.sqrt(n) if n > 1 else None


class WinShare(Metric):
    """Win rate with its 95 % interval, and the shares of ties and invalid verdicts; invalid ones decide nothing."""

    counts: Tensor

    def __init__(self) -> None:
        super().__init__(sync_on_compute=False)  # rank 0 judges, and has all verdicts
        self.add_state("counts", torch.zeros(len(OUTCOME), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, verdicts: Sequence[Verdict]) -> None:
        self.counts += torch.tensor([verdicts.count(verdict) for verdict in OUTCOME])

    def compute(self) -> dict[str, float | None]:
        wins, ties, losses, invalid = self.counts.tolist()  # in the order of OUTCOME
        judged, verdicts = wins + ties + losses, wins + ties + losses + invalid
        win_rate = (wins + 0.5 * ties) / judged if judged else None
        low, high = (None, None) if win_rate is None else wilson(win_rate, judged)
        return {
            "win_rate": win_rate,
            "win_rate_low": low,
            "win_rate_high": high,
            "judged": judged or None,
            "ties": ties / verdicts if verdicts else None,
            "invalid": invalid / verdicts if verdicts else None,
        }


def answer_metrics(answers: Sequence[Candidates]) -> dict[str, float | None]:
    """Mean reward and mean length of the first responses with 95 % intervals, and rewards by parts and by sources."""
    firsts = [c.responses[0] for c in answers]
    rewards = [first.reward for first in firsts if first.reward is not None]
    found: dict[str, float | None] = {}
    for name, numbers in {"reward": rewards, "length": [float(len(first.ids)) for first in firsts]}.items():
        estimate = Estimate()
        estimate.update(numbers)
        mean, error = estimate.compute()
        low, high = (None, None) if mean is None or error is None else (mean - Z95 * error, mean + Z95 * error)
        found |= {name: mean, f"{name}_low": low, f"{name}_high": high}
    by_source = [[(c.prompt.source, c.responses[0].reward)] for c in answers if c.prompt.source]
    scored = [[(source, reward) for source, reward in one if reward is not None] for one in by_source]
    of = {"parts": means_by_name(c.responses[0].parts for c in answers), "sources": means_by_name(scored)}
    return found | {f"{kind}/{name}": value for kind, means in of.items() for name, value in means.items()}


def wilson(mean: float, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a share (1927); ties count as half a win, which makes it a little too wide.

    Example:
        >>> [round(end, 4) for end in wilson(0.75, 64)]
        [0.6318, 0.8399]
    """
    middle = (mean + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(mean * (1 - mean) / n + (z / (2 * n)) ** 2)
    return max(0.0, middle - half), min(1.0, middle + half)


def labels_until(looks: Sequence[tuple[int, float, int]], target: float) -> float:
    """Labels that were bought when the win rate had reached a target to stay.

    One look above the target may be luck, and the more looks, the likelier. The target counts as reached at the first
    look from which on the mean win rate to the end of the run exceeds it with 90 % confidence (Wilson's one-sided
    bound); if there is none, infinity is returned. All looks are at the same prompts, so that the bound is that of a
    single one: more looks do not make it tighter.

    Args:
        looks: Of each evaluation, in order: labels bought so far, win rate, judged answers.
        target: The win rate that is wanted.

    Example:
        >>> labels_until([(10, 0.5, 64), (20, 0.9, 64), (30, 0.9, 64)], 0.8)
        20.0
        >>> labels_until([(10, 0.5, 64), (20, 0.85, 64), (30, 0.75, 64)], 0.8)
        inf
    """
    for first, (labels, _, _) in enumerate(looks):
        judged = sum(n for _, _, n in looks[first:])
        pooled = sum(win_rate * n for _, win_rate, n in looks[first:]) / judged
        if wilson(pooled, max(n for _, _, n in looks[first:]), Z90_ONE_SIDED)[0] >= target:
            return float(labels)
    return math.inf


def objective(config: Mapping[str, Any], run: RunSummary) -> float | None:
    """Return the last win rate or quality, or the labels bought until the win rate reached the target to stay."""
    if config["objective"] == "quality":
        return quality_of(run)[1][-1] if run.evaluated else None
    if config["objective"] == "win_rate":
        return run.last.get("win_rate")
    looks = [
        (played["labels"]["spent"], played["evaluation"]["win_rate"], int(played["evaluation"]["judged"]))
        for played in run.evaluated
        if played["evaluation"].get("win_rate") is not None
    ]
    return labels_until(looks, config["target_win_rate"])


# -- labeled pairs -----------------------------------------------------------------------------------------------


def as_pairs(candidates: Sequence[Candidates], source: str) -> list[Candidates]:
    """Reduce given responses to the best and the worst of each prompt, by the scores that came with them.

    Prompts with one response each, good or bad, are returned as they are: `evaluate_pairs` pairs them.
    """
    pairs = []
    for c in candidates:
        scored = sorted((r for r in c.responses if r.gold is not None), key=lambda r: -(r.gold or 0.0))
        if len(scored) > 1 and scored[0].gold != scored[-1].gold:
            pairs.append(replace(c, responses=(scored[0], scored[-1])))
    if not pairs:
        lone = all(len(c.responses) == 1 for c in candidates)
        if lone and {True, False} <= {(c.responses[0].gold or 0) > 0 for c in candidates}:
            return [*candidates]
        advice = "good responses as well as bad ones" if lone else "chosen and rejected, or with scored responses"
        raise ValueError(
            f"data.heldout_pairs={source} has no two responses of different scores to compare; give rows with {advice}."
        )
    return pairs


def evaluate_pairs(at: Round, pairs: Sequence[Candidates]) -> dict[str, float | None]:
    """Measure how the policy ranks held-out pairs, the chosen response first, by its implicit reward.

    The reward is that over the start policy, also where the reference of the run moves.
    """
    mine = shard(pairs, at.ranks)
    if "reference" in at.loss.needs:
        with at.policy.states.referring_to_start():
            mine = at.policy.score_reference(mine)
    return pair_metrics(at.loss, mine, at.policy.score(mine), at.ranks)


def pair_metrics(
    loss: Loss, mine: Sequence[Candidates], logps: Sequence[Sequence[float]], ranks: Ranks
) -> dict[str, float | None]:
    """Measure how a policy ranks pairs, the chosen response first, by its implicit reward.

    Of single responses each good one makes a pair with each bad one, of whatever prompts.

    Args:
        loss: Whose implicit reward it is.
        mine: This rank's pairs, with log-probs under the reference where the loss needs one.
        logps: The log-probs of their responses under the policy.
        ranks: All that measure together.

    Returns:
        `loss`, the mean of the training loss (None if it is no loss of single pairs, or needs tokens); `accuracy`, the
        share of pairs whose chosen response has the higher implicit reward (equal ones count half), with its 95 %
        interval where the pairs are given ones; `margin`, the mean difference of the implicit rewards; and the number
        of `pairs`.
    """
    scored = [
        (logp, r.logp_ref, r.length, r.gold)
        for c, of_prompt in zip(mine, logps, strict=True)
        for logp, r in zip(of_prompt, c.responses, strict=True)
    ]
    logp_R, ref_R, length_R, gold_R = torch.tensor(scored, dtype=torch.float64).view(-1, 4).unbind(1)
    sizes = [len(c.responses) for c in mine]
    of_all = ranks.gather(sizes)
    lone = 1 in of_all
    s = LossInputs(logp_R, ref_R, sizes=sizes, length_R=length_R, reward_R=gold_R, good_R=gold_R > 0 if lone else None)
    if lone:
        labeled = zip(loss.rewards(s).tolist(), gold_R.tolist(), strict=True)
        return {"loss": None, **good_against_bad(ranks.gather([*labeled]))}
    margin_B = -loss.rewards(s).view(-1, 2).diff().flatten()
    values = {"accuracy": margin_B.sign() / 2 + 0.5, "margin": margin_B}
    if form_of(loss.needs) == "pair" and not loss.needs & {"tokens", "step", "collision"}:
        values["loss"] = loss.items(s)
    means = {name: MeanMetric(nan_strategy="disable", process_group=ranks.group) for name in values}
    for name, mean in means.items():
        mean.set_dtype(torch.float64).update(values[name])
    found = {name: mean.compute().item() for name, mean in means.items()}
    low, high = wilson(found["accuracy"], len(of_all))
    return {"loss": None, **found, "accuracy_low": low, "accuracy_high": high, "pairs": len(of_all)}


def good_against_bad(rewards: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Measure how implicit rewards rank each good response against each bad one; the accuracy is the ROC's area.

    Args:
        rewards: The implicit reward of each response, and its label: above 0 if it is good.

    Example:
        >>> good_against_bad([(2.0, 1), (0.0, 1), (1.0, -1), (0.0, -1)])  # won, won, lost, tied
        {'accuracy': 0.625, 'margin': 0.5, 'pairs': 4}
    """
    good_G, bad_B = (torch.tensor([r for r, label in rewards if (label > 0) is one]).double() for one in (True, False))
    sorted_B = bad_B.sort().values
    below_G = (torch.searchsorted(sorted_B, good_G) + torch.searchsorted(sorted_B, good_G, right=True)) / 2
    accuracy, margin = below_G.double().mean() / len(bad_B), good_G.mean() - bad_B.mean()
    return {"accuracy": accuracy.item(), "margin": margin.item(), "pairs": len(good_G) * len(bad_B)}


# -- the start policy's answers --------------------------------------------------------------------------------


def start_file(folder: Path) -> Path:
    """Where the start policy's answers are written."""
    return folder / "start.parquet"


def write_start(folder: Path, answers: Sequence[Candidates], about: Mapping[str, Any]) -> None:
    """Write the start policy's answers, once for the run."""
    rows = [to_row(c, origin="heldout", split="heldout") for c in answers]
    table = pa.Table.from_pylist(rows, schema=POOL_SCHEMA)
    write_table(table, start_file(folder), {**about, "round": -1, "evaluation": answer_metrics(answers)})


def read_start(folder: Path, prompts: Sequence[Prompt]) -> list[Candidates]:
    """Read the start policy's answers to these prompts, which must be those of the start."""
    known = {c.prompt.id: c for c in read_candidates(start_file(folder))}
    if lost := [p.id for p in prompts if p.id not in known]:
        raise ValueError(
            f"{start_file(folder)} has no start answer to held-out prompt {lost[0]} ({len(lost)} lack one); "
            "the held-out prompts of a run must stay the same. Resume with the old ones, or choose another name=... or "
            "run_dir=..."
        )
    return [known[p.id] for p in prompts]
