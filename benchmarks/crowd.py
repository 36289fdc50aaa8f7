"""Compare the crowd with majority vote and Dawid-Skene's EM, for workers who lie, guess, collude or change.

    python benchmarks/crowd.py [--questions 2000] [--seeds 5] [--audited 0.1]

Simulated workers vote on pairs, and an expert tells the truth about a tenth of them afterwards. The error is the share
of wrong verdicts on the pairs without an audit; a tie is half an error. Majority vote and the crowd judge each pair as
it arrives. EM uses all votes of all pairs, later ones included; its second line also gets the audits; its third uses at
each pair only what the crowd has. "best rule" knows every worker's accuracy (and who copies); regret is measured
against it.
Writes benchmarks/results/crowd.json and docs/images/crowd.png.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from choosy.methods.aggregation import Records, probability_first, update_from_expert, update_from_peers
from choosy.types import Verdict

ROOT = Path(__file__).resolve().parents[1]
Floats = NDArray[np.float64]

# ability of each worker, before and after half of the questions, or after another share `turn` of them; "copy" workers
# say what the first of them says; with `each`, every question goes to so many workers only
CROWDS: dict[str, dict[str, Any]] = {
    "honest": {"before": [0.9, 0.85, 0.8, 0.75, 0.7, 0.7, 0.65, 0.65, 0.6]},
    "spammers (6 of 9 guess)": {"before": [0.9, 0.85, 0.8] + [0.5] * 6},
    "liars (4 of 9)": {"before": [0.9, 0.85, 0.8, 0.75, 0.7] + [0.2] * 4},
    "liars (6 of 9)": {"before": [0.9, 0.85, 0.8] + [0.2] * 6},
    "colluders (5 of 9 copy a guess)": {"before": [0.9, 0.85, 0.8, 0.75] + [0.5] * 5, "copy": [4, 5, 6, 7, 8]},
    "turncoats (4 of 9 lie from half-time)": {
        "before": [0.8, 0.75, 0.7, 0.7, 0.65] + [0.9] * 4,
        "after": [0.8, 0.75, 0.7, 0.7, 0.65] + [0.1] * 4,
    },
    "sleepers (4 of 9 earn trust, then lie)": {
        "before": [0.8, 0.75, 0.7, 0.7, 0.65] + [0.95] * 4,
        "after": [0.8, 0.75, 0.7, 0.7, 0.65] + [0.1] * 4,
        "turn": 0.1,
    },
    "few votes (3 of 30 a pair; 10 lie)": {"before": [0.85] * 10 + [0.7] * 10 + [0.2] * 10, "each": 3},
}


def simulated(crowd: dict[str, Any], questions: int, seed: int) -> tuple[Floats, Floats, Floats]:
    """Truths (T,), -1 or 1, votes (T, N), 0 of who was not asked, and the probability that each vote was right."""
    draw = np.random.default_rng(seed)
    before = np.array(crowd["before"])
    ability = np.tile(before, (questions, 1))
    ability[int(questions * crowd.get("turn", 0.5)) :] = crowd.get("after", crowd["before"])
    truth = draw.choice([-1.0, 1.0], size=questions)
    votes = np.where(draw.random(ability.shape) < ability, 1.0, -1.0) * truth[:, None]
    if copy := [int(i) for i in crowd.get("copy", [])]:
        votes[:, copy] = votes[:, copy[:1]]
    if each := crowd.get("each"):
        votes[draw.random(votes.shape).argsort(1).argsort(1) >= each] = 0
    return truth, votes, ability


def majority(votes: Floats) -> Floats:
    """Sum of votes, as probability of the first: 1, 1/2 or 0."""
    return (np.sign(votes.sum(1)) + 1) / 2


def best_rule(votes: Floats, ability: Floats, crowd: dict[str, Any]) -> Floats:
    """The Bayes rule for known abilities; it knows as well who copies."""
    weight = np.log(ability / (1 - ability))
    weight[:, [int(i) for i in crowd.get("copy", [])][1:]] = 0
    return 1 / (1 + np.exp(-(votes * weight).sum(1)))


def dawid_skene(votes: Floats, known_truth: Floats | None = None, *, steps: int = 100) -> Floats:
    """EM for one ability a worker (Dawid and Skene 1979, symmetric errors), begun with the majority.

    Args:
        votes: (T, N).
        known_truth: Truths that are known, 0 elsewhere; they stay fixed, and EM begins with the abilities they show.
        steps: Most rounds of EM; it stops when nothing moves.
    """
    known = np.zeros(len(votes)) if known_truth is None else known_truth
    begun = (votes.sum(1) / np.maximum(1, np.abs(votes).sum(1)) + 1) / 2
    share = expected(votes[known != 0], (known[known != 0] + 1) / 2, votes) if known.any() else begun
    for _ in range(steps):
        first = np.where(known == 0, share, (known + 1) / 2)
        new = expected(votes, first, votes)
        if np.abs(new - share).max() < 1e-9:
            break
        share = new
    return share


def dawid_skene_so_far(votes: Floats, known_truth: Floats, *, every: int = 20) -> Floats:
    """EM that judges a pair by the votes and truths of earlier pairs, and fits them again after every so many."""
    first = majority(votes)
    for at in range(every, len(votes), every):
        share = dawid_skene(votes[:at], known_truth[:at])
        first[at : at + every] = expected(
            votes[:at], np.where(known_truth[:at] == 0, share, (known_truth[:at] + 1) / 2), votes[at : at + every]
        )
    return first


def expected(seen: Floats, first: Floats, votes: Floats) -> Floats:
    """One step of EM: abilities from seen votes and how likely the first is there, then the same of all votes."""
    agrees = np.where(seen > 0, first[:, None], 1 - first[:, None]) * np.abs(seen)
    ability = (agrees.sum(0) + 1) / (np.abs(seen).sum(0) + 2)
    return 1 / (1 + np.exp(-(votes * np.log(ability / (1 - ability))).sum(1)))


def crowd_rule(votes: Floats, truth: Floats, audited: NDArray[np.bool_] | None, memory: float = math.inf) -> Floats:
    """The rule of `choosy.methods.aggregation`, pair by pair; without audits workers are measured by their peers."""
    word: dict[float, Verdict] = {1.0: "first", -1.0: "second"}
    records: Records = {}
    first = np.empty(len(votes))
    for t, row in enumerate(votes):
        votes_here = {str(worker): word[float(vote)] for worker, vote in enumerate(row) if vote}
        first[t] = probability_first(votes_here, records)
        if audited is None:
            records = update_from_peers(records, votes_here, memory=memory)
        elif audited[t]:
            records = update_from_expert(records, votes_here, "first" if truth[t] > 0 else "second", memory=memory)
    return first


def mistakes(first: Floats, truth: Floats) -> Floats:
    """1 for each wrong verdict, 1/2 for a tie."""
    side = np.where(np.abs(first - 0.5) <= 1e-9, 0, np.sign(first - 0.5))
    return (1 - side * truth) / 2


def play(crowd: dict[str, Any], questions: int, seed: int, share: float) -> dict[str, Floats]:
    """The mistakes of every rule on the pairs without an audit."""
    truth, votes, ability = simulated(crowd, questions, seed)
    audited = np.random.default_rng([seed, 1]).random(questions) < share
    rules: dict[str, Callable[[], Floats]] = {
        "majority": lambda: majority(votes),
        "EM": lambda: dawid_skene(votes),
        "EM + audits": lambda: dawid_skene(votes, np.where(audited, truth, 0)),
        "EM + audits, past": lambda: dawid_skene_so_far(votes, np.where(audited, truth, 0)),
        "crowd, peers": lambda: crowd_rule(votes, truth, None),
        "crowd": lambda: crowd_rule(votes, truth, audited),
        "crowd, memory 50": lambda: crowd_rule(votes, truth, audited, 50),
        "best rule": lambda: best_rule(votes, ability, crowd),
    }
    return {name: mistakes(rule(), truth)[~audited] for name, rule in rules.items()}


def plot(curves: dict[str, dict[str, list[Floats]]], path: Path) -> None:
    """Regret against questions, a panel a crowd."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 4, figsize=(15, 6.4), sharex=True)
    for axis, (name, rules) in zip(axes.flat, curves.items(), strict=True):
        for rule, runs in rules.items():
            shortest = min(map(len, runs))
            if rule != "best rule":
                axis.plot(np.mean([run[:shortest] for run in runs], axis=0), label=rule, linewidth=1.4)
        axis.set_title(name, fontsize=10)
        axis.set_yscale("symlog", linthresh=10)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="upper center", ncols=7, frameon=False)
    figure.supxlabel("pairs judged")
    figure.supylabel("regret: wrong verdicts above the best rule's")
    figure.tight_layout(rect=(0, 0, 1, 0.96))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


