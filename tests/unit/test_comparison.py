"""What a comparison says of arms whose costs and qualities are known."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path

import pytest

from choosy.console import Terminal
from choosy.reporting.compare import (
    UnitPrices,
    draw,
    drawn,
    labels,
    panels,
    print_comparison,
    with_money,
    write_comparison,
)
from choosy.reporting.comparison import compared
from choosy.reporting.courses import Arm, Course
from choosy.reporting.summary import RunSummary
from choosy.reporting.sweeps import farther, kl_of, named, quality_of


def arm(slope: float, *, seconds: float = 100.0, seeds: int = 8, measure: str = "reward") -> Arm:
    """Runs that buy 400 labels in so many seconds; each seed is a little better than the one before."""
    labels = (0.0, 100.0, 200.0, 400.0)
    spent = {"labels": labels, "tokens": labels, "seconds": tuple(x / 400 * seconds for x in labels)}
    return {
        s: Course(spent, tuple(x * slope * (1 + s / 100) for x in labels), kl=labels, measure=measure)
        for s in range(seeds)
    }


def test_the_sentence_names_the_winner_in_money() -> None:
    arms = {"random_pairs": arm(0.01), "spread": arm(0.02), "certainty": arm(0.01)}
    prices = UnitPrices(label=0.05, hour=2)
    priced = {name: {s: with_money(run, prices) for s, run in runs.items()} for name, runs in arms.items()}
    sentence = compared(priced, costs=("money", "labels")).sentence
    whole = 400 * 0.05 + 100 / 3600 * 2
    assert sentence.startswith(
        f"spread pays here: it needs 50% of the money of random_pairs for its final quality, {whole / 2:.2f} instead of"
        f" {whole:.2f} (95 % interval 50%, p = 0.008, 8 seeds)"
    )


def test_the_sentence_prefers_an_arm_that_is_shown_to_pay_to_a_cheaper_one_that_is_not() -> None:
    """The lucky arm is far ahead on half of the seeds and behind on the others."""
    sure, lucky = arm(0.0125), {s: arm(0.06 if s % 2 else 0.005)[s] for s in arm(0.01)}
    found = compared({"random_pairs": arm(0.01), "lucky": lucky, "sure": sure})
    assert [name for name, _ in found.rows("labels")] == ["random_pairs", "lucky", "sure"]
    assert found.best == "sure"
    assert found.sentence.startswith("sure pays here: it needs 80% of the labels")


def test_a_cheap_labeler_and_a_dear_machine_want_another_arm() -> None:
    arms = {"random_pairs": arm(0.01), "thrifty": arm(0.02, seconds=1000.0), "fast": arm(0.0125, seconds=50.0)}

    def best(label: float, hour: float) -> str:
        prices = UnitPrices(label, hour)
        priced = {name: {s: with_money(run, prices) for s, run in runs.items()} for name, runs in arms.items()}
        return compared(priced, costs=("money", "labels")).sentence.split()[0]

    assert best(1.0, 0.01) == "thrifty"
    assert best(0.0001, 10.0) == "fast"


@pytest.mark.parametrize("price", [(0.0, 0.0), (-0.05, 2.0), (0.05, -1.0), (math.nan, 2.0), (math.inf, 0.0)])
def test_prices_that_compare_nothing_are_refused(price) -> None:
    with pytest.raises(ValueError, match=r"at least one of them above 0; found .* Type --label-price 0.05 or"):
        UnitPrices(*price)
    assert UnitPrices(0.0, 2.0).hour == 2.0


@pytest.mark.parametrize(
    ("names", "baseline"),
    [
        (["few_prompts callbacks.random_prompts.fraction=0.1", "random_pairs"], "random_pairs"),
        (["predicted_gap callbacks.predicted_gap.cold=random", "random_pairs"], "random_pairs"),
        (["[certainty,random_pairs]", "random", "random_pairs lr=1e-4"], "random_pairs lr=1e-4"),
        (["certainty", "few_prompts", "random"], "random"),
        (["certainty", "few_prompts"], "few_prompts"),
        (["certainty", "predicted_gap callbacks.predicted_gap.cold=random"], "certainty"),
    ],
)
def test_the_baseline_is_the_arm_whose_selector_chooses_by_chance(names, baseline) -> None:
    assert compared({name: arm(0.01, seeds=1) for name in names}).baseline == baseline


def ending(gains: list[float], *, unfinished: int | None = None) -> Arm:
    """Runs that gain so much by their end; of the unfinished one the last evaluation is missing."""
    runs = {s: arm(gain / 400, seeds=1)[0] for s, gain in enumerate(gains)}
    if unfinished is not None:
        spent = {cost: amounts[:3] for cost, amounts in runs[unfinished].spent.items()}
        runs[unfinished] = Course(spent, runs[unfinished].quality[:3], kl=(0.0, 1.0, 2.0), finished=False)
    return runs


def test_a_few_draws_in_which_the_baseline_does_not_rise_hide_no_clear_winner() -> None:
    """Two of its eight seeds fall, and the other arm ends far above it on each of them."""
    baseline = ending([0.6, -0.2, 0.5, 0.4, -0.1, 0.7, 0.5, 0.3])
    sentence = compared({"random_pairs": baseline, "spread": ending([1.5 + s / 10 for s in range(8)])}).sentence
    assert sentence.startswith("spread pays here: it needs 18% of the labels of random_pairs")
    assert "p = 0.008, 8 seeds" in sentence


def test_where_the_baseline_may_not_rise_the_gain_is_said_and_no_more_seeds_are_promised() -> None:
    baseline = ending([0.6, -0.5, 0.5, 0.4, -0.6, 0.3, -0.2, 0.1])
    found = compared({"random_pairs": baseline, "spread": ending([1.5 + s / 10 for s in range(8)])})
    assert found.sentence.startswith("No saving of labels is shown: spread ends 1.78 higher than random_pairs (95 % ")
    assert "for its final quality (95 % interval " in found.sentence
    assert "more seeds" not in found.sentence
    flat = compared({"random_pairs": ending([-0.1] * 8), "spread": ending([1.5 + s / 10 for s in range(8)])}).sentence
    assert flat.startswith("random_pairs ends no better than it began, so that no cost of its quality can be compared")
    assert "the best beside it at the end is spread, +1.95 (95 % interval +1.79 to +2.10, " in flat
    assert flat.endswith("p = 0.008, 8 seeds).")


def test_an_arm_whose_cost_is_not_known_hides_no_arm_whose_cost_is() -> None:
    """The baseline rises on average, and not on the seeds of one of the arms."""
    baseline = ending([-0.1] * 8 + [3.0] * 12)
    few, whole = ending([1.5] * 8), ending([-0.05] * 8 + [3.1] * 12)
    found = compared({"random_pairs": baseline, "few": few, "whole": whole})
    assert found.best == "whole"
    assert "no cost of its quality can be compared" not in found.sentence


def test_a_baseline_that_rises_and_spends_nothing_of_the_cost_is_not_said_to_fall() -> None:
    def free(runs: Arm) -> Arm:
        return {s: replace(run, spent={**run.spent, "labels": (0.0,) * 4}) for s, run in runs.items()}

    sentence = compared({"random_pairs": free(arm(0.01)), "spread": free(arm(0.02))}).sentence
    assert sentence.startswith("random_pairs has spent no labels, so that no cost of its quality can be compared; ")


def test_no_more_seeds_are_promised_where_there_are_enough_of_them() -> None:
    """Eight seeds could have shown it for one of four arms, and one of the eight is the other way."""
    found = compared({"random_pairs": ending([1.0] * 8), **{f"arm{n}": ending([1.3] * 7 + [0.99]) for n in range(4)}})
    versus = found.beside[found.best]["labels"]
    assert versus.more_seeds <= 0
    assert not found.pays(versus)
    assert "more seeds" not in found.sentence


def test_a_row_rests_on_the_runs_that_are_compared() -> None:
    """One run of the baseline was killed, and the other arm has a seed that it has not."""
    whole, killed = ending([2.0, 2.2, 2.4, 9.0]), ending([1.0, 1.1, 1.2], unfinished=2)
    found = compared({"random_pairs": killed, "spread": whole, "certainty": ending([1.0, 1.1])})
    assert found.final("spread") == "1.80 ± 0.53", "2, 2.2 and half of 2.4"
    assert found.beside["spread"]["labels"].gain.value == pytest.approx(1.8 - 0.9)
    assert found.uneven == [
        "certainty is compared on the seeds of both, as far as both came: there random_pairs ends at 1.05 ± 0.07."
    ]
    console = Terminal(width=120, record=True, file=io.StringIO())
    print_comparison(found, console)
    assert found.uneven[0] in console.export_text()
    assert compared({"random_pairs": ending([1.0] * 3), "spread": killed}).uneven == [
        "spread is compared on the seeds of both, as far as both came: there random_pairs ends at 0.83 ± 0.29."
    ]


def test_the_legend_says_how_many_seeds_where_arms_differ() -> None:
    killed, whole = ending([1.0, 1.1, 1.2], unfinished=2), ending([2.0, 2.2, 2.4, 9.0])
    late = {s + 100: run for s, run in whole.items()}
    found = compared({"random_pairs": killed, "spread": whole, "certainty": ending([1.0]), "late": late})
    legend = ["random_pairs (3 seeds, 1 not finished)", "spread (3 seeds)", "certainty (1 seed)"]
    assert [*labels(found).values()] == legend
    assert [run.quality[-1] for run in drawn(found)["spread"]] == pytest.approx([2.0, 2.2, 2.4])
    even = compared({"random_pairs": arm(0.01), "spread": arm(0.02)})
    assert labels(even) == {"random_pairs": "random_pairs", "spread": "spread"}


def test_the_page_says_over_what_intervals_are(tmp_path) -> None:
    def page(runs: Arm) -> str:
        return write_comparison(compared({"random_pairs": runs, "spread": runs}), tmp_path).read_text()

    assert "a bootstrap over seeds; there is none" in page(arm(0.01, seeds=2))
    answers = {"p": (0.0, 1.0, 2.0, 4.0)}
    assert "over seeds and held-out prompts; there is none" in page(
        {s: replace(run, answers=answers) for s, run in arm(0.01, seeds=2).items()}
    )


def test_few_seeds_say_how_many_more_would_tell() -> None:
    arms = {"random_pairs": arm(0.01, seeds=3), "spread": arm(0.02, seeds=3)}
    assert "about 3 more seeds would tell" in compared(arms).sentence
    assert (
        "With one seed of each arm nothing can be said"
        in compared({name: {0: runs[0]} for name, runs in arms.items()}).sentence
    )
    two = compared({name: {0: runs[0], 1: runs[1]} for name, runs in arms.items()}).sentence
    assert two.startswith("With 2 seeds of each arm nothing can be said: type seed=0,1,")
    assert "interval" not in two


def test_of_two_runs_of_a_seed_the_finished_or_the_longer_one_counts() -> None:
    (whole,) = arm(0.01, seeds=1).values()
    cut = replace(whole, quality=whole.quality[:2], finished=False)
    assert farther(whole, cut)
    assert not farther(cut, whole)
    assert not farther(whole, whole), "the first one stays"


def test_an_arm_with_one_seed_does_not_hide_those_with_enough() -> None:
    sweep = {"random_pairs": arm(0.01, seeds=8), "gap": arm(0.02, seeds=8), "spread": arm(0.08, seeds=1)}
    assert compared(sweep).sentence.startswith("gap pays here")


def test_an_arm_is_left_out_with_the_judges_of_the_seed_in_which_they_differ() -> None:
    by_a = {s: replace(run, judge="A") for s, run in arm(0.01, seeds=2).items()}
    found = compared({"random_pairs": by_a | {1: replace(by_a[1], judge="B")}, "gap": by_a})
    assert found.skipped == {"gap": "judged by A, and random_pairs by B"}


def test_an_arm_that_is_sooner_there_and_ends_lower_is_said_to() -> None:
    """It is past the baseline's end at first, and falls back."""
    early = {s: replace(run, quality=(0.0, 5.0, 4.0, 3.0)) for s, run in arm(0.0, seeds=1).items()}
    sentence = compared({"random_pairs": arm(0.01, seeds=1), "early": early}).sentence
    assert sentence.endswith(
        "In these runs early needs 20% of the labels of random_pairs for its final quality, and ends 1.00 lower."
    )


