"""Writes docs/evidence.md from what the arms of each task paid."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

from choosy.reporting.figures import as_share

INTRO = """\
Written by `make evidence` from the finished runs in `benchmarks/results/evidence/`; runs on data of your own, `make
evidence ONLY=film DATA=FILE`, are kept beside them. Unless it says otherwise below, every arm is set to buy the same
number of labels, and has the learning rate and the beta that were best for it on other seeds. With the same seed, an
arm and the one it is compared with see the same prompts and begin from the same policy; where answers are sampled,
those to the held-out prompts are the same at the start, to the last digit. A seed that was run from two policies, on
two machines, counts as two. *Labels* is the share of random
choice's labels at which the arm has random choice's final reward, *seconds* and *tokens* the same for these costs
(seconds of the processor, on one thread, for choosing, sampling, scoring and training); *area* is the difference of the
mean reward over all labels, *at equal distance* the difference of the rewards at random choice's final distance from
the start: the mean log ratio of sampled answers, which is not quite the KL divergence, for the tasks sample at
temperature 0.7 or 0.8. Intervals are 95 %, by a bootstrap over seeds and held-out prompts; p is a sign-flip test of the
final rewards. *Never* is a cost at which that reward was not reached."""
ABOUT = {
    "film": """\
A Llama of 1.2 million parameters, trained from scratch on sentences of film reviews, continues the first words of a
review; a classifier of sentiment (tf-idf, logistic regression) gives the reward. Four responses to each of 512 prompts,
64 pairs labeled in each of four rounds, or all responses to 32 prompts, trained from the start's weights on all labels;
512 held-out prompts. `few_prompts` trains on all pairs of unequal scores, `best_against_worst` and `spread` on one a
prompt; `few_prompts_8` is `few_prompts` with eight responses to 16 prompts, for as many labels. The runs were made
on several machines, each of which trained the policy from the same data for itself, so that the shares of seconds are
rough; learning rate and beta were chosen on one of them. The picture leaves out arms with less than ten seeds.""",
    "film_two": """\
The task film with two responses to each prompt instead of four.""",
    "film_eight": """\
The task film with eight responses to each prompt instead of four; whole prompts are 16 in each round.""",
    "film_verdicts": """\
The task film with a labeler that says only which of two responses is better, by the same classifier: a pair is one
label. Held-out answers are scored as in the task film.""",
    "film_wrong_verdicts": """\
The same, where each verdict is wrong with probability 0.2.""",
    "film_second_judge": """\
The task film, where held-out answers are scored by another judge, which no selector sees: a classifier of sentiment on
MiniLM's embeddings.""",
    "film_weights": """\
The task film with the responses to 32 random prompts labeled in each round, and the best trained against the worst: the
arms differ in the weight of a pair.""",
    "film_predictor": """\
The task film with random pairs: all labels bought, or some given by a small model that learns them from those bought
(`labeler=predictor`). Only bought labels are counted.""",
    "film_prompts": """\
The policy and labeler of the task film, where prompts are chosen instead of pairs: the first of five rounds samples
two responses to all 512 prompts, each later one to 30 % of them (`full`: to all), and trains on each prompt's newest
pair. `few_prompts` samples four responses to a random quarter of the prompts in every round, and trains on all pairs
of that round. Shares are of what `full` pays for its final reward.""",
    "chat": """\
SmolLM2-135M-Instruct with LoRA answers 128 of the prompts that come with Choosy in up to 24 tokens; VADER's sentiment
is the reward. Four responses a prompt, 32 pairs labeled in each of four rounds, or all responses to 16 prompts, trained
from the start's weights on all labels; 64 held-out prompts. `random` samples only the prompts that it labels.
`predicted_gap` buys 2 to 6 % more labels, since a pair of equal rewards is replaced by the next one. `few_prompts_8`
samples eight responses to 8 prompts, and makes steps of 16 pairs. All arms have the same learning rate and beta.""",
    "chat_small": """\
The task chat with 64 prompts, three rounds, and 16 pairs labeled in each, or all responses to 8 prompts, trained four
times instead of two. Selectors of pairs buy 2 to 15 % more labels.""",
    "chat_defaults": """\
The task chat with what Choosy does if nothing is typed: temperature 1, up to 32 tokens, one pass over each round's
pairs, steps of 16 pairs, the policy trained on from round to round. In each of four rounds as many labels are bought:
two responses to half of 128 prompts (`random`), four to a quarter, or eight to an eighth, and all pairs of unequal
rewards are trained on.""",
    "pools": """\
A Llama of 1.2 million parameters, trained on other models' answers to 200 instructions, learns which of them GPT-4
scores higher. The quality is the share of held-out pairs that it ranks as GPT-4 does; in each of them GPT-4's shares of
wins differ by a factor of ten or more. In each of three rounds 32 pairs with unequal scores are labeled, of answers of
at most 100 words, or all answers to 9 prompts; the policy is trained from the start's weights on all labels. Pairs with
equal scores are labels too, so that the arms buy between 124 and 227 labels: the final difference is not one at
equal cost. The error of one run's quality is about 2.5 points.""",
    "harmless": """\
SmolLM2-135M-Instruct with LoRA learns people's choices between two answers to a conversation; the quality is the share
of held-out pairs in which it prefers the answer that people preferred.""",
}
OVERVIEW = """\
| task | compared with | the best beside it | labels | 95 % interval | p | seeds, arms |
|---|---|---|---|---|---|---|"""
HEAD = """\
| arm | lr, beta | seeds | labels | 95 % interval | final difference | p | area | at equal distance | seconds | tokens |
|---|---|---|---|---|---|---|---|---|---|---|"""