def regret_bound(questions: int, workers: int, audited: float = 1.0) -> float:
    """Bound the expected wrong verdicts beyond those of the rule that knows every worker's accuracy (decision 006).

    >>> round(regret_bound(1000, 5), 1)
    371.7
    """
    return 2 * float(np.sqrt(workers * questions * np.log(questions + 1) / audited))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--audited", type=float, default=0.1)
    asked = parser.parse_args()

    results: dict[str, dict[str, dict[str, float]]] = {}
    curves: dict[str, dict[str, list[Floats]]] = {}
    for name, crowd in CROWDS.items():
        runs = [play(crowd, asked.questions, seed, asked.audited) for seed in range(asked.seeds)]
        curves[name] = {rule: [np.cumsum(run[rule] - run["best rule"]) for run in runs] for rule in runs[0]}
        results[name] = {}
        for rule in runs[0]:
            errors = np.array([run[rule].mean() for run in runs])
            regrets = np.array([curve[-1] for curve in curves[name][rule]])
            halves = np.array([curve[len(curve) // 2] for curve in curves[name][rule]])
            results[name][rule] = {
                "error": round(float(errors.mean()), 4),
                "error_sd": round(float(errors.std(ddof=1)), 4),
                "regret": round(float(regrets.mean()), 1),
                "regret_at_half": round(float(halves.mean()), 1),
            }
        print(f"\n{name}\n{'rule':<20}{'wrong verdicts':>16}{'regret at half':>16}{'regret at end':>16}")
        for rule, row in results[name].items():
            error = f"{row['error']:.3f} ± {row['error_sd']:.3f}"
            print(f"{rule:<20}{error:>16}{row['regret_at_half']:>16.1f}{row['regret']:>16.1f}")
    bound = regret_bound(asked.questions, 9, asked.audited)
    print(f"\nbound on the crowd's expected regret where its assumptions hold (9 workers): {bound:.0f}")
    result = {**vars(asked), "bound": round(bound, 1), "crowds": results}
    (ROOT / "benchmarks" / "results").mkdir(parents=True, exist_ok=True)
    (ROOT / "benchmarks" / "results" / "crowd.json").write_text(json.dumps(result, indent=1) + "\n")
    plot(curves, ROOT / "docs" / "images" / "crowd.png")


if __name__ == "__main__":
    main()