def test_arms_without_a_common_seed_are_named_and_other_measures_refused() -> None:
    late = {s + 100: run for s, run in arm(0.02).items()}
    comparison = compared({"random_pairs": arm(0.01), "spread": late})
    assert comparison.skipped == {"spread": "no seed in common with random_pairs"}
    listed = "The 2 arms are listed in compare.csv and not compared: no seed in common with random_pairs."
    assert comparison.sentence == listed
    assert "only one arm" in compared({"spread": late}).sentence
    judged = {s: replace(run, judge="labeler=vader") for s, run in arm(0.02).items()}
    comparison = compared({"random_pairs": arm(0.01), "spread": judged})
    assert comparison.skipped["spread"].startswith("judged by labeler=vader")
    assert not comparison.beside
    with pytest.raises(ValueError, match="Some runs measure reward, others win_rate"):
        compared({"random_pairs": arm(0.01), "spread": arm(0.02, measure="win_rate")})


def test_the_cheapest_arm_is_printed_after_the_baseline() -> None:
    console = Terminal(width=120, record=True, file=io.StringIO())
    print_comparison(compared({"spread": arm(0.02), "certainty": arm(0.005), "random_pairs": arm(0.01)}), console)
    lines = [line.split() for line in console.export_text().splitlines() if line.split()[1:2] == ["8"]]
    assert [line[0] for line in lines] == ["random_pairs", "spread", "certainty"]
    assert lines[1][2:] == ["8.28", "±", "0.20", "200", "200", "50%", "+4.14"]
    assert lines[2][5] == "never"


