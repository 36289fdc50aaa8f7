"""Held-out evaluation: numbers with their uncertainty, verdicts, and the search for the labels that were enough."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from scipy.stats import binomtest

from choosy.rounds.evaluate import (
    WinShare,
    answer_metrics,
    as_pairs,
    by_comparison,
    by_reward,
    evaluate,
    labels_until,
    telling,
    wilson,
)
from choosy.types import Candidates, Prompt, Response


@pytest.mark.parametrize(("wins", "n"), [(0, 5), (3, 7), (48, 64), (64, 64)])
def test_wilson_agrees_with_scipy(wins: int, n: int) -> None:
    expected = binomtest(wins, n).proportion_ci(confidence_level=0.95, method="wilson")
    assert wilson(wins / n, n) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_a_tie_is_half_a_win_and_an_invalid_verdict_decides_nothing() -> None:
    wins = WinShare()
    wins.update(["first", "first", "tie"])
    wins.update(["second", "invalid"])
    found = wins.compute()
    assert found["win_rate"] == 2.5 / 4
    assert (found["judged"], found["ties"], found["invalid"]) == (4, 0.2, 0.2)
    assert found["win_rate_low"] < 2.5 / 4 < found["win_rate_high"]  # type: ignore[operator]
    wins.reset()
    wins.update([])
    assert set(wins.compute().values()) == {None}


def test_rewards_have_an_interval_where_there_are_two() -> None:
    """1 and 3: mean 2, standard deviation sqrt(2), standard error 1; so are the lengths."""
    given = {1.0: (1,), 3.0: (1, 2, 3)}
    one, three = (Candidates(Prompt("p", "?"), (Response("", ids, reward=reward),)) for reward, ids in given.items())
    mean = {"": 2, "_low": 0.040036, "_high": 3.959964}
    expected = {f"{name}{end}": value for name in ("reward", "length") for end, value in mean.items()}
    assert answer_metrics([one, three]) == pytest.approx(expected)
    assert answer_metrics([one]) == {name: None if "_" in name else 1.0 for name in expected}


def test_a_reward_that_says_nothing_decides_nothing_and_is_in_no_mean() -> None:
    """As of a judge whose reply could not be read."""

    def judged(now: float | None, start: float | None) -> Candidates:
        return Candidates(Prompt("p", "?"), (Response("now", reward=now), Response("start", reward=start)))

    found = [by_reward(judged(*rewards), 0.0) for rewards in ((1, -1), (0, -1), (-1, 0), (1, 1), (None, 1))]
    assert found == ["first", "invalid", "invalid", "tie", None]
    assert by_reward(judged(0, -1), None) == "first", "where 0 is a score as any other"
    assert answer_metrics([telling(judged(*rewards), 0.0) for rewards in ((1, 0), (0, 1))])["reward"] == 1.0
    assert answer_metrics([telling(judged(*rewards), None) for rewards in ((1, 0), (0, 1))])["reward"] == 0.5


def test_no_one_is_asked_about_two_equal_answers() -> None:
    asked: list[Any] = []

    class Judge:
        def compare(self, items: Any, *, purpose: str) -> list[str]:
            asked.extend(items)
            return ["first"] * len(items)

    both = [
        Candidates(Prompt(name, "?"), (Response("a"), Response(other)))
        for name, other in zip("pqr", "aba", strict=True)
    ]
    verdicts = by_comparison(both, Judge())  # type: ignore[arg-type]
    assert [prompt.id for prompt, *_ in asked] == ["q"]
    assert (verdicts[0], verdicts[2]) == ("tie", "tie")
    assert verdicts[1] in ("first", "second")


def looks(rate: float, rng: random.Random, n: int = 64) -> list[tuple[int, float, int]]:
    """Four evaluations of a policy with a true win rate."""
    return [(20 * look, sum(rng.random() < rate for _ in range(n)) / n, n) for look in range(1, 5)]


def test_a_lucky_look_does_not_reach_the_target() -> None:
    """A true 0.76 shows 0.80 or more in one of four looks in six of ten runs; it is reached in one of ten."""
    rng = random.Random(0)
    runs = [looks(0.76, rng) for _ in range(1000)]
    assert sum(any(rate >= 0.8 for _, rate, _ in run) for run in runs) > 500
    assert sum(labels_until(run, 0.8) < math.inf for run in runs) < 100
    better = [labels_until(looks(0.9, rng), 0.8) for _ in range(200)]
    assert sum(labels < math.inf for labels in better) > 190


def test_the_target_is_reached_at_the_first_look_that_stays() -> None:
    assert labels_until([(10, 0.4, 100), (20, 0.9, 100), (30, 0.9, 100)], 0.8) == 20
    assert labels_until([(10, 0.9, 100), (20, 0.9, 100), (30, 0.4, 100)], 0.8) == math.inf
    assert labels_until([(10, 0.0, 1)], 0.0) == 10
    assert labels_until([], 0.5) == math.inf


def answer(name: str, logp: float, logp_ref: float) -> Candidates:
    return Candidates(Prompt(name, f"{name}?"), (Response(name, (1, 2), True, logp, logp_ref),))


@pytest.mark.parametrize(("samples_policy", "name"), [(True, "kl"), (False, "log_ratio")])
def test_a_mean_log_ratio_is_called_kl_only_of_samples_of_the_policy(samples_policy: bool, name: str) -> None:
    """Log-ratios 1 and 3 nats."""
    answers = [answer("a", -1.0, -2.0), answer("b", -1.0, -4.0)]
    start = {c.prompt.id: c for c in answers}
    found: dict[str, Any] = evaluate(answers, start, None, samples_policy=samples_policy).metrics
    assert {name: found[name], f"{name}_error": found[f"{name}_error"]} == {name: 2.0, f"{name}_error": 1.0}
    assert {"kl", "log_ratio"} & found.keys() == {name}


def test_heldout_pairs_are_the_best_and_the_worst_of_each_prompt() -> None:
    def given(*scores: float | None) -> Candidates:
        return Candidates(Prompt("p", "?"), tuple(Response(f"{score}", gold=score) for score in scores))

    (pair,) = as_pairs([given(2.0, 3.0, None, 1.0), given(1.0, 1.0), given(1.0)], "rows.jsonl")
    assert [r.gold for r in pair.responses] == [3.0, 1.0]
    with pytest.raises(ValueError, match=r"heldout_pairs=rows.jsonl has no two responses of different"):
        as_pairs([given(1.0, 1.0)], "rows.jsonl")
    single = [given(1.0), given(-1.0)]
    assert as_pairs(single, "rows.jsonl") == single
    with pytest.raises(ValueError, match="give rows with good responses as well as bad ones"):
        as_pairs([given(1.0), given(1.0)], "rows.jsonl")
