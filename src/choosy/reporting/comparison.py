"""What the arms of a sweep need, each beside the baseline, and the sentence on which of them pays."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from choosy.reporting.courses import Arm, Course, Versus, in_common, versus
from choosy.reporting.figures import as_amount, as_difference, as_p, as_range, as_share
from choosy.reporting.summary import MEASURES, as_spread
from choosy.reporting.sweeps import FEWEST_SEEDS, warn_of_few_seeds

COSTS = ("labels", "seconds", "tokens")
BY_CHANCE = ("random_pairs", "random", "few_prompts")  # selectors, the first of which is the baseline


@dataclass(frozen=True)
class Comparison:
    """The arms of a sweep, and each of them beside the baseline.

    Attributes:
        arms: The runs of each arm by seed.
        baseline: The arm that the others are compared with.
        costs: The costs that are compared.
        beside: For each other arm, its comparison at each cost.
        itself: The baseline beside itself at each cost: what its own final quality costs it.
        skipped: Folders of runs, and arms, that are not compared, each with the reason.
    """

    arms: Mapping[str, Arm]
    baseline: str
    costs: tuple[str, ...]
    beside: Mapping[str, Mapping[str, Versus]]
    itself: Mapping[str, Versus]
    skipped: Mapping[str, str]

    @property
    def measure(self) -> str:
        """What the quality is: reward, win rate or accuracy."""
        return next(iter(self.arms[self.baseline].values())).measure.replace("_", " ")

    def final(self, name: str) -> str:
        """The mean final quality, with its standard deviation, of an arm on the seeds that the baseline has too."""
        return final_of(in_common(self.arms[name], self.arms[self.baseline])[0])

    @property
    def uneven(self) -> list[str]:
        """For each arm that has other seeds than the baseline, or runs cut short: where the baseline ends beside it."""
        its_own = self.arms[self.baseline]
        beside = {name: in_common(self.arms[name], its_own)[1] for name in self.beside}
        whole = in_common(its_own, its_own)[1]
        return [
            f"{name} is compared on the seeds of both, as far as both came: "
            f"there {self.baseline} ends at {final_of(runs)}."
            for name, runs in beside.items()
            if [run.quality for run in runs] != [run.quality for run in whole]
        ]

    @property
    def over_prompts(self) -> bool:
        """Whether intervals are over held-out prompts as well, whose single answers are known."""
        return all(run.answers for name in (self.baseline, *self.beside) for run in self.arms[name].values())

    def rows(self, cost: str) -> list[tuple[str, Versus]]:
        """The arms at a cost: the baseline, then the others, the cheapest first."""

        def dearness(name: str) -> tuple[float, float]:
            found = self.beside[name][cost]
            return (math.inf if math.isnan(found.ratio.value) else found.ratio.value, -found.gain.value)

        others = [(name, self.beside[name][cost]) for name in sorted(self.beside, key=dearness)]
        return [(self.baseline, self.itself[cost]), *others]

    @property
    def headline_cost(self) -> str:
        """The cost that the sentence is about."""
        return "money" if "money" in self.costs else "labels"

    @property
    def best(self) -> str:
        """The cheapest of the arms that are shown to pay; if none is, of those that end higher; else of all.

        Arms with few seeds count only beside no others.
        """
        _, *others = self.rows(self.headline_cost)
        known = [one for one in others if not math.isnan(one[1].ratio.value)] or others
        enough = [one for one in known if one[1].seeds >= FEWEST_SEEDS] or known
        shown = (name for is_so in (self.pays, self.ends_higher) for name, found in enough if is_so(found))
        return next(shown, enough[0][0])

    def pays(self, found: Versus) -> bool:
        """Whether an arm is shown to need less than the baseline for its final quality."""
        return found.ratio.high < 1 and self.ends_higher(found)

    def ends_higher(self, found: Versus) -> bool:
        """Whether an arm is shown to end higher than the baseline, as one of several (Bonferroni)."""
        return found.gain.value > 0 and found.p * len(self.beside) < 0.05

    @property
    def sentence(self) -> str:
        """Which arm pays here, by how much; or that none does, and what would tell."""
        cost, baseline = self.headline_cost, self.baseline
        if len(self.arms) == 1:
            return f"There is only one arm, {baseline}; run another one on the same seeds to compare."
        if not self.beside:
            reasons = sorted({self.skipped[name] for name in self.arms.keys() - {baseline}})
            return f"The {len(self.arms)} arms are listed in compare.csv and not compared: {'; '.join(reasons)}."
        lead = f"{warn_of_few_seeds(self.beside[self.best][cost].seeds)} ".lstrip()
        return lead + self._of_the_best(self.beside[self.best][cost], few=bool(lead))

    def _of_the_best(self, found: Versus, *, few: bool) -> str:
        """What is known of the best arm, and what would tell more; nothing of chance where the seeds are few."""
        cost, baseline, best, ratio, gain = self.headline_cost, self.baseline, self.best, found.ratio, found.gain.value
        share_range = f"95 % interval {as_range(ratio, as_share)}"
        rests = f"p {as_p(found.p)}, {found.seeds} seeds"
        gain_rests = f"95 % interval {as_range(found.gain, as_difference)}, {rests}"
        if math.isnan(ratio.value):
            rest = f"{gain:+.2f}" if few else f"{gain:+.2f} ({gain_rests})"
            spent = any(run.spent[cost][-1] for run in self.arms[baseline].values())
            why = "ends no better than it began" if spent else f"has spent no {cost}"
            return (
                f"{baseline} {why}, so that no cost of its quality can be compared; the best beside it at the end is "
                f"{best}, {rest}."
            )
        if math.isinf(ratio.value):
            return f"No arm reaches the final quality of {baseline}; the nearest is {best} ({gain:+.2f})."
        needs = self._needs(found)
        if few:
            return f"In these runs {best} needs {needs}."
        if self.pays(found):
            return f"{best} pays here: it needs {needs} ({share_range}, {rests})."
        if self.ends_higher(found):
            return (
                f"No saving of {cost} is shown: {best} ends {gain:.2f} higher than {baseline} ({gain_rests}), and "
                f"needs {needs} ({share_range})."
            )
        what = f"The best, {best}, needs {needs} ({share_range}, {rests})"
        if gain <= 0 or not 0 < found.more_seeds < math.inf:
            return f"No arm is shown to pay more than {baseline}. {what}."
        more = math.ceil(max(found.more_seeds, 3))
        return (
            f"No arm is shown to pay more than {baseline} yet. {what}; about {more} more seeds would tell, if the "
            "difference is what it seems."
        )

    def _needs(self, found: Versus) -> str:
        """What an arm needs of the headline's cost, and that it ends lower where it does."""
        cost, ratio, paid = self.headline_cost, found.ratio.value, found.paid.value
        needs = f"{as_share(ratio)} of the {cost} of {self.baseline} for its final quality"
        if cost == "money" and ratio:
            needs += f", {as_amount(paid, cost)} instead of {as_amount(paid / ratio, cost)}"
        return f"{needs}, and ends {-found.gain.value:.2f} lower" if found.gain.value < 0 else needs