def test_a_long_name_is_whole_in_a_pipe(monkeypatch, capsys) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    name = "[certainty,dissimilarity] callbacks.certainty.fraction=0.25 labels.budget=500 model.lora.r=16 lr=0.0002"
    print_comparison(compared({name: arm(0.02), "random_pairs": arm(0.01)}))
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f" {name}  ")]
    assert row.split()[-2:] == ["50%", "+4.14"]


def test_kl_is_a_panel_where_all_runs_measured_it() -> None:
    arms = {"random_pairs": arm(0.01), "spread": arm(0.02)}
    comparison = compared(arms)
    assert panels(comparison) == ["labels", "seconds", "tokens", "distance from the start"]
    assert draw(comparison, ["distance from the start"]).startswith(b"\x89PNG")
    without = {s: Course(run.spent, run.quality) for s, run in arms["spread"].items()}
    assert panels(compared({**arms, "spread": without})) == ["labels", "seconds", "tokens"]


def test_a_cost_that_no_run_had_is_no_panel() -> None:
    def given(runs: Arm) -> Arm:  # offline runs sample nothing
        return {s: Course(run.spent | {"tokens": (0.0,) * 4}, run.quality) for s, run in runs.items()}

    arms = {"random_pairs": arm(0.01), "spread": arm(0.02)}
    assert panels(compared({name: given(runs) for name, runs in arms.items()})) == ["labels", "seconds"]
    assert "tokens" in panels(compared({**arms, "spread": given(arms["spread"])}))