def written(result: Mapping[str, Any]) -> str:
    """The page."""
    overview = "\n".join([OVERVIEW, *(in_a_row(name, task) for name, task in result.items())])
    tasks = (of_task(name, task) for name, task in result.items())
    return "\n\n".join(["# Does choosing pay?", INTRO, overview, *tasks]) + "\n"


def in_a_row(name: str, task: Mapping[str, Any]) -> str:
    """One task's line of the overview: its best arm beside its baseline."""
    best = task["best"]
    found = task["beside_random"][best]["labels"]
    ratio, low, high = map(share, found["ratio"])
    cells = [f"[{name}](#{name})", task["baseline"], best, ratio, f"{low} to {high}", f"{found['p']:.2g}"]
    return f"| {' | '.join(cells)} | {found['seeds']}, {task['comparisons'] + 1} |"


def of_task(name: str, task: Mapping[str, Any]) -> str:
    """The part of one task: what it is, its picture, its table, its sentence."""
    first = task["baseline"]
    ranked = sorted(task["beside_random"].items(), key=lambda arm: number(arm[1]["labels"]["ratio"][0]))
    rows = [row(arm, task["settings"][arm], costs) for arm, costs in ranked]
    others = [costs["tokens"]["ratio"][0] for costs in task["beside_random"].values()]
    tokens = "–" if all(ratio is None for ratio in others) else "100%"  # given responses have none
    own = f"| {first} | {tuned(task['settings'][first])} | | 100% | | | | | | 100% | {tokens} |"
    table = "\n".join([HEAD, own, *rows])
    on = f"chosen on seeds {', '.join(map(str, task['tuned_on']))}" if task["tuned_on"] else "the same for all"
    seeds = sorted({costs["labels"]["seeds"] for costs in task["beside_random"].values()})
    beside = f"{task['comparisons']} comparison{'s' if task['comparisons'] > 1 else ''}"
    rests = f"{' to '.join(map(str, sorted({seeds[0], seeds[-1]})))} seeds, {beside}; learning rate and beta {on}."
    picture = f"![reward against costs](images/evidence_{name}.png)"
    typed = "\n".join(f"- {arm}: `{' '.join(words)}`" for arm, words in task["typed"].items())
    for_all = fill(" ".join(task["typed_for_all"]), 120, break_long_words=False, break_on_hyphens=False)
    return "\n\n".join(
        [
            f"## {name}",
            ABOUT[name],
            picture,
            table,
            rests,
            fill(task["sentence"], 120),
            f"What is typed for all (`{{made}}` is the folder of the task's files):\n\n```\n{for_all}\n```",
            f"and after it for each, where a later word replaces an earlier one:\n\n{typed}",
        ]
    )


def share(ratio: float | str | None) -> str:
    """A ratio as a percentage, "never", or a dash where it is not known."""
    return as_share(number(ratio))


def number(found: float | str | None) -> float:
    """A number that JSON has as a text where it is infinite, and as null where it is not known."""
    return math.inf if found == "never" else math.nan if found is None else float(found)


def tuned(settings: Sequence[str]) -> str:
    """The values of what was tuned."""
    return ", ".join(line.split("=")[1] for line in settings)


def row(arm: str, settings: Sequence[str], costs: Mapping[str, Any]) -> str:
    """One arm's line."""
    found = costs["labels"]
    ratio, low, high = map(share, found["ratio"])
    cells = [arm, tuned(settings), str(found["seeds"]), ratio, f"{low} to {high}"]
    cells += [with_interval(found["gain"]), f"{found['p']:.2g}"]
    cells += [with_interval(found[measure]) for measure in ("area", "at_kl")]
    cells += [share(costs[cost]["ratio"][0]) for cost in ("seconds", "tokens")]
    return f"| {' | '.join(cells)} |"


def with_interval(numbers: Sequence[float | None]) -> str:
    """A difference with its interval, as far as they are known."""
    value, *ends = ("" if x is None else f"{x:+.2f}" for x in numbers)
    return f"{value} ({' to '.join(ends)})" if all(ends) else value or "–"