def final_of(runs: Sequence[Course]) -> str:
    """The mean of the final quality of runs, with its standard deviation."""
    return as_spread([run.quality[-1] for run in runs], MEASURES[runs[0].measure][1])


def chance(arms: Iterable[str]) -> str | None:
    """The first arm whose selector chooses by chance, by the selector's name and no option's value.

    Example:
        >>> chance(["few_prompts callbacks.random_prompts.fraction=0.1", "random", "random_pairs lr=1e-4"])
        'random_pairs lr=1e-4'
    """
    selectors = {name: name.partition(" ")[0] for name in arms}
    return next((name for wanted in BY_CHANCE for name, found in selectors.items() if found == wanted), None)


def compared(
    arms: Mapping[str, Arm],
    baseline: str | None = None,
    *,
    costs: Sequence[str] = COSTS,
    skipped: Mapping[str, str] | None = None,
) -> Comparison:
    """Compare each arm with the baseline at each cost.

    Args:
        arms: The runs of each arm by seed.
        baseline: The arm to compare with; None = the one that chooses at random, else the first.
        costs: What is compared; each run knows what it spent of it.
        skipped: What is left out, with the reason.

    Raises:
        ValueError: There is no such baseline, or not all runs measure the same quality.
    """
    if baseline is None:
        baseline = chance(arms) or next(iter(arms))
    if baseline not in arms:
        raise ValueError(f"baseline={baseline} is none of the arms: {', '.join(arms)}")
    measures = sorted({run.measure for arm in arms.values() for run in arm.values()})
    if len(measures) > 1:
        raise ValueError(f"Some runs measure {measures[0]}, others {measures[1]}; compare runs with one evaluation.")
    its_own = arms[baseline]
    apart = {name: f"no seed in common with {baseline}" for name, arm in arms.items() if not arm.keys() & its_own}
    for name, arm in arms.items():
        judges = [(arm[seed].judge, its_own[seed].judge) for seed in sorted(arm.keys() & its_own)]
        if other := next((pair for pair in judges if pair[0] != pair[1]), None):
            apart[name] = f"judged by {other[0]}, and {baseline} by {other[1]}"
    others = {name: arm for name, arm in arms.items() if name != baseline and name not in apart}
    beside = {
        name: {cost: versus(arm, its_own, cost, comparisons=len(others)) for cost in costs}
        for name, arm in others.items()
    }
    itself = {cost: versus(its_own, its_own, cost) for cost in costs}
    return Comparison(arms, baseline, tuple(costs), beside, itself, {**(skipped or {}), **apart})