@pytest.mark.parametrize(
    ("start", "measured", "quality"),
    [
        ({"reward": 1.0}, {"reward": 2.0, "win_rate": 0.75}, ("reward", (1.0, 2.0))),
        ({"reward": None}, {"reward": None, "win_rate": 0.75}, ("win_rate", (0.5, 0.75))),
        ({}, {"accuracy": 0.6, "margin": 0.1}, ("accuracy", (0.5, 0.6))),
    ],
)
def test_the_quality_is_the_reward_where_there_is_one(start, measured, quality) -> None:
    run = RunSummary(Path(), start, ({"evaluation": measured},), {}, ())
    assert quality_of(run) == quality


def test_a_run_without_a_judge_has_no_quality_and_kl_is_that_of_the_samples() -> None:
    run = RunSummary(
        Path(), {}, ({"evaluation": {"win_rate": None, "kl": 3.0}}, {"evaluation": {"log_ratio": 4}}), {}, ()
    )
    with pytest.raises(ValueError, match="no judge was set"):
        quality_of(run)
    assert kl_of(run) == (0.0, 3.0, 4.0)
    assert kl_of(RunSummary(Path(), {}, ({"evaluation": {"accuracy": 0.5}},), {}, ())) == ()


def test_arms_are_named_by_what_tells_them_apart() -> None:
    found = {("lr=1e-4", "rounds=2", "selector=spread"): arm(1.0), ("rounds=2", "selector=random"): arm(1.0)}
    assert list(named(found)) == ["random", "spread lr=1e-4"]
    assert math.isfinite(compared(named(found)).beside["spread lr=1e-4"]["labels"].ratio.value)
